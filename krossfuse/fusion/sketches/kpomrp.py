"""KPoMRP: the Kronecker product of marginal random projections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from krossfuse.core.errors import check_choice
from krossfuse.fusion.sketches.dense import DenseSketch, GaussianSketch, RademacherSketch, UniformSketch
from krossfuse.fusion.sketches.products import kronecker
from krossfuse.fusion.sketches.random import RandomSketch


class KPoMRPSketch(RandomSketch):
    """Kronecker product of marginal random projections: each factor to ⌈l^(1/m)⌉ dims, then their Kronecker product.

    The paper's baseline: unbiased, but few random rows shared by many coordinates give it a much higher variance.
    Where l is not a perfect power, the product's first l coordinates are kept. O(l^(1/m)·Σd_i + l) a sample.

    Args:
        dims: dimensions of the factors.
        out_dim: l.
        distribution: of the entries: uniform, gaussian or rademacher.
        seed: of the draw.

    Source: the baseline of arXiv 2506.08645, section 5.

    Example:
        >>> KPoMRPSketch([3, 3], 10, seed=1).marginals.out_dim  # 4 × 4 coordinates, of which ten are kept
        4
    """

    name = "kpomrp"

    def __init__(
        self,
        dims: Sequence[int],
        out_dim: int,
        *,
        distribution: Literal["uniform", "gaussian", "rademacher"] = "uniform",
        seed: int = 0,
    ) -> None:
        super().__init__(dims, out_dim, seed=seed)
        dense: dict[str, Callable[..., DenseSketch]] = {
            "uniform": UniformSketch,
            "gaussian": GaussianSketch,
            "rademacher": RademacherSketch,
        }
        side = round(out_dim ** (1 / len(dims)))
        side += side ** len(dims) < out_dim
        self.distribution = check_choice("distribution", distribution, dense)
        self.marginals = dense[distribution](dims, side, seed=seed)
        # The marginals' own scale is for their elementwise product; here it is the whole Kronecker product's.
        self.marginals.get_buffer("matrix_0").mul_(math.sqrt(side / out_dim))

    def project(self, factor: int, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return the marginal projection, (n, ⌈l^(1/m)⌉)."""
        return self.marginals.project(factor, x, offset)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        return self.marginals.project(factor, x)

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the Kronecker product."""
        return kronecker(projections)

    def finish(self, product: Tensor) -> Tensor:
        """Return its first l coordinates."""
        return product[:, : self.out_dim]

    def unit(self, factor: int) -> Tensor:
        """Return ones."""
        return self.marginals.unit(factor)

    def _fold(self, factor: int) -> None:
        self.marginals._fold(factor)

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().describe(), "distribution": self.distribution}
