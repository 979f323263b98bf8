"""Concatenation of the parents: the sum of their kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, check_choice, check_range
from krossfuse.core.parts import Modality
from krossfuse.fusion.base import InputSpec, expert_modalities
from krossfuse.fusion.factories import KernelFactory
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods.kernel_method import (
    KernelMethod,
)


class Concatenation(KernelMethod):
    """Weighted concatenation of the parents' feature maps: the weighted SUM of their kernels.

    Args:
        inputs: dimensions of the pair.
        weights: by role, the weight w of its kernel in the sum (its features are scaled by √w); 1 where not named.
        missing: "none": only the side that has experts is encoded. "zeros": both are, with zeros in the place of a
            parent that the modality lacks, so that image-text similarities are the cross-modal encoder's.
        kernel: of every parent; the default is cosine, which normalises.
        seed: of random features.

    Raises:
        ConfigError: no expert, a weight that is not positive or of no parent, or both sides with missing="none".
    """

    name = "concatenation"
    title = "Concatenation"

    def __init__(
        self,
        *,
        inputs: InputSpec,
        weights: Mapping[str, float] | None = None,
        missing: str = "none",
        kernel: KernelFactory = CosineKernel,
        seed: int = 0,
    ) -> None:
        check_choice("missing", missing, ("none", "zeros"))
        modalities = expert_modalities(inputs, type(self).__name__, missing)
        super().__init__(inputs=inputs, kernel=kernel, seed=seed)
        self._modalities, self.missing = modalities, missing
        self.weights = dict.fromkeys(self._parents, 1.0)
        if weights is not None and not isinstance(weights, Mapping):
            raise ConfigError(
                f"weights={weights!r} must be a mapping of roles to numbers; the roles are {list(self._parents)}"
            )
        for role, weight in (weights or {}).items():
            check_choice("weights: role", role, self._parents)
            check_range(f"weights[{role}]", weight, 1e-9, 1e9, "float32 holds the kernels of no other")
            self.weights[role] = float(weight)
        self.deterministic = all(kernel.deterministic for kernel in self.kernels.values())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts; both with ``missing="zeros"`` and a cross-modal encoder."""
        return self._modalities

    @property
    def out_dim(self) -> int:
        """Sum of the dimensions of the parents' maps."""
        return sum(kernel.out_dim for kernel in self.kernels.values())

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        like = next(iter(maps.values()))
        return torch.cat(
            [
                maps[role] * math.sqrt(self.weights[role]) if role in maps else like.new_zeros(like.shape[0], k.out_dim)
                for role, k in self.kernels.items()
            ],
            1,
        )

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([value * self.weights[role] for role, value in values.items()]).sum(0)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        described = {"method": self.name, "title": self.title, "dim": self.out_dim}
        described |= {"weights": self.weights, "missing": self.missing}
        return {**described, **self._describe_kernels()}
