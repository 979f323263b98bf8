"""The Laplace kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from krossfuse.fusion.kernels.shift_invariant import ShiftInvariantKernel


class LaplaceKernel(ShiftInvariantKernel):
    """k(x, y) = exp(−‖x − y‖₁ / η); frequencies are independent standard Cauchy coordinates.

    Arguments: :class:`ShiftInvariantKernel`, bandwidth η. Source: Rahimi and Recht 2007.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> LaplaceKernel(2, bandwidth=7.0).kernel(x, x)[0, 1]  # exp(-1)
        tensor(0.3679)
    """

    name = "laplace"
    rotation_invariant = False

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(rows, self.in_dim, generator=generator, dtype=torch.float64)
        return torch.tan(math.pi * (uniform - 0.5))

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y, p=1)

    def _of_distance(self, distance: Tensor) -> Tensor:
        return torch.exp(-distance)
