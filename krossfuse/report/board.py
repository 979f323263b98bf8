"""What a board is: methods by row, measurements by column, and how a row is found by its name."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from krossfuse.core.errors import ConfigError, did_you_mean
from krossfuse.core.metrics import Metric
from krossfuse.results.aggregate import MEASURE, Cell
from krossfuse.results.significance import Comparison

PARENT = "cross_modal"
"""Name of the method that the others are compared with unless another is asked for: the cross-modal encoder alone."""

PRIMARY = ("accuracy", "map", "recall@1", "recall@10", "nmi", "agreement", "zero_shot_agreement", "spearman")
"""Metrics that the terminal's table shows, in this order; a probe that has none of them shows its first."""

PRIMARY_OF = {"clustering": ("nmi",), "retrieval": ("recall@1", "recall@10")}
"""The same for probes that would show too many."""

Key = tuple[Any, ...]
"""Values of the columns ``MEASURE`` of an aggregate."""


@dataclass(frozen=True)
class Column:
    """One measurement: what a column of the table holds. ``title`` names it within its table."""

    key: Key
    title: str
    declared: Metric

    @property
    def probe(self) -> str:
        """The probe's name."""
        return str(self.key[0])

    @property
    def metric(self) -> str:
        """The metric's name."""
        return str(self.key[1])

    @property
    def measure(self) -> dict[str, Any]:
        """The key by the names of ``MEASURE``."""
        return dict(zip(MEASURE, self.key, strict=True))

    @property
    def name(self) -> str:
        """The title on one line."""
        return self.title.replace("\n", ", ")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        label: its name for readers, with the options in words that set it apart from the other rows.
        fusion: its name in the configuration.
        dim: of its embedding.
        numbers: the options that are numbers and set it apart, as text (a range where one was selected run by run).
        cells: by column, the row of the aggregate (see ``aggregate.aggregate``).
        against: by column, the comparison with the board's baseline.
    """

    label: str
    fusion: str
    dim: int
    numbers: dict[str, str] = field(default_factory=dict)
    cells: dict[Key, Cell] = field(default_factory=dict)
    against: dict[Key, Comparison] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label with the numbers: what stands where there are no columns for them."""
        return ", ".join([self.label, *(f"{key}={text}" for key, text in self.numbers.items())])

    def option(self, key: str) -> str:
        """Return what the method's description says of an option; empty where it says nothing."""
        described = (r.fusion_config.get(key) for cell in self.cells.values() for _, r in cell["members"])
        # What a fit chose is a list where it was made once a fold.
        values = dict.fromkeys(v for value in described for v in (value if isinstance(value, list) else [value]))
        texts = [v for v in values if v not in (None, "")]
        if len(texts) > 1 and all(isinstance(v, (int, float)) for v in texts):
            return f"{min(texts):g}–{max(texts):g}"
        return "/".join(f"{v:g}" if isinstance(v, float) else str(v) for v in texts)


@dataclass(frozen=True)
class Board:
    """Methods against measurements for one dataset and one pair of encoders.

    ``common`` is what all rows that have a choice there share (sketch, kernel), and so is in no row's label;
    ``baseline`` is the row that the others are compared with; ``part`` says which rows these are, where not all.
    """

    data: str
    pair: str
    columns: list[Column]
    rows: list[Row]
    common: tuple[str, ...] = ()
    baseline: Row | None = None
    part: str = ""

    @property
    def title(self) -> str:
        """Dataset, pair, what the rows share, and which of the rows they are."""
        return " · ".join(part for part in (self.data, self.pair, *self.common, self.part) if part)

    def best_rows(self, most: int) -> Board:
        """Return the board with no more than ``most`` rows where it has more: its baseline, and the best by
        :meth:`leading`, in the order that they had.
        """
        if len(self.rows) <= most:
            return self
        leading = self.leading()
        sign = -1 if leading.declared.better == "lower" else 1

        def rank(row: Row) -> tuple[bool, bool, float]:
            there = leading.key in row.cells
            return row is self.baseline, there, sign * row.cells[leading.key]["mean"] if there else 0.0

        kept = {id(row) for row in sorted(self.rows, key=rank, reverse=True)[:most]}
        text = f"the best {most} of {len(self.rows)} rows in {leading.name}"
        return replace(self, rows=[row for row in self.rows if id(row) in kept], part=text)

    def leading(self) -> Column:
        """Return the measurement that rows are ranked by unless another is asked for: the table's first."""
        return (self.primary() or self.columns)[0]

    @property
    def few_shot(self) -> list[Column]:
        """The columns that have a number of shots."""
        return [column for column in self.columns if is_few_shot(column)]

    @property
    def parent(self) -> Row | None:
        """The cross-modal encoder alone, if it was measured."""
        return next((row for row in self.rows if row.fusion == PARENT), None)

    @functools.cached_property
    def numbers(self) -> list[str]:
        """The options that are numbers and tell rows apart, in the order of the rows."""
        return list(dict.fromkeys(key for row in self.rows for key in row.numbers))

    @functools.cached_property
    def _best(self) -> dict[Key, float]:
        best: dict[Key, float] = {}
        lower = {column.key for column in self.columns if column.declared.better == "lower"}
        for row in self.rows:
            for key, cell in row.cells.items():
                best[key] = (min if key in lower else max)(cell["mean"], best.get(key, cell["mean"]))
        return best

    def best(self, column: Column) -> float:
        """Return the best mean of a column."""
        return self._best[column.key]

    def primary(self) -> list[Column]:
        """Return the columns that the terminal's table shows.

        The primary metrics of every probe but few-shot (of a probe that has none of them, its first), under the first
        prompt set of each label set.
        """
        probes = list(dict.fromkeys(column.probe for column in self.columns))
        chosen: list[Column] = []
        for probe in probes:
            mine = [c for c in self.columns if c.probe == probe and not is_few_shot(c)]
            main = [c for c in mine if c.metric in PRIMARY_OF.get(probe, PRIMARY)] or mine[:1]
            firsts: dict[Key, str] = {}
            for column in main:
                measure = column.measure
                key = (column.metric, measure["label_set"], measure["modality"])
                if measure["prompt_set"] == firsts.setdefault(key, measure["prompt_set"]):
                    chosen.append(column)
        rank = {metric: i for i, metric in enumerate(PRIMARY)}
        return sorted(chosen, key=lambda c: (probes.index(c.probe), rank.get(c.metric, 0)))

    def row(self, name: str | int) -> Row:
        """Return a row by its number, counted from 1, or by its name.

        A name is a label, with or without the options that are numbers (``"RP-KrossFuse, exact, C=1"``) and the
        dimension (``"RP-KrossFuse, exact (768)"``), whatever its case; or the fusion's name in the configuration.

        Raises:
            ConfigError: there is none, or there are several; the message lists the rows with their numbers.
        """
        if str(name).strip().isdigit():
            number = int(str(name))
            if 1 <= number <= len(self.rows):
                return self.rows[number - 1]
            raise ConfigError(f"{self.data} has no row {number}; {self._listed(self.rows)}")
        wanted = str(name).strip().casefold()
        for names in (_exact_names, lambda row: [row.label, row.name], lambda row: [row.fusion]):
            rows = [row for row in self.rows if wanted in {text.casefold() for text in names(row)}]
            if len(rows) == 1:
                return rows[0]
            if rows:
                raise ConfigError(f"{name!r} is several rows of {self.data}; say which by number: {self._listed(rows)}")
        near = did_you_mean(str(name), [row.label for row in self.rows])
        raise ConfigError(f"{self.data} has no row {name!r}{near}; {self._listed(self.rows)}")

    def _listed(self, rows: Sequence[Row]) -> str:
        return "; ".join(f"{self.rows.index(row) + 1}: {row.name} ({row.dim})" for row in rows)


def _exact_names(row: Row) -> list[str]:
    return [f"{row.label} ({row.dim})", f"{row.name} ({row.dim})"]


def is_few_shot(column: Column) -> bool:
    """Whether a column has a number of shots, and so belongs to the few-shot table."""
    return bool(column.measure["shots"] != "")
