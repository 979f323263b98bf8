"""Linear heads: what the probes of linear heads leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from krossfuse.probes.rows import normalised


class LinearHead(nn.Module):
    """Class scores Wz + b of embeddings z, or of z/‖z‖.

    Args:
        weight: (classes, dim).
        bias: (classes,).
        normalise: scale embeddings to Euclidean norm 1 first.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, normalise: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.normalise = normalise

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return (n, classes) scores of (n, dim) embeddings."""
        z = embeddings.to(self.weight)  # a stream may bring them on a GPU
        if self.normalise:
            z = normalised(z)
        return z @ self.weight.T + self.bias


@dataclass(frozen=True)
class Candidates:
    """Heads of one label set, fitted alike but for one hyper-parameter.

    Attributes:
        weights: (n, classes, dim).
        intercepts: (n, classes).
        records: of each, what its fit says of itself.
    """

    weights: Tensor
    intercepts: Tensor
    records: Sequence[dict[str, Any]]
