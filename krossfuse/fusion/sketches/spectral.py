"""The spectral sketch: products of singular directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, DimensionError
from krossfuse.fusion.sketches.fitted import FittedSketch
from krossfuse.fusion.sketches.products import multiply


class SpectralSketch(FittedSketch):
    """The l products of singular directions with the largest products of singular values. Deterministic, label-free.

    With Φ_i = P_i·diag(s_i)·V_iᵀ over the fit set, the product's coordinates in the basis ⊗V_i are the products of the
    factors' own, and (a_1, ..., a_m) has the marginal energy Π s_i[a_i]². Keeping l of them is an orthogonal
    projection: ⟨S(x), S(x)⟩ ≤ ⟨x, x⟩, and the product itself at l = Π d_i. O(Σ d_i·r_i + m·l) a sample, where r_i
    directions are used.

    Raises:
        DimensionError: l is larger than Π d_i.

    Example:
        >>> x = [torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])]
        >>> SpectralSketch([2, 2], 2).fit(x)(x)  # directions of energy 4·9 and 1·9; no sample has the second
        tensor([[6., 0.],
                [0., 0.]])
    """

    name = "spectral"
    deterministic = True

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        if out_dim > math.prod(dims):
            raise DimensionError(f"{out_dim} components are more than the {math.prod(dims)} dimensions of the product "
                                 f"of {list(dims)}; lower dim")  # fmt: skip
        self._declare(*(f"directions_{i}" for i in range(len(dims))), *(f"chosen_{i}" for i in range(len(dims))))

    def numbers(self) -> int:
        """Return those of the directions and of the second moments."""
        return 2 * sum(dim * dim for dim in self.dims)

    def check_rows(self, rows: int) -> None:
        """Check that so many rows can span enough product directions; whether they do, the fit says."""
        most = [min(rows, dim) for dim in self.dims]
        if math.prod(most) < self.out_dim:
            raise DataError(
                f"{rows} fit samples span {' × '.join(map(str, most))} = {math.prod(most)} product "
                f"directions at most, fewer than the {self.out_dim} components; give more samples or lower dim"
            )

    def fit_blocks(self, blocks: Iterable[Sequence[Tensor]]) -> Self:
        """Find each factor's singular directions from its second moments, summed in float64.

        Raises:
            DataError: the samples span fewer product directions than ``out_dim``.
        """
        moments = [torch.zeros(dim, dim, dtype=torch.float64) for dim in self.dims]
        samples = 0
        for block in blocks:
            samples += len(block[0])
            for moment, x in zip(moments, block, strict=True):
                x = x.detach().double()
                moment += (x.T @ x).cpu()
        directions, values = [], []
        for moment in moments:
            squares, vectors = torch.linalg.eigh(moment)
            squares, vectors = squares.flip(0), vectors.flip(1)
            rank = int((squares > squares[0] * len(squares) * torch.finfo(torch.float32).eps ** 2).sum())
            rank = min(rank, samples)
            largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
            directions.append((vectors * largest.sign())[:, :rank])  # the sign of a direction is free: fix it
            values.append(squares[:rank])
        available = math.prod(len(v) for v in values)
        if available < self.out_dim:
            raise DataError(
                f"{samples} fit samples span {' × '.join(str(len(v)) for v in values)} = {available} product "
                f"directions, fewer than the {self.out_dim} components; give more samples or lower dim"
            )
        chosen = largest_products(values, self.out_dim)
        used = [int(column.max()) + 1 for column in chosen.T]
        self._store(
            **{f"directions_{i}": v[:, :r] for i, (v, r) in enumerate(zip(directions, used, strict=True))},
            **{f"chosen_{i}": column for i, column in enumerate(chosen.T)},
        )
        return self

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the chosen coordinates, (n, l)."""
        self._require_fit()
        return multiply(
            [
                (x @ self.get_buffer(f"directions_{i}")).index_select(1, self.get_buffer(f"chosen_{i}"))
                for i, x in enumerate(factors)
            ]
        )


def largest_products(values: Sequence[Tensor], count: int) -> Tensor:
    """Return the indices (count, m) of the ``count`` largest products of one value from each list, in index order.

    Lists are sorted downwards and positive. The best prefixes are enough at each step: a tuple among the largest has
    a prefix among the largest.

    Example:
        >>> largest_products([torch.tensor([4.0, 1.0]), torch.tensor([3.0, 2.0])], 3).tolist()
        [[0, 0], [0, 1], [1, 0]]
    """
    products, indices = values[0], torch.arange(len(values[0])).unsqueeze(1)
    for value in values[1:]:
        table = torch.outer(products, value).flatten()
        best = table.sort(descending=True, stable=True).indices[:count]
        indices = torch.cat([indices[best // len(value)], (best % len(value)).unsqueeze(1)], 1)
        products = table[best]
    radix = torch.zeros(len(indices), dtype=torch.int64)
    for column, value in zip(indices.T, values, strict=True):
        radix = radix * len(value) + column
    return indices[radix.argsort()]
