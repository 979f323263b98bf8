"""Several matrices below one another that look like one tensor, and are never joined.

The features of a data set in shards lie in many memory-mapped files. What reads them asks for a slice of rows, or for
some rows by number, and gets a plain tensor of these; every other operation would need the whole and gets it, joined
in memory, if there is memory enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.memory import check_memory

_ATEN: Any = torch.ops.aten


class ShardedRows(Tensor):
    """A tensor (n, dim) over matrices (n_i, dim); made by :func:`below_one_another`."""

    pieces: list[Tensor]
    starts: Tensor

    @staticmethod
    def __new__(cls, pieces: Sequence[Tensor]) -> ShardedRows:  # noqa: D102
        rows = sum(map(len, pieces))
        made: ShardedRows = torch.Tensor._make_wrapper_subclass(
            cls, (rows, pieces[0].shape[1]), dtype=pieces[0].dtype, device=pieces[0].device
        )
        made.pieces = list(pieces)
        made.starts = torch.tensor([0, *map(len, pieces)]).cumsum(0)
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"ShardedRows({tuple(self.shape)} {self.dtype} in {len(self.pieces)} pieces)"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Read rows from the pieces that have them."""
        x = args[0]
        if func is _ATEN.detach.default or func is _ATEN.alias.default:
            return x
        if isinstance(x, cls):
            if func is _ATEN.slice.Tensor and (len(args) < 2 or args[1] == 0) and (len(args) < 5 or args[4] == 1):
                start, stop, _ = slice(*args[2:4]).indices(len(x))
                return x._between(start, max(start, stop))
            if func is _ATEN.select.int and args[1] == 0:
                row = args[2] % len(x)
                return x._between(row, row + 1)[0]
            if func is _ATEN.index.Tensor and len(args[1]) == 1 and args[1][0].ndim == 1:
                return x._rows(args[1][0])
            if func is _ATEN.index_select.default and args[1] == 0:
                return x._rows(args[2])
        return func(*_joined(args), **_joined(kwargs or {}))

    def _between(self, start: int, stop: int) -> Tensor:
        first = int(torch.searchsorted(self.starts, start, right=True)) - 1
        found = []
        for piece, offset in zip(self.pieces[first:], self.starts[first:].tolist(), strict=False):
            if offset >= stop:
                break
            found.append(piece[max(0, start - offset) : stop - offset])
        if not found:
            return self.pieces[0][:0]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _rows(self, rows: Tensor) -> Tensor:
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        rows = rows.cpu()
        rows = torch.where(rows < 0, rows + len(self), rows)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of {len(self)}")
        out = torch.empty(len(rows), self.shape[1], dtype=self.dtype, device=self.device)
        of = torch.searchsorted(self.starts, rows, right=True) - 1
        for piece in torch.unique(of).tolist():
            mine = (of == piece).nonzero().flatten()
            out[mine] = self.pieces[piece][rows[mine] - self.starts[piece]]
        return out


def _joined(value: Any) -> Any:
    if isinstance(value, ShardedRows):
        size = value.numel() * value.element_size()
        check_memory(f"joining {len(value.pieces)} shards of features", size, "read them in blocks of rows")
        return torch.cat(value.pieces)
    if isinstance(value, list | tuple):
        return type(value)(map(_joined, value))
    return {name: _joined(of) for name, of in value.items()} if isinstance(value, dict) else value


def below_one_another(pieces: Sequence[Tensor]) -> Tensor:
    """Return matrices below one another as one tensor, without joining them.

    Args:
        pieces: (n_i, dim) each, of one dtype.

    Returns:
        (Σ n_i, dim): the piece itself where there is one only.

    Raises:
        DataError: there is none, or they differ in dimension or dtype.

    >>> x = below_one_another([torch.zeros(2, 3), torch.ones(4, 3)])
    >>> x.shape, x[1:3].sum(1).tolist(), x[torch.tensor([5, 0])].sum(1).tolist()
    (torch.Size([6, 3]), [0.0, 3.0], [3.0, 0.0])
    """
    kinds = {(piece.shape[1], piece.dtype) for piece in pieces}
    if len(kinds) != 1:
        raise DataError(f"shards of features differ in dimension or dtype: {sorted(map(str, kinds))}")
    return pieces[0] if len(pieces) == 1 else ShardedRows(pieces)
