"""Rows of embeddings: checked to be finite, and scaled to norm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.unit import LEAST_NORM
from krossfuse.core.unit import normalised as normalised


def finite_rows(block: Tensor, what: object, *, rows: Tensor | None = None) -> Tensor:
    """Return ``block`` (n, dim), whose rows are numbered ``rows`` (n,) in messages, or from 0.

    Raises:
        DataError: a value is NaN or infinite; the message names ``what`` and the row.
    """
    # A sum is finite only if every term is (large ones may overflow it); it reads the block once and builds no mask.
    if not bool(torch.isfinite(block.sum())):
        bad = (~torch.isfinite(block).all(dim=1)).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"{what} has NaN or infinite values in {len(bad)} rows, the first is row {_number(bad[0], rows)}; "
                "drop these items or extract the features again"
            )
    return block


def unit_rows(
    block: Tensor, what: object, *, dtype: torch.dtype | None = torch.float64, rows: Tensor | None = None
) -> Tensor:
    """Return the rows of ``block`` (n, dim) in ``dtype`` (None keeps it), scaled to Euclidean norm 1.

    Raises:
        DataError: a row has NaN or infinite values, or is zero (it has no direction).
    """
    block = finite_rows(block, what, rows=rows)
    block = block if dtype is None else block.to(dtype)
    norms: Tensor = torch.linalg.vector_norm(block, dim=1, keepdim=True)
    if bool(((norms < LEAST_NORM) | torch.isinf(norms)).any()):
        zero = (block == 0).all(dim=1).nonzero()
        if len(zero):
            raise DataError(
                f"{what} has a zero vector in row {_number(zero[0], rows)}: it has no direction, so no cosine "
                "similarity; drop this item or extract the features again"
            )
        return normalised(block)
    return block / norms


def similarity_rows(block: Tensor, what: object, similarity: str, *, rows: Tensor | None = None) -> Tensor:
    """Return the rows in float64 such that their inner products are the ``similarity``: ``"dot"`` or ``"cosine"``.

    ``"dot"`` is the fused kernel itself, so with exact alignment it is C·k_ψ between an image and a text and ranks as
    the cross-modal encoder does; ``"cosine"`` divides by the fused norms, in which the expert takes part.
    """
    if similarity == "cosine":
        return unit_rows(block, what, rows=rows)
    return finite_rows(block, what, rows=rows).double()


def largest(block: Tensor) -> float:
    """Return the largest magnitude in a block that is not empty."""
    low, high = torch.aminmax(block)
    return max(-float(low), float(high))


def check_range(
    size: float, shape: tuple[int, int], dtype: torch.dtype, what: object, *, way_out: str = "scale the embeddings"
) -> None:
    """Check that sums of squares of (n, dim) values up to ``size`` stay within the range of ``dtype``.

    Raises:
        DataError: they overflow, or underflow to zero.
    """
    info = torch.finfo(dtype)
    name = str(dtype).removeprefix("torch.")
    if size * size * shape[0] * shape[1] > info.max:
        raise DataError(f"{what} has values up to {size:.0e}, whose squares overflow {name}; {way_out}")
    if 0 < size * size * info.eps < info.tiny:
        raise DataError(f"{what} has no value above {size:.0e}, so that squares vanish in {name}; {way_out}")


def _number(index: Tensor, rows: Tensor | None) -> int:
    return int(index) if rows is None else int(rows[int(index)])
