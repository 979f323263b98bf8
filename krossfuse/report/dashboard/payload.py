"""What a page knows of a sweep, column by column, so that ten thousand rows fit a few megabytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from krossfuse.report.board import Board, Column, Row
from krossfuse.report.boards import columns_of
from krossfuse.report.cells import notes_for
from krossfuse.report.dashboard.heat import heat_maps
from krossfuse.report.dashboard.packing import BUDGET, Packed, chosen_columns, joined, pack
from krossfuse.report.dashboard.texts import Texts, config_lines, method_lines, protocol_lines
from krossfuse.report.pictures.trade import paired_columns
from krossfuse.results.aggregate import Cell
from krossfuse.results.inference import LEVEL
from krossfuse.results.runs import Run

VERDICTS = ("no difference shown", "better", "worse", "different")
MOST_UNFINISHED = 200
"""Runs that failed or did not finish, of which a page says why."""


@dataclass(frozen=True)
class Payload:
    """What the page reads: ``data`` is JSON-able, ``scores`` are the items' of :mod:`packing`."""

    data: dict[str, Any]
    scores: bytes


def payload(
    title: str,
    runs: Sequence[Run],
    made: Sequence[Board],
    notes: Sequence[str],
    further: Sequence[Sequence[Board]] = (),
) -> Payload:
    """Return what a page shows of some boards.

    Args:
        title: of the page.
        runs: all of them, finished or not.
        made: their boards, compared with their baselines.
        notes: warnings.
        further: of each board, the same compared with other baselines.
    """
    measures = columns_of(cell for board in made for row in board.rows for cell in row.cells.values())
    number = {column.key: i for i, column in enumerate(measures)}
    texts = Texts()
    rows = [(place, row) for place, board in enumerate(made) for row in board.rows]
    cells = [(i, number[key], cell) for i, (_, row) in enumerate(rows) for key, cell in row.cells.items()]
    packed, scores = _scores(made, rows, cells, number)
    data = {
        "title": title,
        "level": LEVEL,
        "runs": {state: sum(run.state == state for run in runs) for state in ("finished", "failed", "unfinished")},
        "unfinished": [[r.name, r.state, r.error[:500]] for r in runs if r.state != "finished"][:MOST_UNFINISHED],
        "notes": list(notes),
        "boards": [
            {"data": b.data, "pair": b.pair, "common": list(b.common), "notes": notes_for(b, b.primary())} for b in made
        ],
        "measures": [_measure(column, made) for column in measures],
        "trades": _trades(made, number),
        "rows": _rows(rows, texts),
        "cells": {**_cells(cells, texts), **packed},
        "compared": _compared(made, further, cells),
        "kernels": heat_maps(made, {id(row): i for i, (_, row) in enumerate(rows)}),
    }
    return Payload({**data, "texts": texts.all}, scores)


def _measure(column: Column, made: Sequence[Board]) -> dict[str, Any]:
    metric = column.declared
    return {
        **{name: str(value) for name, value in column.measure.items()},
        "title": column.name,
        "percent": metric.percent,
        "unit": "%" if metric.percent else metric.unit,
        "better": metric.better,
        "relative": metric.relative,
        "primary": any(column.key == other.key for board in made for other in board.primary()),
    }


def _trades(made: Sequence[Board], number: dict[Any, int]) -> list[list[int]]:
    """Return the pairs of measurements (linear probe, zero-shot) that are set against each other."""
    pairs = {(number[a.key], number[b.key]): None for board in made for a, b in paired_columns(board)}
    return [list(pair) for pair in pairs]


def _rows(rows: Sequence[tuple[int, Row]], texts: Texts) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in _ROW}
    for place, row in rows:
        members = [member for cell in row.cells.values() for member in cell["members"]]
        first = members[0][0]
        values = (
            place,
            texts.number(row.label),
            texts.number(row.fusion),
            row.dim,
            dict(row.numbers),
            members[0][1].method_digest or members[0][1].config_digest,
            " ".join(dict.fromkeys(run.name for run, _ in members)),
            texts.lines(config_lines(first.config_text)),
            texts.lines(method_lines(members)),
            texts.lines(f"{name} {version}" for name, version in members[0][1].versions.items()),
        )
        for name, value in zip(_ROW, values, strict=True):
            columns[name].append(value)
    return columns


_ROW = ("board", "label", "fusion", "dim", "numbers", "digest", "runs", "config", "method", "versions")


def _cells(cells: Sequence[tuple[int, int, Cell]], texts: Texts) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in _CELL}
    groups: dict[Any, int] = {}
    for row, measure, cell in cells:
        spread = cell["spread"]
        group = (cell["items_digest"], cell["n_items"], cell["subsets"])
        values = (
            row,
            measure,
            _exact(cell["mean"]),
            _short(cell["low"]),
            _short(cell["high"]),
            texts.number(cell["interval"]),
            int(cell["spread_unknown"]),
            " ".join(map(str, cell["seeds"])),
            cell["draws"],
            len(cell["subsets"]),
            cell["n_items"],
            groups.setdefault(group, len(groups)),
            _short(cell["seconds"]),
            _short(spread["items"]),
            [_part(spread["parts"].get(name)) for name in ("seeds", "subsets")],
            texts.lines(protocol_lines(cell["members"])),
        )
        for name, value in zip(_CELL, values, strict=True):
            columns[name].append(value)
    return columns


_CELL = (
    *("row", "measure", "mean", "low", "high", "interval", "unknown", "seeds", "draws", "subsets", "items", "group"),
    *("seconds", "variance", "parts", "protocol"),
)


def _part(part: dict[str, Any] | None) -> list[Any] | None:
    return None if part is None else [_short(part["variance"]), _short(part["residual"]), part["draws"]]


def _scores(
    made: Sequence[Board],
    rows: Sequence[tuple[int, Row]],
    cells: Sequence[tuple[int, int, Cell]],
    number: dict[Any, int],
) -> tuple[dict[str, list[Any]], bytes]:
    """Return, by cell, how its items' scores are packed and where (-1: not there), and the scores."""
    budget = BUDGET
    wanted: set[tuple[int, int]] = set()
    for place, board in enumerate(made):
        chosen, budget = chosen_columns(board, budget)
        wanted |= {(place, number[column.key]) for column in chosen}
    kinds: list[str] = []
    offsets: list[int] = []
    packed: list[Packed] = []
    for row, measure, cell in cells:
        if (rows[row][0], measure) not in wanted:
            kinds.append("")
            offsets.append(-1)
            continue
        one = pack(cell["scores"])
        kinds.append(one.kind)
        offsets.append(len(packed))
        packed.append(one)
    data, starts = joined(packed)
    return {
        "packed": kinds,
        "offset": [-1 if place < 0 else starts[place] for place in offsets],
        "hits": [int(cell["hits"]) for _, _, cell in cells],
    }, data


def _compared(
    made: Sequence[Board], further: Sequence[Sequence[Board]], cells: Sequence[tuple[int, int, Cell]]
) -> list[dict[str, Any]]:
    """Return the comparisons that were made here, paired whatever a page has room for: one entry a baseline."""
    place = {id(cell): i for i, (_, _, cell) in enumerate(cells)}
    rounds = [list(made), *(list(boards) for boards in zip(*further, strict=True) if further)]
    entries = []
    for boards in rounds:
        starts, start = [], 0
        for board in boards:
            starts.append(start)
            start += len(board.rows)
        base = [
            next((start + i for i, row in enumerate(board.rows) if row is board.baseline), -1) if board.baseline else -1
            for board, start in zip(boards, starts, strict=True)
        ]
        columns: dict[str, list[Any]] = {name: [] for name in ("cell", "difference", "low", "high", "p", "verdict")}
        for row in (row for board in boards for row in board.rows):
            for key, comparison in row.against.items():
                columns["cell"].append(place[id(row.cells[key])])
                columns["difference"].append(_exact(comparison.difference))
                columns["low"].append(_short(comparison.low))
                columns["high"].append(_short(comparison.high))
                columns["p"].append(_short(comparison.p_value))
                columns["verdict"].append(VERDICTS.index(comparison.verdict))
        if any(row >= 0 for row in base):
            entries.append({"base": base, **columns})
    return entries


def _exact(value: float) -> float | None:
    """Return a number as it is, so that the page rounds it as the tables do; None for NaN."""
    return value if math.isfinite(value) else None


def _short(value: float) -> float | None:
    """Return a number with as many digits as an interval needs; None for NaN."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
