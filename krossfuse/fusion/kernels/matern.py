"""The Matérn kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError
from krossfuse.fusion.kernels.shift_invariant import ShiftInvariantKernel


class MaternKernel(ShiftInvariantKernel):
    """Matérn kernel of smoothness ν = 1/2, 3/2 or 5/2; frequencies are multivariate t with 2ν degrees of freedom.

    With s = √(2ν)·‖x − y‖/σ: exp(−s), (1 + s)·exp(−s) and (1 + s + s²/3)·exp(−s). A t vector is N(0, I)·√(2ν/c) with
    c ~ χ² of 2ν degrees (Rasmussen and Williams 2006, section 4.2.1).

    Args:
        in_dim: dimension of the parent's features.
        nu: ν.
        options: those of :class:`ShiftInvariantKernel`.

    Raises:
        ConfigError: ν has no closed form here, or as :class:`ShiftInvariantKernel`.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> MaternKernel(2, nu=0.5, bandwidth=5.0).kernel(x, x)[0, 1]  # exp(-1)
        tensor(0.3679)
    """

    name = "matern"
    nu: float

    def __init__(self, in_dim: int, *, nu: float = 1.5, **options: Any) -> None:
        if nu not in (0.5, 1.5, 2.5):
            raise ConfigError(f"nu={nu!r} must be 0.5, 1.5 or 2.5; for nu towards infinity use the gaussian kernel")
        self.nu = float(nu)  # before the draw, which needs it
        super().__init__(in_dim, **options)

    def _radius(self, rows: int, generator: torch.Generator) -> Tensor:
        degrees = round(2 * self.nu)
        chi2 = torch.randn(rows, degrees, generator=generator, dtype=torch.float64).square().sum(1, keepdim=True)
        return torch.sqrt(degrees / chi2)

    def _of_distance(self, distance: Tensor) -> Tensor:
        s = math.sqrt(2 * self.nu) * distance
        polynomial = {0.5: torch.ones_like(s), 1.5: 1 + s, 2.5: 1 + s + s.square() / 3}[self.nu]
        return polynomial * torch.exp(-s)

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().describe(), "nu": self.nu}
