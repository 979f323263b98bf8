"""Boards: methods against measurements, with comparisons of any two rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from krossfuse.core.errors import ConfigError
from krossfuse.core.metrics import Metric
from krossfuse.report.board import PARENT, Board, Column, Key, Row
from krossfuse.report.labels import Described, describe_method, label_methods, tell_apart
from krossfuse.results.aggregate import CONDITIONS, MEASURE, METHOD, Cell
from krossfuse.results.index import RunIndex
from krossfuse.results.inference import Scores
from krossfuse.results.significance import Comparison, Difference, difference_of, judge


def boards(
    table: pd.DataFrame | Sequence[Cell], baseline: str | int | None = None, index: RunIndex | None = None
) -> list[Board]:
    """Arrange cells (see ``aggregate.cells``) as one board for each dataset and pair.

    Args:
        table: the cells, or the table of ``aggregate.aggregate``.
        baseline: name or number of the row that the others are compared with; None: the cross-modal encoder alone.
        index: that remembers differences; None: they are computed.

    Raises:
        ConfigError: no board has such a row, or one has several.
    """
    made = arranged(table)
    if baseline is None:
        return [compare_with(board, board.parent, index=index) for board in made]
    return with_baseline(made, baseline, index)


def arranged(table: pd.DataFrame | Sequence[Cell]) -> list[Board]:
    """Arrange cells as boards, in which nothing is compared."""
    cells = (
        [Cell(zip(table.columns, cell, strict=True)) for cell in table.itertuples(index=False, name=None)]
        if isinstance(table, pd.DataFrame)
        else table
    )
    by_board: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_board.setdefault((str(cell["data"]), str(cell["pair"])), []).append(cell)
    return [_board(data, pair, own) for (data, pair), own in by_board.items()]


def with_baseline(made: Sequence[Board], baseline: str | int, index: RunIndex | None = None) -> list[Board]:
    """Return the boards, each compared with its row of a name or number; a board without such a row as it is.

    Raises:
        ConfigError: no board has such a row, or one has several.
    """
    if not made:
        return []
    missing: ConfigError | None = None
    compared = []
    for board in made:
        try:
            compared.append(compare_with(board, board.row(baseline), index=index))
        except ConfigError as error:
            if "several rows" in str(error):
                raise
            missing = error
            compared.append(compare_with(board, None))
    if missing and not any(board.baseline for board in compared):
        raise ConfigError(f"baseline={baseline!r}: {missing}")
    return compared


def _board(data: str, pair: str, table: Sequence[Cell]) -> Board:
    methods: dict[Key, Described] = {}
    cells: dict[Key, list[Cell]] = {}
    for cell in table:
        cells.setdefault(tuple(cell[name] for name in METHOD), []).append(cell)
    for key, own in cells.items():
        members = [member for cell in own for member in cell["members"]]
        methods[key] = describe_method(str(own[0]["fusion"]), int(own[0]["dim"]), members)
    common = label_methods(list(methods.values()))
    for keys in _namesakes(methods):
        measures = [_measure(cell) for key in keys for cell in cells[key]]
        # Runs that differ in their probes alone are one method.
        if len(set(measures)) < len(measures):
            tell_apart([methods[key] for key in keys])
    rows: dict[Key, Row] = {}
    for key, method in methods.items():
        row = rows.setdefault(method.identity, Row(method.label, method.fusion, method.dim, method.numbers))
        row.cells.update({_measure(cell): cell for cell in cells[key]})
    return Board(data, pair, columns_of(table), list(rows.values()), tuple(common))


def _measure(cell: Cell) -> Key:
    return tuple(cell[name] for name in MEASURE)


def _namesakes(methods: dict[Key, Described]) -> Iterator[list[Key]]:
    by_name: dict[Key, list[Key]] = {}
    for key, method in methods.items():
        by_name.setdefault(method.identity, []).append(key)
    return (keys for keys in by_name.values() if len(keys) > 1)


def columns_of(table: Iterable[Cell]) -> list[Column]:
    """Return the measurements of some cells, probe by probe; their titles say what tells them apart."""
    declared: dict[Key, Metric] = {}
    for cell in table:
        if (key := _measure(cell)) not in declared:
            declared[key] = cell["members"][0][1].declaration()
    words = [{name: str(value) for name, value in zip(MEASURE, key, strict=True) if value != ""} for key in declared]
    columns = []
    by_probe: dict[str, set[str]] = {}
    for (key, metric), own in zip(declared.items(), words, strict=True):
        varying = _varying(own["probe"], words) if own["probe"] not in by_probe else by_probe[own["probe"]]
        by_probe[own["probe"]] = varying
        title = [own["probe"].replace("_", " ")]
        if own["metric"] != "accuracy":
            title.append(own["metric"].replace("_", " "))
        detail = []
        for name in ("label_set", "modality", *CONDITIONS, "other"):
            if name in own and (name in varying or name == "label_set"):
                prefix = f"{name}=" if name in ("k", "temperature", "shots") else ""
                detail.append(prefix + own[name])
        columns.append(Column(key, " ".join(title) + ("\n" + ", ".join(detail) if detail else ""), metric))
    order = {probe: i for i, probe in enumerate(dict.fromkeys(w["probe"] for w in words))}
    return sorted(columns, key=lambda c: order[c.probe])


def _varying(probe: str, words: Sequence[Mapping[str, str]]) -> set[str]:
    peers = [own for own in words if own["probe"] == probe]
    names = ("modality", "label_set", *CONDITIONS, "other")
    return {name for name in names if len({own.get(name, "") for own in peers}) > 1}


# --- Comparisons ------------------------------------------------------------------------------------------------


def compare_with(
    board: Board, baseline: Row | None, columns: Sequence[Column] | None = None, index: RunIndex | None = None
) -> Board:
    """Return the board with every other row compared with ``baseline``, with Holm's correction in each column.

    Args:
        board: the board.
        baseline: one of its rows; None: nothing is compared.
        columns: that are compared; None: all.
        index: that remembers differences.
    """
    rows = [replace(row, against={}) for row in board.rows]
    if baseline is None:
        return replace(board, rows=rows, baseline=None)
    base = rows[next(i for i, row in enumerate(board.rows) if row is baseline)]
    for column in board.columns if columns is None else columns:
        if not compares(base, column):
            continue
        own = base.cells[column.key]
        scores = functools.cache(functools.partial(own.__getitem__, "scores"))
        others = [row for row in rows if row is not base and column.key in row.cells]
        others = [row for row in others if comparable(row.cells[column.key], own)]
        made = _judged([difference(row.cells[column.key], own, index, scores) for row in others], column)
        for row, comparison in zip(others, made, strict=True):
            if comparison.test != "none":
                row.against[column.key] = comparison
    return replace(board, rows=rows, baseline=base)


def compares(base: Row, column: Column) -> bool:
    """Whether others are compared with a row on a column: it was measured, and does not say it already.

    What compares with the cross-modal encoder by definition says it.
    """
    return column.key in base.cells and not (column.declared.relative and base.fusion == PARENT)


def comparable(a: Cell, b: Cell) -> bool:
    """Whether two cells are on the same items and subsets: other folds, splits or limits are other items."""
    same = a["n_items"] == b["n_items"] and a["items_digest"] == b["items_digest"]
    return bool(same) and not set(a["subsets"]).isdisjoint(b["subsets"])


def difference(a: Cell, b: Cell, index: RunIndex | None, scores: Callable[[], Scores] | None = None) -> Difference:
    """Return the difference of two comparable cells, as the index remembers it or computed.

    Args:
        a: the first.
        b: what is subtracted.
        index: that remembers differences.
        scores: reads those of ``b``; None: they are read from it.
    """

    def compute() -> Difference:
        return difference_of(a["scores"], scores() if scores else b["scores"])

    if index is None:
        return compute()
    key = f"difference {a['scores_digest']} {b['scores_digest']}"
    return index.statistic(key, compute, Difference.from_description, Difference.described)


def _judged(differences: Sequence[Difference], column: Column) -> list[Comparison]:
    """Return the comparisons of a column, with differences as they are and the verdicts that the metric allows."""
    lower = column.declared.better == "lower"
    return [_turned(one, column) for one in judge([-one if lower else one for one in differences])]


def _turned(comparison: Comparison, column: Column) -> Comparison:
    if not column.declared.better and comparison.verdict in ("better", "worse"):
        return replace(comparison, verdict="different")
    if column.declared.better != "lower":
        return comparison
    return replace(comparison, difference=-comparison.difference, low=-comparison.high, high=-comparison.low)
