"""Exact kernel matrices in blocks."""

from __future__ import annotations

from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_positive
from krossfuse.core.parts import Modality
from krossfuse.fusion.base import Features, FusionMethod


def gram(
    method: FusionMethod,
    modality_a: Modality,
    a: Features,
    modality_b: Modality,
    b: Features,
    *,
    block_rows: int = 1024,
) -> Tensor:
    """Return the exact kernel matrix (len(a), len(b)), computed in blocks of rows and columns.

    Raises:
        ConfigError: the method has no exact kernel.
        DataError: see :meth:`FusionMethod.encode`.
    """
    check_positive("block_rows", block_rows, integer=True)
    rows, columns = len(next(iter(a.values()))), len(next(iter(b.values())))
    result: Tensor | None = None
    for i in blocks(rows, block_rows):
        for j in blocks(columns, block_rows):
            block = method.kernel(
                modality_a, {role: x[i] for role, x in a.items()}, modality_b, {role: x[j] for role, x in b.items()}
            )
            if block is None:
                raise ConfigError(f"{type(method).__name__} has no exact kernel")
            if result is None:
                result = block.new_empty(rows, columns)
            result[i, j] = block
    if result is None:
        raise DataError(f"a kernel matrix needs rows on both sides, got {rows} and {columns}")
    return result
