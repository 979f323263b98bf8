"""The polynomial kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DimensionError, check_positive, check_range
from krossfuse.fusion.kernels.base import Kernel, unit_rows
from krossfuse.fusion.sketches.tensor_sketch import TensorSketch


class PolynomialKernel(Kernel):
    """k(x, y) = (γ⟨x, y⟩ + c)^p; φ(x) is the p-fold Kronecker power of [√γ·x, √c], or a TensorSketch of it.

    Args:
        in_dim: dimension d of the parent's features.
        degree: p, 1 or more.
        gamma: γ > 0.
        coef0: c ≥ 0.
        features: dimension of the TensorSketch (Pham and Pagh 2013), or None for the exact map of (d + 1)^p dims.
        normalize: map x / ‖x‖ rather than x.
        seed: of the sketch.

    Raises:
        ConfigError: a value is impossible.
        DimensionError: the exact map has more than ``MAX_EXACT`` dimensions.

    Example:
        >>> kernel, x = PolynomialKernel(2, degree=2), torch.tensor([[1.0, 2.0]])
        >>> kernel.kernel(x, x), kernel(x) @ kernel(x).T  # (5 + 1)²
        (tensor([[36.]]), tensor([[36.]]))
    """

    name = "polynomial"
    MAX_EXACT = 20_000

    def __init__(
        self,
        in_dim: int,
        *,
        degree: int = 2,
        gamma: float = 1.0,
        coef0: float = 1.0,
        features: int | None = None,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(in_dim)
        check_positive("degree", degree, integer=True)
        check_range("gamma", gamma, 1e-9, 1e9, "float32 holds the powers of no more")
        if isinstance(coef0, bool) or not isinstance(coef0, int | float) or not 0 <= coef0 <= 1e9:
            raise ConfigError(f"coef0={coef0!r} must be a number from 0 to 1e9: float32 holds the powers of no more")
        self.degree, self.gamma, self.coef0, self.normalize = degree, float(gamma), float(coef0), normalize
        width = in_dim + (coef0 > 0)
        self.sketch: TensorSketch | None = None
        if features is not None:
            check_positive("features", features, integer=True)
            self.out_dim = features
            if degree > 1:
                self.deterministic = False
                self.sketch = TensorSketch([width] * degree, features, seed=seed)
            elif features != width:
                raise ConfigError(f"features={features} has no use for degree 1, whose map is exact; use null")
        elif width**degree > self.MAX_EXACT:
            raise DimensionError(f"the exact map of degree {degree} has {width}^{degree} = {width**degree} dimensions, "
                                 f"more than {self.MAX_EXACT}; set features for a TensorSketch of it")  # fmt: skip
        else:
            self.out_dim = width**degree

    def _prepare(self, x: Tensor) -> Tensor:
        return unit_rows(self._check(x)) if self.normalize else self._check(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the Kronecker power, or its sketch."""
        base = self._prepare(x) * math.sqrt(self.gamma)
        if self.coef0 > 0:
            base = torch.cat([base, base.new_full((base.shape[0], 1), math.sqrt(self.coef0))], 1)
        if self.sketch is not None:
            sketched: Tensor = self.sketch([base] * self.degree)
            return sketched
        power = base
        for _ in range(self.degree - 1):
            power = (power.unsqueeze(2) * base.unsqueeze(1)).flatten(1)
        return power

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (γ⟨x, y⟩ + c)^p."""
        value: Tensor = (self.gamma * self._prepare(x) @ self._prepare(y).T + self.coef0) ** self.degree
        return value

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {
            "kernel": self.name,
            "degree": self.degree,
            "gamma": self.gamma,
            "coef0": self.coef0,
            "features": self.out_dim,
            "normalize": self.normalize,
        }
