"""The paper's released code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DimensionError, check_positive
from krossfuse.core.memory import check_memory
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods.kernel_method import (
    KernelMethod,
    product,
)


class ReleasedCode(KernelMethod):
    """The paper's released code, to the digit: its draws, and its division of BOTH matrices by √l.

    So inner products are l times too small: a logistic regression at C = 0.316 behaves as one at 0.316/l. Images alone,
    one expert, no symmetrisation. For reproducing published runs; :class:`UnimodalKrossFuse` is it without the fault.

    Args:
        inputs: dimensions of the pair: a cross-modal encoder and one image expert.
        dim: l.
        seed: of the released generator (42 there).

    Raises:
        ConfigError: not such a pair, or a bad value.
    """

    matrix_cross: Tensor
    matrix_expert: Tensor

    name = "released_code"
    title = "RP-KrossFuse, released code"

    def __init__(self, *, inputs: InputSpec, dim: int = 3000, seed: int = 42) -> None:
        check_positive("dim", dim, integer=True)
        if inputs.cross_modal is None or len(inputs.image_experts) != 1:
            raise ConfigError(
                f"the released code fuses a cross-modal encoder with one image expert; the pair has image experts "
                f"{list(inputs.image_experts)} and {'no' if inputs.cross_modal is None else 'a'} cross-modal encoder"
            )
        expert = next(iter(inputs.image_experts))
        super().__init__(inputs=inputs, kernel=CosineKernel, parents=[CROSS_MODAL, expert], seed=seed)
        self.expert = expert
        self.dim = dim
        check_memory(f"512 rows of {dim} dimensions", 512 * 4 * dim, "lower dim")
        check_memory(
            "the matrices of the released code",
            4 * dim * (inputs.cross_modal + inputs.image_experts[expert]),
            "lower dim",
            error=DimensionError,
        )
        generator = torch.Generator().manual_seed(seed)
        root = math.sqrt(3)
        for name, d in (("cross", inputs.cross_modal), ("expert", inputs.image_experts[self.expert])):
            entries = torch.rand(d, dim, generator=generator, dtype=torch.float32) * 2 * root - root
            self.register_buffer(f"matrix_{name}", entries / math.sqrt(dim))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Images."""
        return ("image",)

    @property
    def out_dim(self) -> int:
        """Dimension l."""
        return self.dim

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return (maps[CROSS_MODAL] @ self.matrix_cross) * (maps[self.expert] @ self.matrix_expert)

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        return product(list(values.values())) / self.dim

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        described = {"method": self.name, "title": self.title, "dim": self.dim}
        return {**described, "sketch": "uniform", "kernel": "cosine", "seed": self.seed}
