"""What stands in a cell of a table, and the notes that say how to read it.

A cell is the mean in the metric's unit, the half width of its 95% interval, a mark that says over what the interval was
taken, and the difference to the baseline with its verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from krossfuse.report.board import PARENT, Board, Column, Row, is_few_shot
from krossfuse.report.values import format_difference, format_value
from krossfuse.results.significance import Verdict, compare, holm

VERDICT_MARK: dict[Verdict, str] = {"better": "▲", "worse": "▼", "different": "≠", "no difference shown": "≈"}
ITEMS_MARK, UNKNOWN_MARK = "*", "†"
ZERO_SHOT = "zero_shot_accuracy"
"""Metric of a probe that starts from zero-shot decisions: their accuracy, on the same items."""
MOST_LISTED = 24
"""Rows that a note lists differences of."""
MOST_HINTS = 3
"""Rows that a note says more seeds of."""


def is_best(board: Board, row: Row, column: Column) -> bool:
    """Whether a row's mean is the best of its column; none is where the metric has no better direction."""
    if column.key not in row.cells or not column.declared.better:
        return False
    return abs(float(row.cells[column.key]["mean"]) - board.best(column)) <= 1e-12


def interval_mark(cell: Mapping[str, Any]) -> str:
    """Return the mark of an interval that is over test items alone."""
    if cell["interval"] == "none":
        return ""
    if cell["spread_unknown"]:
        return UNKNOWN_MARK
    return ITEMS_MARK if cell["interval"] == "items" else ""


def cell_text(row: Row, column: Column) -> tuple[str, str]:
    """Return the value with its interval, and the difference to the baseline with its mark (each may be empty)."""
    if column.key not in row.cells:
        return "–", ""
    cell = row.cells[column.key]
    value = format_value(column.declared, cell["mean"], cell["half_width"], interval_mark(cell))
    comparison = row.against.get(column.key)
    if comparison is None:
        return value, ""
    return value, f"{format_difference(column.declared, comparison.difference)} {VERDICT_MARK[comparison.verdict]}"


def row_names(board: Board, row: Row) -> list[str]:
    """Return the first cells of a row: its label, its dimension, and its options that are numbers."""
    return [row.label, str(row.dim), *(row.numbers.get(key, "") for key in board.numbers)]


def notes_for(board: Board, columns: Sequence[Column]) -> list[str]:
    """Say what the intervals, marks and units of some columns mean, and where more seeds would decide."""
    cells = [row.cells[c.key] for row in board.rows for c in columns if c.key in row.cells]
    notes = []
    if spans := _spans(cells, columns):
        notes.append("± half width of the 95% interval: " + "; ".join(spans))
    if any(cell["spread_unknown"] and cell["interval"] != "none" for cell in cells):
        notes.append(
            f"{UNKNOWN_MARK} one seed of a method that depends on it: its spread over seeds is unknown and not in the"
            " interval nor in the verdict (seed=0,1,2 runs three)"
        )
    if board.baseline and any(c.key in row.against for row in board.rows for c in columns):
        marks = "▲ better, ▼ worse, ≈ no difference shown"
        if any(not c.declared.better and c.key in row.against for row in board.rows for c in columns):
            marks = "▲ better, ▼ worse, ≠ different (neither is better), ≈ no difference shown"
        notes.append(
            f"Difference to {baseline_name(board)}: {marks} (95%, paired on the same test items, Holm over the rows)"
        )
        notes += _more_seeds(board, columns)
    notes += _against_zero_shot(board, columns)
    if any(column.declared.percent for column in columns):
        notes.append("Accuracies, recalls and the like in percent; best mean of a column in bold")
    return notes


def baseline_name(board: Board) -> str:
    """Return what a note calls the baseline."""
    base = board.baseline
    assert base is not None
    if base.fusion == PARENT:
        return base.label[:1].lower() + base.label[1:]
    several = sum(row.label == base.label for row in board.rows) > 1
    return f"{base.name} ({base.dim})" if several else base.label


def _spans(cells: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[str]:
    few_shot = all(map(is_few_shot, columns))
    spans = {}
    for kind in dict.fromkeys(cell["interval"] for cell in cells if cell["interval"] != "none"):
        mine = [cell for cell in cells if cell["interval"] == kind]
        parts = []
        if "seeds" in kind:
            parts.append(f"{_counts(cell['draws'] for cell in mine)} seeds")
        if "subsets" in kind:
            what = "few-shot subsets" if few_shot else "subsets, folds or starts"
            parts.append(f"{_counts(len(cell['subsets']) for cell in mine)} {what}")
        if "items" in kind:
            parts.append(f"{_counts(cell['n_items'] for cell in mine)} test items")
        spans[kind] = ("* over " if kind == "items" else "over ") + " and ".join(parts)
    return list(spans.values())


def _more_seeds(board: Board, columns: Sequence[Column]) -> list[str]:
    """Say which differences more seeds would show, the fewest first."""
    hints = []
    for row in board.rows:
        for column in columns:
            comparison = row.against.get(column.key)
            if comparison is None or not comparison.seeds_needed:
                continue
            more = comparison.seeds_needed - max(comparison.n_seeds)
            if more > 0:
                shown = format_difference(column.declared, comparison.difference)
                hints.append((more, f"{more} for {shown} of {row.name} ({row.dim}) in {column.name}"))
    if not hints:
        return []
    hints.sort(key=lambda hint: hint[0])
    rest = f", and so on for {len(hints) - MOST_HINTS} more" if len(hints) > MOST_HINTS else ""
    return [
        "More seeds would be needed to show a difference, if it stays as it is: "
        + "; ".join(text for _, text in hints[:MOST_HINTS])
        + rest
    ]


def _against_zero_shot(board: Board, columns: Sequence[Column]) -> list[str]:
    """Say what a probe that starts from zero-shot makes of it: a row's accuracy against its own before."""
    notes = []
    by_key = {column.key: column for column in board.columns}
    for column in (c for c in columns if c.metric == "accuracy"):
        before = by_key.get((column.key[0], ZERO_SHOT, *column.key[2:]))
        rows = [r for r in board.rows if before and {column.key, before.key} <= r.cells.keys()]
        if before is None or not rows:
            continue
        if len(rows) > MOST_LISTED:
            notes.append(
                f"{column.name}: differences of {len(rows)} rows to their own zero-shot decisions are not listed"
            )
            continue
        made = [compare(row.cells[column.key]["scores"], row.cells[before.key]["scores"]) for row in rows]
        texts = []
        for row, comparison, p in zip(rows, made, holm([one.p_value for one in made]), strict=True):
            verdict = comparison.verdict if p <= 1 - comparison.level else "no difference shown"
            difference = format_difference(column.declared, comparison.difference)
            texts.append(f"{difference} {VERDICT_MARK[verdict]} {row.name} ({row.dim})")
        notes.append(f"{column.name}: difference to the row's own zero-shot decisions: {'; '.join(texts)}")
    return notes


def _counts(numbers: Iterable[int]) -> str:
    low, *rest = sorted({int(n) for n in numbers})
    return f"{low}–{rest[-1]}" if rest else f"{low}"
