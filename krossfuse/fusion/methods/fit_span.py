"""The product kernel in the span of the fit set, where the product itself is too large to be written down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from krossfuse.core.memory import check_memory
from krossfuse.fusion.sketches.fitted import FittedSketch
from krossfuse.fusion.sketches.products import multiply


class FitSpan(FittedSketch):
    """Coordinates in the span of the fit set: S(x) = Λ^(−1/2)·Vᵀ·k(x, X), K = VΛVᵀ the Gram matrix of its rows X.

    ⟨S(x), S(y)⟩ = Π k_i(x, y) whenever x or y is a row of the fit set; between two others it is the kernel of their
    projections on it, which is all that a ridge, a logistic regression or a nearest neighbour learned from the fit set
    sees. One dimension a row: ``out_dim`` is 0 before the fit. O(n²·Σd_i + n³) to fit n rows, O(n·(Σd_i + n)) a sample.
    It is :class:`~krossfuse.fusion.sketches.NystromSketch` with every row a landmark (Williams and Seeger 2001).

    Args:
        dims: dimensions of the factors.
        out_dim: not used: it is the number of rows.
        seed: not used.
    """

    name = "fit_span"
    deterministic = True

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, 1, seed=seed)
        self._declare("whitening", *(f"rows_{i}" for i in range(len(dims))))

    @property
    def out_dim(self) -> int:
        """Number of rows of the fit set."""
        return len(self.get_buffer("whitening"))

    @out_dim.setter
    def out_dim(self, _: int) -> None: ...

    def check_rows(self, rows: int) -> None:
        """Check that the Gram matrix fits into memory."""
        way_out = "fit on fewer rows, or use fusion=rp_krossfuse"
        check_memory(f"the kernel of {rows} fit samples", 3 * 8 * rows**2, way_out)

    def fit_blocks(self, blocks: Iterable[Sequence[Tensor]]) -> Self:
        """Keep all rows, and whiten their kernel in float64."""
        kept = [torch.cat(factors) for factors in zip(*([x.detach() for x in block] for block in blocks), strict=True)]
        kernel = multiply([x.double() @ x.double().T for x in kept])
        values, vectors = torch.linalg.eigh(kernel)
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        # Directions without energy in the precision of the features are noise: their coordinate is zero.
        floor = values[-1] * len(kernel) * torch.finfo(kept[0].dtype).eps
        scale = torch.where(values > floor, values.clamp_min(1e-300).rsqrt(), torch.zeros_like(values))
        self._store(whitening=vectors * scale, **{f"rows_{i}": x for i, x in enumerate(kept)})
        return self

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the whitened kernel values, (n, fit rows)."""
        self._require_fit()
        return multiply([x @ self.get_buffer(f"rows_{i}").T for i, x in enumerate(factors)]) @ self.get_buffer(
            "whitening"
        )

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {"sketch": self.name}
