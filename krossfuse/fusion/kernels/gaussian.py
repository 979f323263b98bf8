"""The Gaussian kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from krossfuse.fusion.kernels.shift_invariant import ShiftInvariantKernel


class GaussianKernel(ShiftInvariantKernel):
    """k(x, y) = exp(−‖x − y‖² / 2σ²); frequencies N(0, I). Arguments: :class:`ShiftInvariantKernel`.

    A product of Gaussian kernels is one Gaussian kernel on the scaled concatenation [x_1/σ_1 ; x_2/σ_2].

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> GaussianKernel(2, bandwidth=5.0).kernel(x, x)[0, 1]  # exp(-1/2)
        tensor(0.6065)
    """

    name = "gaussian"

    def _of_distance(self, distance: Tensor) -> Tensor:
        return torch.exp(distance.square() / -2)
