"""The linear kernel."""

from __future__ import annotations

from torch import Tensor

from krossfuse.fusion.kernels.base import Kernel


class LinearKernel(Kernel):
    """k(x, y) = ⟨x, y⟩, φ(x) = x.

    Example:
        >>> import torch
        >>> LinearKernel(2)(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """

    name = "linear"

    def __init__(self, in_dim: int, *, seed: int = 0) -> None:
        super().__init__(in_dim)
        self.out_dim = in_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return x itself, checked."""
        return self._check(x)

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ⟨x, y⟩."""
        return self._check(x) @ self._check(y).T
