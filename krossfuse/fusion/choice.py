"""What the constants are chosen on, and what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """Exact kernels between the chosen training samples, (n, n) each.

    Attributes:
        cross: k_ψ.
        expert: k_γ, the product of a side's experts.
        within: p, the kernel of the cross-modal features within the product.
    """

    cross: Tensor
    expert: Tensor
    within: Tensor


Grams = Callable[[Tensor], Terms]
"""``grams(rows)``: the terms over the chosen training rows."""


@dataclass(frozen=True)
class Choice:
    """Chosen constants, with what they were chosen by."""

    C: float
    rule: str
    expert_weight: float
    record: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the flat record for the results."""
        return {"C": self.C, "C_rule": self.rule, **self.record}
