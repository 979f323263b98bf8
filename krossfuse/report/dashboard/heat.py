"""Kernel matrices small enough for a page: a sample of the items, eight bits a value."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krossfuse.report.board import Board, Row
from krossfuse.results.snapshot import KernelSnapshot, load_snapshot

MOST_ITEMS = 64
"""Rows of a matrix in a page."""

MOST_ROWS = 40
"""Rows of all boards that a page has matrices of: the best in the leading measurement."""


def heat_maps(made: Sequence[Board], numbers: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return the kernel matrices of the best rows that have any, for the page.

    Args:
        made: the boards.
        numbers: of the rows, by ``id``.

    Raises:
        ResultsError: a file of matrices is damaged.
    """
    maps: list[dict[str, Any]] = []
    most = max(1, MOST_ROWS // max(1, len(made)))
    for board in made:
        found = 0
        for row in _best_first(board):
            if found == most:
                break
            if (snapshot := _snapshot(row)) is not None:
                found += 1
                maps.append({"row": numbers[id(row)], **heat_map(snapshot)})
    return maps


def heat_map(snapshot: KernelSnapshot) -> dict[str, Any]:
    """Return the matrices of a snapshot: the items' classes, and by kernel base64 of bytes from low to high."""
    n = len(snapshot.labels)
    kept = np.unique(np.linspace(0, n - 1, min(n, MOST_ITEMS)).round().astype(int))
    matrices = {name: matrix[np.ix_(kept, kept)].astype(np.float64) for name, matrix in snapshot.kernels.items()}
    off = ~np.eye(len(kept), dtype=bool)
    values = np.concatenate([matrix[off] for matrix in matrices.values()] or [np.zeros(1)])
    # The diagonal would take most of the scale.
    low, high = (float(np.quantile(values, q)) for q in (0.01, 0.99)) if values.size else (0.0, 1.0)
    return {
        "label_set": snapshot.label_set,
        "classes": [snapshot.classes[label] for label in snapshot.labels[kept]],
        "of": n,
        "low": low,
        "high": high,
        "kernels": {name: _bytes(matrix, low, high) for name, matrix in matrices.items()},
    }


def _bytes(matrix: NDArray[np.float64], low: float, high: float) -> str:
    scaled = (matrix - low) / (high - low if high > low else 1.0) * 255
    return base64.b64encode(scaled.clip(0, 255).round().astype(np.uint8).tobytes()).decode()


def _best_first(board: Board) -> list[Row]:
    leading = board.leading()
    sign = -1 if leading.declared.better == "lower" else 1
    there = [row for row in board.rows if leading.key in row.cells]
    rest = [row for row in board.rows if leading.key not in row.cells]
    return sorted(there, key=lambda row: -sign * row.cells[leading.key]["mean"]) + rest


def _snapshot(row: Row) -> KernelSnapshot | None:
    folders = dict.fromkeys(run.folder for cell in row.cells.values() for run, _ in cell["members"])
    for folder in folders:
        if (snapshot := load_snapshot(folder)) is not None:
            return snapshot
    return None
