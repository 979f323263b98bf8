"""One row against all others: a table of differences alone, for baselines beside the one in the main table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from krossfuse.report.board import Board, Column
from krossfuse.report.cells import VERDICT_MARK, baseline_name, row_names
from krossfuse.report.values import format_difference, scale
from krossfuse.results.significance import Comparison


@dataclass(frozen=True)
class Differences:
    """The differences of a board's rows to its baseline.

    Attributes:
        title: what is subtracted from what.
        heads: of the first cells of a row.
        columns: the measurements, those alone that are compared.
        rows: of each row that is compared its first cells, and by column the text and the comparison (None: not made).
    """

    title: str
    heads: list[str]
    columns: list[Column]
    rows: list[tuple[list[str], list[tuple[str, Comparison | None]]]]


def differences(board: Board, columns: Sequence[Column] | None = None) -> Differences | None:
    """Return the differences to the board's baseline; None where nothing is compared with it."""
    columns = board.primary() if columns is None else columns
    shown = [column for column in columns if any(column.key in row.against for row in board.rows)]
    if board.baseline is None or not shown:
        return None
    rows = []
    for row in board.rows:
        compared = [(column, row.against.get(column.key)) for column in shown]
        if any(comparison is not None for _, comparison in compared):
            cells = [(difference_text(c, comparison) if comparison else "–", comparison) for c, comparison in compared]
            rows.append((row_names(board, row), cells))
    title = f"{board.data} · {board.pair}: difference to {baseline_name(board)}"
    return Differences(title, ["method", "dim", *board.numbers], shown, rows)


def difference_text(column: Column, comparison: Comparison) -> str:
    """Return a difference with half the width of its interval, and its verdict's mark."""
    half = (comparison.high - comparison.low) / 2 * scale(column.declared)
    text = format_difference(column.declared, comparison.difference)
    decimals = len(text.partition(".")[2])
    return f"{text} ±{half:.{decimals}f} {VERDICT_MARK[comparison.verdict]}"
