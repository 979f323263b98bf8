"""What a sketch is: m ≥ 2 factors (n, d_i) in, the sketch (n, l) of their Kronecker product out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DimensionError, check_positive
from krossfuse.core.memory import check_memory


class Sketch(nn.Module, ABC):
    """A sketch of a product of feature maps.

    Args:
        dims: dimensions d_1 ... d_m of the factors.
        out_dim: l.
        seed: of every draw; ignored by deterministic sketches.

    Attributes:
        name: as in the configuration and in results.
        deterministic: no seed changes it.
        needs_fit: whether :meth:`fit` must run first.
        fourier: whether its factors must be random Fourier features.
        chunk_rows: rows of output that must fit into memory at once.

    Raises:
        ConfigError: a value is impossible.
        DimensionError: ``out_dim`` does not suit ``dims``.
    """

    name: ClassVar[str]
    deterministic: ClassVar[bool] = False
    needs_fit: ClassVar[bool] = False
    fourier: ClassVar[bool] = False
    chunk_rows: ClassVar[int] = 512

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ConfigError(f"a product sketch needs two factors or more, got dims={list(dims)}")
        for dim in dims:
            check_positive("dims", dim, integer=True)
        check_positive("out_dim", out_dim, integer=True)
        self.dims, self.out_dim, self.seed = tuple(dims), out_dim, seed
        size, way_out = torch.get_default_dtype().itemsize, "lower dim"
        check_memory(f"{self.chunk_rows} rows of {out_dim} dimensions", self.chunk_rows * out_dim * size, way_out)
        drawn = f"the {self.name} sketch of {list(self.dims)} dimensions into {out_dim}"
        check_memory(drawn, self.numbers() * size, way_out, error=DimensionError)

    def numbers(self) -> int:
        """Return about how many numbers it holds, drawn or fitted; nothing is drawn yet."""
        return 0

    def check_rows(self, rows: int) -> None:
        """Check that a fit on so many rows is possible.

        Raises:
            DataError: they are too few.
        """

    def fit(self, factors: Sequence[Tensor]) -> Self:
        """Fit on unlabelled factors (n, d_i); nothing to do for random sketches."""
        return self.fit_blocks([factors])

    def fit_blocks(self, blocks: Iterable[Sequence[Tensor]]) -> Self:
        """Fit on factors that come in blocks of rows, read once.

        Raises:
            DataError: fewer samples than the components need.
        """
        return self

    @abstractmethod
    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the sketch (n, l) of the product of factors (n, d_i).

        Raises:
            NotFittedError: it needs a fit first.
        """

    def describe(self) -> dict[str, Any]:
        """Return the sketch's configuration, flat and JSON-able."""
        return {"sketch": self.name}
