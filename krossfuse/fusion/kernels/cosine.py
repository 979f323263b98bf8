"""The cosine kernel."""

from __future__ import annotations

from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.fusion.kernels.base import Kernel, unit_rows


class CosineKernel(Kernel):
    """k(x, y) = ⟨x, y⟩ / (‖x‖ ‖y‖), φ(x) = x / ‖x‖. A zero vector has no direction and is refused.

    Example:
        >>> import torch
        >>> CosineKernel(2)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    name = "cosine"

    def __init__(self, in_dim: int, *, seed: int = 0) -> None:
        super().__init__(in_dim)
        self.out_dim = in_dim

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise DataError(f"expected features of shape (n, {self.in_dim}), got {tuple(x.shape)}")
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return x / ‖x‖."""
        return unit_rows(self._check(x))

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cosine of the angle."""
        cosine: Tensor = self(x) @ self(y).T
        return cosine
