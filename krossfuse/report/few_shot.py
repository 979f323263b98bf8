"""Few-shot accuracies in the form of the paper's table 3."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from krossfuse.report.board import Board, Column, Key, Row
from krossfuse.report.cells import cell_text


def few_shot_table(boards: Sequence[Board]) -> pd.DataFrame:
    """Return few-shot accuracies in the form of the paper's table 3.

    Rows: shots, method and form of training (:class:`~krossfuse.probes.FewShot`); columns: datasets, with the
    pair and label set where one dataset has several. Cells are texts: mean ± half width in percent.
    """
    rows: dict[Key, dict[str, str]] = {}
    several_pairs = len({board.pair for board in boards}) > 1
    for board in boards:
        sets = {column.measure["label_set"] for column in board.few_shot}
        for column in board.few_shot:
            measure = column.measure
            if column.metric != "accuracy":
                continue
            parts = (
                board.data,
                board.pair if several_pairs else "",
                measure["label_set"] if len(sets) > 1 else "",
            )
            name = " ".join(part for part in parts if part)
            labels = short_labels(board, column)
            for row in board.rows:
                if column.key in row.cells:
                    key = (measure["shots"], labels[id(row)], measure["form"] or measure["modality"])
                    rows.setdefault(key, {})[name] = cell_text(row, column)[0]
    order = {label: i for i, label in enumerate(dict.fromkeys(key[1] for key in rows))}
    index = sorted(rows, key=lambda key: (float(key[0]), order[key[1]], str(key[2])))
    table = pd.DataFrame([rows[key] for key in index])
    table.insert(0, "training", [key[2] for key in index])
    table.insert(0, "method", [key[1] for key in index])
    table.insert(0, "shots", [key[0] for key in index])
    return table.fillna("–")


def short_label(board: Board, row: Row, column: Column) -> str:
    """Return a row's name with its numbers, and its dimension where only that tells it from another of a column."""
    return short_labels(board, column)[id(row)]


def short_labels(board: Board, column: Column) -> dict[int, str]:
    """Return :func:`short_label` of every row of a board, by its ``id``."""
    dims: dict[str, set[int]] = {}
    for row in board.rows:
        if column.key in row.cells:
            dims.setdefault(row.name, set()).add(row.dim)
    return {
        id(row): f"{row.name}, {row.dim} dims" if len(dims.get(row.name, ())) > 1 else row.name for row in board.rows
    }
