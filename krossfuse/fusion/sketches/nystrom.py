"""Nyström features of the product kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, DimensionError, check_positive
from krossfuse.core.memory import check_memory
from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.sketches.fitted import FittedSketch
from krossfuse.fusion.sketches.products import multiply


class NystromSketch(FittedSketch):
    """Nyström features of the product kernel: S(x) = Λ^(−1/2)·Vᵀ·k(x, landmarks), K = VΛVᵀ over the landmarks.

    Exact between landmarks when all l = landmarks directions are kept. Label-free; O(landmarks·(Σd_i + l)) a sample.
    Source: Williams and Seeger 2001.

    Args:
        dims: dimensions of the factors.
        out_dim: l.
        landmarks: how many rows of the fit set are landmarks, l or more; None = l.
        seed: of their choice, uniform without replacement.

    Raises:
        ConfigError: fewer landmarks than l.
        DimensionError: l is larger than Π d_i.

    Example:
        >>> x = [torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])]
        >>> z = NystromSketch([2, 2], 2).fit(x)(x)
        >>> torch.allclose(z @ z.T, torch.tensor([[36.0, 0.0], [0.0, 1.0]]))  # exact between landmarks
        True
    """

    name = "nystrom"

    def __init__(self, dims: Sequence[int], out_dim: int, *, landmarks: int | None = None, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        self.landmarks = out_dim if landmarks is None else landmarks
        check_positive("landmarks", self.landmarks, integer=True)
        if self.landmarks < out_dim:
            raise ConfigError(f"landmarks={landmarks} are fewer than the {out_dim} components; give as many or more")
        if out_dim > math.prod(dims):
            raise DimensionError(f"{out_dim} components are more than the {math.prod(dims)} dimensions of the product "
                                 f"of {list(dims)}; lower dim")  # fmt: skip
        check_memory(
            f"the kernel of {self.landmarks} landmarks",
            2 * 8 * self.landmarks**2,
            "lower dim, or landmarks",
        )
        self._declare("whitening", *(f"landmarks_{i}" for i in range(len(dims))))

    def check_rows(self, rows: int) -> None:
        """Check that there are as many rows as landmarks."""
        if rows < self.landmarks:
            raise DataError(
                f"sketch={self.name!r}: {rows} fit samples are fewer than the {self.landmarks} landmarks; give more "
                f"samples or lower dim"
            )

    def fit_blocks(self, blocks: Iterable[Sequence[Tensor]]) -> Self:
        """Choose the landmarks (the rows with the smallest random keys) and whiten their kernel.

        Raises:
            DataError: fewer samples than landmarks.
        """
        generator = derived_generator(self.seed, self.name)
        keys, kept, samples = torch.empty(0, dtype=torch.float64), [torch.empty(0, dim) for dim in self.dims], 0
        for block in blocks:
            samples += len(block[0])
            keys = torch.cat([keys, torch.rand(len(block[0]), generator=generator, dtype=torch.float64)])
            best = keys.argsort(stable=True)[: self.landmarks].sort().values
            pool = [torch.cat([old.to(x), x.detach()]) for old, x in zip(kept, block, strict=True)]
            keys, kept = keys[best], [x[best.to(x.device)] for x in pool]
        self.check_rows(samples)
        kernel = torch.ones(self.landmarks, self.landmarks, dtype=torch.float64)
        for x in kept:
            kernel *= (x.double() @ x.double().T).cpu()
        values, vectors = torch.linalg.eigh(kernel)
        values, vectors = values.flip(0)[: self.out_dim], vectors.flip(1)[:, : self.out_dim]
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        # Directions without energy in the precision of the features are noise: their coordinate is zero.
        floor = values[0] * len(kernel) * torch.finfo(kept[0].dtype).eps
        scale = torch.where(values > floor, values.clamp_min(1e-300).rsqrt(), torch.zeros_like(values))
        self._store(whitening=vectors * scale, **{f"landmarks_{i}": x for i, x in enumerate(kept)})
        return self

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the whitened kernel values, (n, l)."""
        self._require_fit()
        return (
            multiply([x @ self.get_buffer(f"landmarks_{i}").T for i, x in enumerate(factors)])
            @ self.get_buffer("whitening")
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().describe(), "landmarks": self.landmarks}
