"""Items' scores as compactly as a page can hold them, so that it compares any two rows as the report does.

What two methods share is their difference item by item, which no statistic of one row alone can tell: a page that knows
the scores of two rows knows the paired interval of their difference. Hits and misses of one seed take a bit an item,
those of several seeds a byte (how many seeds hit), other scores four bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from krossfuse.report.board import Board, Column
from krossfuse.report.boards import comparable
from krossfuse.results.aggregate import Cell
from krossfuse.results.inference import Scores

BUDGET = 4_000_000
"""Bytes of scores in a page; of what is beyond it, differences are not paired there, and the page says so."""

Kind = Literal["bits", "counts", "numbers"]


@dataclass(frozen=True)
class Packed:
    """Scores of one cell, averaged over its seeds: (subsets, items).

    Attributes:
        kind: how ``data`` holds them.
        data: ``bits``: eight to a byte, the first highest; ``counts``: a byte each, the seeds that hit; ``numbers``:
            float32, little end first.
        hits: whether the scores are hits and misses.
    """

    kind: Kind
    data: bytes
    hits: bool


def pack(scores: Scores) -> Packed:
    r"""Pack scores for the page.

    >>> pack(Scores(np.array([[[1.0, 0.0, 1.0]]]))).data
    b'\xa0'
    """
    values = scores.values
    if scores.hits and len(values) < 256:
        counts = values.sum(axis=0).astype(np.uint8)
        if len(values) == 1:
            return Packed("bits", np.packbits(counts.ravel()).tobytes(), True)
        return Packed("counts", counts.tobytes(), True)
    return Packed("numbers", values.mean(axis=0).astype("<f4").tobytes(), scores.hits)


def size_of(cell: Cell) -> int:
    """Return about how many bytes a cell's scores take, without reading them."""
    values: int = max(cell["n_items"], 1) * len(cell["subsets"])
    if not cell["hits"]:
        return 4 * values
    return values if cell["draws"] > 1 else -(-values // 8)


def chosen_columns(board: Board, budget: int) -> tuple[list[Column], int]:
    """Return the columns of a board whose scores a page has room for, the main ones first, and the bytes left."""
    primary = board.primary()
    rest = [column for column in board.columns if column not in primary]
    chosen = []
    for column in [*primary, *rest]:
        cells = [row.cells[column.key] for row in board.rows if column.key in row.cells]
        if len(cells) < 2 or not any(comparable(cells[0], other) for other in cells[1:]):
            continue
        size = sum(map(size_of, cells))
        if size <= budget:
            budget -= size
            chosen.append(column)
    return chosen, budget


def joined(packed: Sequence[Packed]) -> tuple[bytes, list[int]]:
    """Return all scores in one piece, and where each begins."""
    offsets, length = [], 0
    for one in packed:
        offsets.append(length)
        length += len(one.data)
    return b"".join(one.data for one in packed), offsets
