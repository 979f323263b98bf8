"""Tables of aggregated figures: the one printed at a run's end, the few-shot one, and their CSV and markdown forms.

A cell is the mean in percent (or in the metric's own unit), the half width of its 95% interval, a mark that says over
what the interval was taken, and the difference to the cross-modal encoder alone with its verdict.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from krossfuse.results.aggregate import CONDITIONS, MEASURE, METHOD, SUBSET
from krossfuse.results.significance import Comparison, Verdict, compare_all

PARENT = "cross_modal"
"""Name of the method that the others are compared with: the cross-modal encoder alone."""

DISPLAY = {
    "cross_modal": "Cross-modal alone",
    "image_expert": "Image expert alone",
    "text_expert": "Text expert alone",
    "concatenation": "Concatenation",
    "pca_concatenation": "PCA of concatenation",
    "rff_concatenation": "RFF of concatenation",
    "average_kernel": "Average of kernels",
    "cca": "CCA",
    "exact_krossfuse": "KrossFuse, no sketch",
    "rp_krossfuse": "RP-KrossFuse",
    "spectral_krossfuse": "RP-KrossFuse",
    "released_code": "RP-KrossFuse, released code",
    "unimodal_krossfuse": "KrossFuse of experts",
    "gate": "GATE",
    "attn": "ATTN",
    "comm": "COMM",
}

PRIMARY = ("accuracy", "map", "recall@1", "recall@10", "nmi", "agreement", "zero_shot_agreement", "spearman")
"""Metrics that the terminal's table shows, in this order; a probe that has none of them shows its first."""

PRIMARY_OF = {"clustering": ("nmi",), "retrieval": ("recall@1", "recall@10")}
"""The same for probes that would show too many."""

PERCENT = {"accuracy", "recall", "map", "nmi", "ami", "ari", "agreement", "f1"}
LOWER_IS_BETTER = ("median_rank", "error", "rmse")
KEEPS_PARENT = {"agreement", "zero_shot_agreement", "spearman", "modality_gap"}
"""Metrics that compare with the cross-modal encoder by definition, so that a difference to it says nothing."""

INTERVAL_MARK = {"subsets": "", "seeds": "", "items": "*", "none": ""}
VERDICT_MARK: dict[Verdict, str] = {"better": "▲", "worse": "▼", "no difference shown": "≈"}
VERDICT_STYLE: dict[Verdict, str] = {"better": "green", "worse": "red", "no difference shown": "dim"}
RESAMPLES = 2000


def display_name(name: str) -> str:
    """Return a method's name for readers; a name that is not known stays as it is configured."""
    return DISPLAY.get(name, name)


def is_percent(metric: str) -> bool:
    """Whether a metric is a fraction that is shown in percent."""
    return not PERCENT.isdisjoint(metric.replace("@", "_").split("_"))


def lower_is_better(metric: str) -> bool:
    """Whether less of the metric is better."""
    return metric.startswith(LOWER_IS_BETTER)


def format_value(metric: str, value: float, half_width: float = float("nan"), mark: str = "") -> str:
    """Write a value with its interval in the metric's unit.

    >>> format_value("accuracy", 0.6124, 0.0081)
    '61.2 ±0.8'
    >>> format_value("median_rank", 3.0)
    '3.00'
    """
    scale, digits = (100, 1) if is_percent(metric) else (1, 2)
    text = f"{value * scale:.{digits}f}"
    return text if pd.isna(half_width) else f"{text} ±{half_width * scale:.{digits}f}{mark}"


Key = tuple[Any, ...]
"""Values of the columns ``MEASURE`` of an aggregate."""


@dataclass(frozen=True)
class Column:
    """One measurement: what a column of the table holds. ``title`` names it within its table."""

    key: Key
    title: str

    @property
    def probe(self) -> str:
        """The probe's name."""
        return str(self.key[0])

    @property
    def metric(self) -> str:
        """The metric's name."""
        return str(self.key[1])

    @property
    def told(self) -> dict[str, Any]:
        """The key by the names of ``MEASURE``."""
        return dict(zip(MEASURE, self.key, strict=True))


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        label: its name for readers, with what sets it apart from the other rows.
        fusion: its name in the configuration.
        dim: of its embedding.
        constant: C as text, a range where it was selected run by run, empty where it has none.
        cells: by column, the row of the aggregate (see ``aggregate.aggregate``).
        against_parent: by column, the comparison with the cross-modal encoder alone.
    """

    label: str
    fusion: str
    dim: int
    constant: str
    cells: dict[Key, pd.Series[Any]] = field(default_factory=dict)
    against_parent: dict[Key, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """Methods against measurements for one dataset and one pair of encoders.

    ``common`` is what all rows that have a choice there share (sketch, kernel), and so is in no row's label.
    """

    data: str
    pair: str
    columns: list[Column]
    rows: list[Row]
    common: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Dataset, pair, and what the rows share."""
        return " · ".join((self.data, self.pair, *self.common))

    @property
    def few_shot(self) -> list[Column]:
        """The columns that have a number of shots."""
        return [column for column in self.columns if is_few_shot(column)]

    @property
    def parent(self) -> Row | None:
        """The cross-modal encoder alone, if it was measured."""
        return next((row for row in self.rows if row.fusion == PARENT), None)

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
                told = column.told
                first = firsts.setdefault((column.metric, told["label_set"], told["modality"]), told["prompt_set"])
                if told["prompt_set"] == first:
                    chosen.append(column)
        rank = {metric: i for i, metric in enumerate(PRIMARY)}
        return sorted(chosen, key=lambda c: (probes.index(c.probe), rank.get(c.metric, 0)))


def is_few_shot(column: Column) -> bool:
    """Whether a column has a number of shots, and so belongs to the few-shot table."""
    return bool(column.told["shots"] != "")


def _constant(row: pd.Series[Any]) -> str:
    if pd.isna(row["C"]):
        return ""
    if row["C_low"] != row["C_high"]:
        return f"{row['C_low']:g}–{row['C_high']:g}"
    return f"{row['C']:g}"


def _common(table: pd.DataFrame) -> dict[str, str]:
    """Return the sketch and the kernel if there is but one."""
    found = {name: [value for value in table[name].unique() if value] for name in ("sketch", "kernel")}
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _base_label(row: pd.Series[Any], common: Mapping[str, str]) -> str:
    parts = [display_name(row["fusion"]), *(row[n] for n in ("alignment", "sketch", "kernel") if n not in common)]
    # It is another kernel, not another road to the same one.
    if weight := row["members"][0][1].fusion_config.get("expert_weight"):
        parts.append(f"expert weight {weight:g}")
    return ", ".join(part for part in parts if part)


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Name, for each of some fusion descriptions, what sets it apart from the others."""
    keys = sorted(set().union(*configs) - {"seed"})
    texts = [{k: json.dumps(c.get(k), sort_keys=True, default=str) for k in keys} for c in configs]
    told = [k for k in keys if len({t[k] for t in texts}) > 1]
    return [", ".join(f"{k}={c[k]}" for k in told if isinstance(c.get(k), (str, int, float, bool))) for c in configs]


def _label(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``label`` and ``constant``: equal for one method, different for different ones."""
    common = _common(table)
    table = table.assign(label=table.apply(_base_label, axis=1, common=common), constant=table.apply(_constant, axis=1))
    identity = table[list(METHOD)].astype(str).agg("\x1f".join, axis=1)
    for _, group in table.groupby(["data", "pair", "label", "dim", "constant"], sort=False):
        ids = identity[group.index].unique()
        if len(ids) == 1 or not group.duplicated(list(MEASURE)).any():
            continue
        firsts = [group[identity[group.index] == i].iloc[0] for i in ids]
        extras = _differing([first["members"][0][1].fusion_config for first in firsts])
        if len(set(extras)) < len(extras):
            extras = [f"config {first['config_digest'][:6]}" for first in firsts]
        for one, extra in zip(ids, extras, strict=True):
            same = group.index[identity[group.index] == one]
            table.loc[same, "label"] = table.loc[same, "label"] + (f", {extra}" if extra else "")
    return table


def _words(key: Key) -> dict[str, str]:
    told = dict(zip(MEASURE, key, strict=True))
    return {name: str(value) for name, value in told.items() if value != ""}


def _columns(table: pd.DataFrame) -> list[Column]:
    keys = [tuple(key) for key in table[list(MEASURE)].drop_duplicates().itertuples(index=False)]
    words = [_words(key) for key in keys]
    columns = []
    for key, told in zip(keys, words, strict=True):
        peers = [w for w in words if w["probe"] == told["probe"]]
        varying = {
            name
            for name in ("modality", "label_set", *CONDITIONS, "other")
            if len({w.get(name, "") for w in peers}) > 1
        }
        title = [told["probe"].replace("_", " ")]
        if told["metric"] != "accuracy":
            title.append(told["metric"].replace("_", " "))
        detail = []
        for name in ("label_set", "modality", *CONDITIONS, "other"):
            if name in told and (name in varying or name == "label_set"):
                prefix = f"{name}=" if name in ("k", "temperature", "shots") else ""
                detail.append(prefix + told[name])
        columns.append(Column(key, " ".join(title) + ("\n" + ", ".join(detail) if detail else "")))
    order = {probe: i for i, probe in enumerate(dict.fromkeys(w["probe"] for w in words))}
    return sorted(columns, key=lambda c: order[c.probe])


def boards(table: pd.DataFrame) -> list[Board]:
    """Arrange an aggregate (see ``aggregate.aggregate``) as one board for each dataset and pair."""
    if table.empty:
        return []
    found = []
    for (data, pair), part in table.groupby(["data", "pair"], sort=False):
        group = _label(part)
        rows: dict[Key, Row] = {}
        for _, cell in group.iterrows():
            key = (cell["label"], cell["dim"], cell["constant"])
            row = rows.setdefault(key, Row(cell["label"], cell["fusion"], int(cell["dim"]), cell["constant"]))
            row.cells[tuple(cell[list(MEASURE)])] = cell
        common = tuple(f"{value} {name}" for name, value in _common(group).items())
        board = Board(str(data), str(pair), _columns(group), list(rows.values()), common)
        for column in board.columns:
            if column.metric not in KEEPS_PARENT:
                _compare(board, column)
        found.append(board)
    return found


def _scores(cell: pd.Series[Any]) -> dict[Any, NDArray[np.float64]]:
    """Return, by few-shot subset, (seeds, items) scores of the test items; (seeds, 1) figures where there are none.

    Empty where the numbers of items differ (folds that do not divide the set), so that nothing can be paired.
    """
    by_subset: dict[Any, list[NDArray[np.float64]]] = {}
    for run, record in cell["members"]:
        items = run.per_item.get(record.figure_id)
        row = np.asarray([record.value] if items is None else items, dtype=np.float64)
        by_subset.setdefault(str(record.protocol.get(SUBSET, "")), []).append(row)
    if len({len(row) for rows in by_subset.values() for row in rows}) > 1:
        return {}
    return {subset: np.stack(rows) for subset, rows in by_subset.items()}


def _compare(board: Board, column: Column) -> None:
    """Compare every row with the parent on one column, where they stand on the same items and subsets."""
    parent = board.parent
    if parent is None or column.key not in parent.cells:
        return
    base = _scores(parent.cells[column.key])
    if not base:
        return
    # The parent has no randomness but the subsets: its seeds, if it was run with several, are copies.
    baseline = np.stack([rows.mean(axis=0) for rows in base.values()])
    sign = -1.0 if lower_is_better(column.metric) else 1.0
    scores: dict[str, NDArray[np.float64]] = {}
    for number, row in enumerate(board.rows):
        if row is parent or column.key not in row.cells:
            continue
        own = _scores(row.cells[column.key])
        if own.keys() != base.keys() or next(iter(own.values())).shape[1] != baseline.shape[1]:
            continue
        rows = np.stack([r.mean(axis=0) for r in own.values()]) if len(own) > 1 else next(iter(own.values()))
        if rows.shape[1] > 1 or len(rows) > 1:
            scores[str(number)] = sign * rows
    if scores:
        found = compare_all(scores | {PARENT: sign * baseline}, PARENT, resamples=RESAMPLES)
        for number_text, comparison in found.items():
            if sign < 0:  # the verdict is that of the negated scores; the difference is shown as it is
                comparison = replace(
                    comparison, difference=-comparison.difference, low=-comparison.high, high=-comparison.low
                )
            board.rows[int(number_text)].against_parent[column.key] = comparison


# --- The terminal -----------------------------------------------------------------------------------------------


def is_best(board: Board, row: Row, column: Column) -> bool:
    """Whether a row's mean is the best of its column."""
    if column.key not in row.cells:
        return False
    means = [other.cells[column.key]["mean"] for other in board.rows if column.key in other.cells]
    best = min(means) if lower_is_better(column.metric) else max(means)
    return bool(np.isclose(row.cells[column.key]["mean"], best, rtol=0, atol=1e-12))


def cell_text(row: Row, column: Column) -> tuple[str, str]:
    """Return the value with its interval, and the difference to the parent with its mark (each may be empty)."""
    if column.key not in row.cells:
        return "–", ""
    cell = row.cells[column.key]
    value = format_value(column.metric, cell["mean"], cell["half_width"], INTERVAL_MARK[cell["interval"]])
    comparison = row.against_parent.get(column.key)
    if comparison is None:
        return value, ""
    scale, digits = (100, 1) if is_percent(column.metric) else (1, 2)
    return value, f"{comparison.difference * scale:+.{digits}f} {VERDICT_MARK[comparison.verdict]}"


def _cell(board: Board, row: Row, column: Column) -> Text:
    value, difference = cell_text(row, column)
    text = Text(value)
    if is_best(board, row, column):
        text.stylize("bold")
    if difference:
        text.append(f" {difference}", VERDICT_STYLE[row.against_parent[column.key].verdict])
    return text


def notes_for(board: Board, columns: Sequence[Column]) -> list[str]:
    """Say what the intervals, marks and units of some columns mean."""
    cells = [row.cells[c.key] for row in board.rows for c in columns if c.key in row.cells]
    kinds = {cell["interval"] for cell in cells}
    spans = []
    if "seeds" in kinds:
        spans.append(f"over {_counts(c['n'] for c in cells if c['interval'] == 'seeds')} seeds (Student's t)")
    if "subsets" in kinds:
        what = "few-shot subsets" if all(map(is_few_shot, columns)) else "subsets, folds or starts"
        spans.append(f"over {_counts(c['n'] for c in cells if c['interval'] == 'subsets')} {what} (Student's t)")
    if "items" in kinds:
        counts = _counts(c["n"] for c in cells if c["interval"] == "items")
        spans.append(f"* over {counts} test items (bootstrap; one run, or nothing random)")
    notes = ["± half width of the 95% interval: " + "; ".join(spans)] if spans else []
    if any(c.key in row.against_parent for row in board.rows for c in columns):
        notes.append(
            f"Difference to {display_name(PARENT).lower()}: ▲ better, ▼ worse, ≈ no difference shown"
            " (95%, paired on the same test items, Holm over the rows)"
        )
    if any(is_percent(column.metric) for column in columns):
        notes.append("Accuracies, recalls and the like in percent; best mean of a column in bold")
    return notes


def _counts(numbers: Iterable[int]) -> str:
    low, *rest = sorted({int(n) for n in numbers})
    return f"{low}–{rest[-1]}" if rest else f"{low}"


def _chunks(board: Board, columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """Split columns over as many tables as the width asks for."""
    leads = [(row.label, str(row.dim), row.constant) for row in board.rows]
    lead = 2 + sum(2 + max(map(len, texts)) for texts in zip(*leads, strict=True))
    chunk: list[Column] = []
    used = lead
    for column in columns:
        lines = column.title.split("\n")
        cells = [len(" ".join(cell_text(row, column)).strip()) for row in board.rows]
        # A long heading is wrapped between its words; a cell never is.
        need = 2 + max(*cells, *(len(word) for line in lines for word in line.split(" ")))
        if chunk and used + need > width:
            yield chunk
            chunk, used = [], lead
        chunk.append(column)
        used += need
    if chunk:
        yield chunk


def terminal_tables(board: Board, columns: Sequence[Column] | None = None, width: int = 120) -> list[RenderableType]:
    """Return the board as tables no wider than ``width`` characters, and the notes under them."""
    columns = board.primary() if columns is None else list(columns)
    tables: list[RenderableType] = []
    for number, chunk in enumerate(_chunks(board, columns, width)):
        table = RichTable(
            title=board.title if number == 0 else f"{board.title} (continued)",
            box=box.SIMPLE_HEAD,
            title_style="bold",
            title_justify="left",
            header_style="",
            collapse_padding=True,
            pad_edge=False,
        )
        table.add_column("method", no_wrap=True)
        table.add_column("dim", justify="right", no_wrap=True)
        table.add_column("C", justify="right", no_wrap=True)
        for column in chunk:
            table.add_column(column.title, justify="right")
        for row in board.rows:
            if any(column.key in row.cells for column in chunk):
                cells = [_cell(board, row, column) for column in chunk]
                table.add_row(row.label, str(row.dim), row.constant, *cells)
        tables.append(table)
    if columns:
        tables += [Text(note, style="dim") for note in notes_for(board, columns)]
    return tables


# --- Few-shot, in the form of the paper's table 3 ---------------------------------------------------------------


def few_shot_table(found: Sequence[Board]) -> pd.DataFrame:
    """Return few-shot accuracies in the form of the paper's table 3.

    Rows: shots, method and training form (I: image shots alone, I+T: class texts too, T); columns: datasets, with the
    pair and label set where one dataset has several. Cells are texts: mean ± half width in percent.
    """
    rows: dict[Key, dict[str, str]] = {}
    several_pairs = len({board.pair for board in found}) > 1
    for board in found:
        sets = {column.told["label_set"] for column in board.few_shot}
        for column in board.few_shot:
            told = column.told
            if column.metric != "accuracy":
                continue
            name = " ".join(
                part
                for part in (
                    board.data,
                    board.pair if several_pairs else "",
                    told["label_set"] if len(sets) > 1 else "",
                )
                if part
            )
            for row in board.rows:
                if column.key in row.cells:
                    label = short_label(board, row, column)
                    key = (told["shots"], label, told["form"] or told["modality"])
                    rows.setdefault(key, {})[name] = cell_text(row, column)[0]
    order = {label: i for i, label in enumerate(dict.fromkeys(key[1] for key in rows))}
    index = sorted(rows, key=lambda key: (float(key[0]), order[key[1]], str(key[2])))
    table = pd.DataFrame([rows[key] for key in index])
    table.insert(0, "training", [key[2] for key in index])
    table.insert(0, "method", [key[1] for key in index])
    table.insert(0, "shots", [key[0] for key in index])
    return table.fillna("–")


def short_label(board: Board, row: Row, column: Column) -> str:
    """Return a row's label, with its dimension and constant where only they tell it from another row of a column."""
    rivals = [other for other in board.rows if other.label == row.label and column.key in other.cells]
    told = [row.label]
    if len({other.dim for other in rivals}) > 1:
        told.append(f"{row.dim} dims")
    if len({other.constant for other in rivals if other.dim == row.dim}) > 1:
        told.append(f"C={row.constant}")
    return ", ".join(told)


def few_shot_terminal(found: Sequence[Board]) -> list[RenderableType]:
    """Return the few-shot table for the terminal; empty where nothing was measured so."""
    table = few_shot_table([board for board in found if board.few_shot])
    if table.empty:
        return []
    printed = RichTable(title="Few-shot accuracy", box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for name in table.columns:
        printed.add_column(str(name), justify="left" if name in ("method", "training") else "right")
    previous = None
    for values in table.astype(str).itertuples(index=False):
        if previous is not None and values[0] != previous:
            printed.add_section()
        printed.add_row("" if values[0] == previous else values[0], *values[1:])
        previous = values[0]
    notes = [note for board in found if board.few_shot for note in notes_for(board, board.few_shot)[:1]]
    return [printed, *(Text(note, style="dim") for note in dict.fromkeys(notes))]


# --- Files ------------------------------------------------------------------------------------------------------


def markdown_table(board: Board, columns: Sequence[Column] | None = None) -> str:
    """Return the board as one markdown table with its notes."""
    columns = board.primary() if columns is None else list(columns)
    heads = ["method", "dim", "C", *(column.title.replace("\n", "<br>") for column in columns)]
    lines = [_markdown_row(heads), _markdown_row(["---", "---:", "---:"] + ["---:"] * len(columns))]
    for row in board.rows:
        if not any(column.key in row.cells for column in columns):
            continue
        cells = []
        for column in columns:
            value, difference = (text.replace("*", "\\*") for text in cell_text(row, column))
            if is_best(board, row, column):
                value = f"**{value}**"
            cells.append(f"{value} {difference}".strip())
        lines.append(_markdown_row([row.label, str(row.dim), row.constant, *cells]))
    return "\n".join([f"### {board.title}", "", *lines, "", *(f"{note}  " for note in notes_for(board, columns)), ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown_frame(table: pd.DataFrame) -> str:
    """Return a data frame of texts as a markdown table."""
    lines = [_markdown_row([str(c) for c in table.columns]), _markdown_row(["---"] * len(table.columns))]
    return "\n".join(lines + [_markdown_row([str(v) for v in row]) for row in table.itertuples(index=False)])


def long_table(found: Sequence[Board]) -> pd.DataFrame:
    """Return every aggregated figure as one row, with its interval and its comparison: what the CSV holds."""
    rows = []
    for board in found:
        for row in board.rows:
            for key, cell in row.cells.items():
                against = row.against_parent.get(key)
                rows.append(
                    {name: cell[name] for name in ("data", "pair", "fusion", "alignment", "sketch", "kernel", "dim")}
                    | {"label": row.label, "C": row.constant, "config_digest": cell["config_digest"]}
                    | dict(zip(MEASURE, key, strict=True))
                    | {n: cell[n] for n in ("mean", "low", "high", "half_width", "interval", "n")}
                    | {"seeds": " ".join(map(str, cell["seeds"])), "n_items": cell["n_items"]}
                    | {"seconds": cell["seconds"]}
                    | {
                        "difference": against.difference if against else np.nan,
                        "difference_low": against.low if against else np.nan,
                        "difference_high": against.high if against else np.nan,
                        "p_value": against.p_value if against else np.nan,
                        "verdict": against.verdict if against else "",
                        "test": against.test if against else "",
                    }
                )
    return pd.DataFrame(rows)


def make_console() -> Console:
    """Return a console on standard output, 120 characters wide where that is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120)


def print_boards(found: Sequence[Board], console: Console | None = None) -> None:
    """Print every board and the few-shot table; wide boards as several tables."""
    console = console or make_console()
    width = min(console.width, 140)
    for board in found:
        for item in terminal_tables(board, width=width):
            console.print(item)
    for item in few_shot_terminal(found):
        console.print(item)


def print_frame(table: pd.DataFrame, title: str, console: Console) -> None:
    """Print a data frame of texts."""
    printed = RichTable(title=title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for name in table.columns:
        printed.add_column(str(name))
    for values in table.astype(str).itertuples(index=False):
        printed.add_row(*values)
    console.print(printed)
