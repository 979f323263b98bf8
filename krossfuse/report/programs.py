"""A report as JSON, for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krossfuse.report.board import Board, Column, Row
from krossfuse.report.page import find, report_title
from krossfuse.results.aggregate import MEASURE
from krossfuse.results.index import open_runs
from krossfuse.results.significance import Comparison


def as_text(folders: Sequence[str | Path], baseline: str | int | Sequence[str | int] | None = None) -> str:
    """Return every aggregated measurement of some folders, with its comparisons, as one JSON object.

    Keys: ``runs`` (name, state and error of each), ``notes``, and ``boards``: of a data set and a pair, each with its
    ``rows``, each with its ``measurements``. Values are in the metric's own unit (fractions, not percent), and null
    where there is none; ``comparisons`` stand by the name of the baseline.

    Raises:
        ResultsError: no such folder, no results in it, or a damaged file.
        ConfigError: no such row to compare with.
    """
    with open_runs(folders) as (runs, index):
        found = find(runs, index, title=report_title(folders), baseline=baseline)
        content = {
            "runs": [{"name": run.name, "state": run.state, "error": run.error} for run in found.runs],
            "notes": found.notes,
            "boards": [_board([first, *others]) for first, others in zip(found.made, found.further, strict=True)],
        }
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)


def _board(same: Sequence[Board]) -> dict[str, Any]:
    first = same[0]
    rows = [_row(of_row, same, first.columns) for of_row in zip(*(b.rows for b in same), strict=True)]
    return {"data": first.data, "pair": first.pair, "common": list(first.common), "rows": rows}


def _row(same: Sequence[Row], boards: Sequence[Board], columns: Sequence[Column]) -> dict[str, Any]:
    first = same[0]
    return {
        "label": first.label,
        "fusion": first.fusion,
        "dim": first.dim,
        "numbers": first.numbers,
        "runs": sorted({run.name for cell in first.cells.values() for run, _ in cell["members"]}),
        "measurements": [_measurement(same, boards, column) for column in columns if column.key in first.cells],
    }


def _measurement(same: Sequence[Row], boards: Sequence[Board], column: Column) -> dict[str, Any]:
    cell = same[0].cells[column.key]
    names = ("mean", "low", "high", "interval", "seeds", "n_items", "spread_unknown", "seconds", "config_digest")
    return {
        **{name: value for name, value in zip(MEASURE, column.key, strict=True) if value != ""},
        "better": column.declared.better,
        "unit": column.declared.unit,
        **{name: cell[name] for name in names},
        "comparisons": {
            f"{board.baseline.name} ({board.baseline.dim})": _comparison(row.against[column.key])
            for row, board in zip(same, boards, strict=True)
            if board.baseline and column.key in row.against
        },
    }


def _comparison(made: Comparison) -> dict[str, Any]:
    names = ("difference", "low", "high", "p_value", "verdict", "test", "seeds_needed")
    return {name: getattr(made, name) for name in names}


def _finite(value: Any) -> Any:
    """Return a value with null for every number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    return [_finite(child) for child in value] if isinstance(value, list) else value
