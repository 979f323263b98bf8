"""The average of the parents' kernels."""

from __future__ import annotations

from typing import Any

from krossfuse.fusion.methods.concatenation import Concatenation


class AverageKernel(Concatenation):
    """The weighted average of the parents' kernels, k = Σ w_i k_i with Σ w_i = 1, as an explicit map.

    ⟨E(x), E(y)⟩ = Σ w_i ⟨φ_i(x), φ_i(y)⟩: the *sum* that KrossFuse's product is compared with. Two samples are
    similar when any parent says so. The arguments are :class:`Concatenation`'s; the weights are scaled to sum to 1.
    """

    name = "average_kernel"
    title = "Average of kernels"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        total = sum(self.weights.values())
        self.weights = {role: weight / total for role, weight in self.weights.items()}
