"""The Kronecker product itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from krossfuse.core.errors import DimensionError
from krossfuse.fusion.sketches.base import Sketch
from krossfuse.fusion.sketches.products import kronecker


class KroneckerSketch(Sketch):
    """The Kronecker product itself: no error, Π d_i dimensions.

    Raises:
        DimensionError: ``out_dim`` is not Π d_i.

    Example:
        >>> import torch
        >>> KroneckerSketch([2, 2], 4)([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])])
        tensor([[ 3.,  5.,  6., 10.]])
    """

    name = "kronecker"
    deterministic = True
    chunk_rows = 0  # a method that only has the kernel holds it without ever building the product

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        if out_dim != math.prod(dims):
            raise DimensionError(f"the Kronecker product of dimensions {list(self.dims)} has {math.prod(dims)}, "
                                 f"not {out_dim}")  # fmt: skip

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the Kronecker product of rows."""
        return kronecker(factors)
