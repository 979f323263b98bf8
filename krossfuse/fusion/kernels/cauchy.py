"""The Cauchy kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from krossfuse.fusion.kernels.shift_invariant import ShiftInvariantKernel


class CauchyKernel(ShiftInvariantKernel):
    """k(x, y) = 1 / (1 + ‖x − y‖² / σ²); frequencies √(2e)·N(0, I) with e standard exponential.

    For ∫ exp(−e)·exp(−e‖δ‖²) de = 1/(1 + ‖δ‖²): a scale mixture of Gaussians (the rational quadratic kernel with
    α = 1 and length scale σ/√2). Arguments: :class:`ShiftInvariantKernel`.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> CauchyKernel(2, bandwidth=5.0).kernel(x, x)[0, 1]
        tensor(0.5000)
    """

    name = "cauchy"

    def _radius(self, rows: int, generator: torch.Generator) -> Tensor:
        exponential = torch.empty(rows, 1, dtype=torch.float64).exponential_(generator=generator)
        return torch.sqrt(2 * exponential)

    def _of_distance(self, distance: Tensor) -> Tensor:
        return 1 / (1 + distance.square())
