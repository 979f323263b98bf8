"""Pictures of results. Each function draws one figure from boards or from a snapshot, and computes nothing anew.

Colours are Okabe and Ito's (told apart by colour-blind readers) and one method has one colour in every picture.
"""

from __future__ import annotations

import itertools
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray
from scipy import stats

from krossfuse.core.errors import check_choice
from krossfuse.report.tables import PARENT, Board, Column, Row, is_few_shot, is_percent
from krossfuse.results.records import Run
from krossfuse.results.snapshot import KernelSnapshot, load_snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: dict[str, Any] = {
    "text.parse_math": False,  # class names may hold a dollar sign
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "savefig.dpi": 160,
    "figure.dpi": 160,
    "svg.fonttype": "none",
}
GREY = "#555555"
OWN_COLOURS = {
    "cross_modal": "#4d4d4d",
    "image_expert": "#E69F00",
    "text_expert": "#CC79A7",
    "concatenation": "#56B4E9",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8C5A2B", "#882255", "#6A6AD0", "#7A8B00", "#B0003A", "#40808A", "#A06CD5")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "h")

Box = tuple[float, float, float, float]
Label = tuple[float, float, str, str]
"""x, y, text, colour."""


@dataclass(frozen=True)
class Family:
    """Rows of a board that are one method at several dimensions, with the look that they share."""

    name: str
    fusion: str
    colour: str
    marker: str
    rows: list[Row] = field(default_factory=list)

    def with_column(self, column: Column) -> list[Row]:
        """Return its rows that were measured on ``column``, by dimension."""
        return sorted((row for row in self.rows if column.key in row.cells), key=lambda row: row.dim)


def families(board: Board) -> list[Family]:
    """Group the rows of a board into methods; C is part of a method's name where it was swept."""
    constants: dict[str, set[str]] = {}
    for row in board.rows:
        constants.setdefault(row.label, set()).add(row.constant)
    found: dict[str, Family] = {}
    colours, markers = itertools.cycle(COLOURS), itertools.cycle(MARKERS)
    for row in board.rows:
        name = f"{row.label}, C={row.constant}" if len(constants[row.label]) > 1 and row.constant else row.label
        if name not in found:
            own = OWN_COLOURS.get(row.fusion) if row.fusion not in {f.fusion for f in found.values()} else None
            found[name] = Family(name, row.fusion, own or next(colours), next(markers))
        found[name].rows.append(row)
    return list(found.values())


def _subtitle(board: Board, columns: Sequence[Column], *more: str) -> str:
    cells = [row.cells[c.key] for row in board.rows for c in columns if c.key in row.cells]
    seeds = sorted({seed for cell in cells for seed in cell["seeds"]})
    told = "seed " + str(seeds[0]) if len(seeds) == 1 else f"{len(seeds)} seeds ({seeds[0]}–{seeds[-1]})"
    kinds = {cell["interval"] for cell in cells}
    draws = "over subsets" if any(is_few_shot(column) for column in columns) else "over starts"
    spans = {"seeds": "over seeds", "subsets": draws, "items": "over test items where one run is all there is"}
    shown = [text for kind, text in spans.items() if kind in kinds]
    if kinds <= {"items", "none"} and "items" in kinds:
        shown = ["over test items"]
    intervals = [f"95% intervals {', '.join(shown)}"] if shown else []
    return " · ".join([f"{board.data}, pair {board.pair}", told, *intervals, *more])


def _titled(figure: Figure, title: str, subtitle: str) -> None:
    """Set a title and a lighter second line, both wrapped to the figure's width."""
    width, height = figure.get_size_inches()
    heads = textwrap.wrap(title, int(width * 9.5))
    lines = textwrap.wrap(subtitle, int(width * 15.5))
    below = 0.30 + 0.23 * (len(heads) - 1)
    top = below + 0.17 * len(lines)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - top / height))  # type: ignore[union-attr,call-arg]
    figure.text(0.012, 1 - 0.07 / height, "\n".join(heads), fontsize=11.5, weight="bold", va="top")
    figure.text(0.012, 1 - below / height, "\n".join(lines), fontsize=8, color=GREY, va="top")


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height + 0.5), layout="constrained")


def _grid(count: int, most: int = 3) -> tuple[int, int]:
    columns = min(count, most) if count != 4 else 2
    return -(-count // columns), columns


def _scale(column: Column) -> float:
    return 100.0 if is_percent(column.metric) else 1.0


def _axis_label(column: Column) -> str:
    metric = column.metric.replace("_", " ")
    return f"{metric} (%)" if is_percent(column.metric) else metric


def _bars(rows: Sequence[Row], column: Column) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return means (n,) and distances to the interval's ends (2, n), NaN where there is none, in the shown unit."""
    cells = [row.cells[column.key] for row in rows]
    mean = np.array([c["mean"] for c in cells]) * _scale(column)
    low = np.array([c["low"] for c in cells]) * _scale(column)
    high = np.array([c["high"] for c in cells]) * _scale(column)
    return mean, np.vstack([mean - low, high - mean])


# --- Labels that do not overlap ---------------------------------------------------------------------------------


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[tuple[float, float]]) -> None:
    """Write each label beside its point, where it covers no other label, point, or the axes' edge.

    Greedy: for each label, in order, the cheapest of places on rings around its point; a thin line leads to a far one.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is placed now must not be moved afterwards
    frame = axes.get_window_extent()
    edges = (frame.x0, frame.y0, frame.x1, frame.y1)
    pixels = figure.dpi / 72
    taken: list[Box] = []
    points = axes.transData.transform(np.array(obstacles)) if len(obstacles) else np.empty((0, 2))
    dots = [(x - 3 * pixels, y - 3 * pixels, x + 3 * pixels, y + 3 * pixels) for x, y in points]
    for x, y, text, colour in labels:
        at = axes.transData.transform((x, y))
        note = axes.annotate(text, (x, y), (0, 0), textcoords="offset points", fontsize=8, color=colour, weight="bold")
        note.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
        extent = note.get_window_extent()
        width, height = extent.width, extent.height
        best: tuple[float, float, float, Box] | None = None
        for radius, angle in itertools.product((7, 12, 20, 30, 44, 60, 80), range(0, 360, 15)):
            dx, dy = radius * pixels * np.cos(np.radians(angle)), radius * pixels * np.sin(np.radians(angle))
            # The label's nearest side faces the point.
            left = at[0] + dx - width * (0.5 - 0.5 * np.cos(np.radians(angle)))
            bottom = at[1] + dy - height * (0.5 - 0.5 * np.sin(np.radians(angle)))
            box = (left - 2, bottom - 1, left + width + 2, bottom + height + 1)
            outside = width * height - _overlap((left, bottom, left + width, bottom + height), edges)
            cost = (
                30 * outside
                + 12 * sum(_overlap(box, other) for other in taken)
                + 6 * sum(_overlap(box, dot) for dot in dots)
                + 2.0 * radius * pixels * height / 6
            )
            if best is None or cost < best[0]:
                best = (cost, left, bottom, box)
        assert best is not None
        _, left, bottom, box = best
        taken.append(box)
        note.set_position(((left - at[0]) / pixels, (bottom - at[1]) / pixels))
        reach_x = max(left - at[0], at[0] - left - width, 0)
        reach_y = max(bottom - at[1], at[1] - bottom - height, 0)
        if np.hypot(reach_x, reach_y) > 9 * pixels:
            end = [np.clip(at[0], left, left + width), np.clip(at[1], bottom, bottom + height)]
            line = axes.transData.inverted().transform(np.array([at, end], dtype=float))
            axes.plot(line[:, 0], line[:, 1], color=colour, lw=0.6, alpha=0.7, scalex=False, scaley=False)


def _spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move values apart to distances of ``gap`` or more, as little as possible, inside [low, high] where they fit.

    >>> [round(v, 2) for v in _spread([1.0, 1.0, 5.0], 1.0, 0.0, 9.0)]
    [0.5, 1.5, 5.0]
    """
    order = np.argsort(values, kind="stable")
    # Pool neighbours that are too near into blocks, each centred on the mean of what it holds.
    blocks: list[tuple[list[int], float]] = []
    for index in order:
        blocks.append(([int(index)], float(values[index])))
        while True:
            members, centre = blocks[-1]
            half = gap * (len(members) - 1) / 2
            centre = min(max(centre, low + half), max(high - half, low + half))
            blocks[-1] = (members, centre)
            if len(blocks) < 2:
                break
            above, below = blocks[-1], blocks[-2]
            edge = below[1] + gap * (len(below[0]) - 1) / 2
            if above[1] - gap * (len(above[0]) - 1) / 2 - edge >= gap - 1e-12:
                break
            joined = below[0] + above[0]
            blocks[-2:] = [(joined, float(np.mean([values[i] for i in joined])))]
    placed = [0.0] * len(values)
    for members, centre in blocks:
        for rank, index in enumerate(members):
            placed[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed


def _right_labels(axes: Axes, labels: Sequence[tuple[float, str, str]], *, lines: int = 1) -> None:
    """Write (y, text, colour) to the right of the axes, moved apart, with a thin line to where each belongs."""
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    gap = (high - low) * 0.15 * lines / (axes.get_position().height * figure.get_size_inches()[1])
    transform = axes.get_yaxis_transform()
    for (y, text, colour), place in zip(labels, _spread([y for y, _, _ in labels], gap, low, high), strict=True):
        axes.plot([1.0, 1.03], [y, place], transform=transform, color=colour, lw=0.8, clip_on=False)
        axes.text(1.04, place, text, transform=transform, color=colour, fontsize=8, va="center", weight="bold")


# --- Figures of boards ------------------------------------------------------------------------------------------


def _two_lines(text: str) -> str:
    """Break a text at the space nearest to its middle.

    >>> _two_lines("RP-KrossFuse, exact (768)").split(chr(10))
    ['RP-KrossFuse,', 'exact (768)']
    """
    spaces = [i for i, letter in enumerate(text) if letter == " "]
    if not spaces:
        return text
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


ZERO_SHOT_LINE = "the cross-modal encoder's zero-shot"


def _paired_columns(board: Board) -> Iterator[tuple[Column, Column]]:
    """Yield (linear probe, zero-shot) accuracy columns of the same label set and modality."""
    primary = [c for c in board.primary() if c.metric == "accuracy"]
    for linear in (c for c in primary if c.probe.startswith("linear")):
        for zero in (c for c in primary if c.probe.startswith("zero_shot")):
            same = ("label_set", "modality", "split")
            if all(linear.told[name] == zero.told[name] for name in same):
                yield linear, zero


def linear_against_zero_shot(board: Board) -> Figure | None:
    """Draw linear-probe against zero-shot accuracy, one panel a label set; None where either was not measured."""
    pairs = list(_paired_columns(board))[:4]
    if not pairs:
        return None
    n_rows, n_columns = _grid(len(pairs), 2)
    figure = _figure(5.6 * n_columns, 4.3 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    _titled(
        figure,
        "What fusion buys in linear probe, and what it costs in zero-shot",
        _subtitle(
            board,
            [c for pair in pairs for c in pair],
            (f"dashed: {ZERO_SHOT_LINE} · " if board.parent else "") + "larger marker: larger dimension",
        ),
    )
    todo = []
    for axes, (linear, zero) in zip(grid.flat, pairs, strict=False):
        todo.append(_draw_trade(axes, board, linear, zero))
    for axes in list(grid.flat)[len(pairs) :]:
        axes.set_axis_off()
    for axes, labels, obstacles in todo:
        _place_labels(axes, labels, obstacles)
    return figure


def _within(limits: tuple[float, float]) -> tuple[float, float]:
    """Return axis limits no further out than accuracies can be, in percent, with room for a marker.

    >>> _within((-50.0, 88.0))
    (-4.0, 88.0)
    """
    return max(limits[0], -4.0), min(limits[1], 104.0)


def _draw_trade(
    axes: Axes, board: Board, linear: Column, zero: Column
) -> tuple[Axes, list[Label], list[tuple[float, float]]]:
    names: list[Label] = []
    levels: list[tuple[float, str, str]] = []
    obstacles: list[tuple[float, float]] = []
    for family in families(board):
        both = [row for row in family.with_column(linear) if zero.key in row.cells]
        only = [row for row in family.with_column(linear) if zero.key not in row.cells]
        if both:
            x, x_bars = _bars(both, zero)
            y, y_bars = _bars(both, linear)
            axes.errorbar(x, y, y_bars, x_bars, fmt="none", ecolor=to_rgba(family.colour, 0.35), elinewidth=1.1)
            sizes = 26 + 34 * np.arange(len(both)) / max(1, len(both) - 1)
            axes.plot(x, y, color=family.colour, lw=1.1, alpha=0.7)
            above = 4 if family.fusion == PARENT else 3
            axes.scatter(
                x, y, s=sizes, color=family.colour, marker=family.marker, zorder=above, edgecolor="white", lw=0.6
            )
            span = f"{both[0].dim}–{both[-1].dim}" if len(both) > 1 else str(both[0].dim)
            names.append((x[-1], y[-1], _two_lines(f"{family.name} ({span})"), family.colour))
            for a, b, bars_x, bars_y in zip(x, y, x_bars.T, y_bars.T, strict=True):
                obstacles += _cross(a, b, np.nan_to_num(bars_x), np.nan_to_num(bars_y))
            if family.fusion == PARENT:
                axes.axvline(x[-1], color=GREY, lw=0.9, ls=(0, (4, 3)), zorder=1, label=ZERO_SHOT_LINE)
        for row in only:
            y, _ = _bars([row], linear)
            axes.axhline(y[0], color=family.colour, lw=1.3, ls=(0, (1, 1.5)), zorder=1)
            levels.append((y[0], f"{family.name} ({row.dim}),\nno zero-shot", family.colour))
    axes.margins(0.16, 0.14)
    axes.set_xlim(_within(axes.get_xlim()))  # whatever an interval over two seeds says
    axes.set_ylim(_within(axes.get_ylim()))
    low, high = axes.get_ylim()
    for line in (line for line in axes.lines if line.get_label() == ZERO_SHOT_LINE):
        obstacles += [(float(np.ravel(line.get_xdata())[0]), y) for y in np.linspace(low, high, 60)]
    axes.set_title(" · ".join(p for p in (linear.told["label_set"], linear.told["modality"]) if p))
    _right_labels(axes, levels, lines=2)
    axes.set_xlabel("zero-shot accuracy (%)")
    axes.set_ylabel("linear-probe accuracy (%)")
    return axes, names, obstacles


def _cross(x: float, y: float, x_bar: NDArray[Any], y_bar: NDArray[Any]) -> list[tuple[float, float]]:
    """Return points along a marker's error bars, for labels to keep off."""
    steps = np.linspace(0, 1, 5)
    across = [(x + s * d, y) for d in (-x_bar[0], x_bar[1]) for s in steps]
    return across + [(x, y + s * d) for d in (-y_bar[0], y_bar[1]) for s in steps]


def accuracy_against_dimension(board: Board) -> Figure | None:
    """Draw primary metrics against the dimension of the methods that were swept; None where none was."""
    groups = families(board)
    swept = {f.name for f in groups if len({row.dim for row in f.rows}) > 1}
    columns = [c for c in board.primary() if any(len(f.with_column(c)) > 1 for f in groups if f.name in swept)][:6]
    if not columns:
        return None
    n_rows, n_columns = _grid(len(columns), 2)
    figure = _figure(5.9 * n_columns, 3.5 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    _titled(figure, "Results against dimension", _subtitle(board, columns, "in brackets: dimension"))
    dims = sorted({row.dim for f in groups if f.name in swept for row in f.rows})
    for axes, column in zip(grid.flat, columns, strict=False):
        labels: list[tuple[float, str, str]] = []
        for family in groups:
            rows = family.with_column(column)
            if not rows:
                continue
            y, bars = _bars(rows, column)
            if family.name in swept:
                x = [row.dim for row in rows]
                axes.fill_between(x, y - bars[0], y + bars[1], color=family.colour, alpha=0.15, lw=0)
                axes.plot(x, y, color=family.colour, marker=family.marker, ms=4.5, markeredgecolor="white", mew=0.5)
                labels.append((y[-1], family.name, family.colour))
            else:
                axes.axhline(y[0], color=family.colour, lw=1.3, ls=(0, (5, 2)))
                labels.append((y[0], f"{family.name} ({rows[0].dim})", family.colour))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(dims))
        axes.set_xticks(dims, [str(d) for d in dims])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.03, y=0.08)
        axes.set_title(column.title.replace("\n", " · "))
        axes.set_xlabel("dimension of the fused embedding")
        axes.set_ylabel(_axis_label(column))
        _right_labels(axes, labels)
    for axes in list(grid.flat)[len(columns) :]:
        axes.set_axis_off()
    return figure


FORM_LINES = {"I": (0, (4, 2)), "I+T": "-", "T": (0, (1, 1.5))}


def few_shot_curves(board: Board) -> Figure | None:
    """Draw few-shot accuracy against shots, one panel a label set; None where it was not measured at two or more."""
    columns = [c for c in board.few_shot if c.metric == "accuracy"]
    sets = list(dict.fromkeys(c.told["label_set"] for c in columns))[:4]
    shots = sorted({int(c.told["shots"]) for c in columns})
    if len(shots) < 2:
        return None
    n_rows, n_columns = _grid(len(sets), 2)
    figure = _figure(6.2 * n_columns, 4.2 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    forms = list(dict.fromkeys(str(c.told["form"]) for c in columns))
    _titled(figure, "Few-shot accuracy", _subtitle(board, columns))
    for axes, label_set in zip(grid.flat, sets, strict=False):
        labels: list[tuple[float, str, str]] = []
        for family, form in itertools.product(families(board), forms):
            mine = [c for c in columns if c.told["label_set"] == label_set and c.told["form"] == form]
            rows = {int(c.told["shots"]): (family.with_column(c)[-1], c) for c in mine if family.with_column(c)}
            if not rows:
                continue
            x = sorted(rows)
            stacked = [_bars([rows[k][0]], rows[k][1]) for k in x]
            y, bars = np.array([m[0] for m, _ in stacked]), np.hstack([b for _, b in stacked])
            axes.fill_between(x, y - bars[0], y + bars[1], color=family.colour, alpha=0.10, lw=0)
            axes.plot(
                x,
                y,
                color=family.colour,
                ls=FORM_LINES.get(form, "-"),
                marker=family.marker,
                ms=5,
                mfc=family.colour if form != "I" else "white",
            )
            labels.append((y[-1], f"{family.name}, {form}" if form else family.name, family.colour))
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("shots a class")
        axes.set_ylabel("accuracy (%)")
        axes.set_title(label_set)
        axes.margins(x=0.03)
        _right_labels(axes, labels)
    handles = [
        Line2D([], [], color=GREY, ls=FORM_LINES.get(form, "-"), marker="o", mfc="white" if form == "I" else GREY, ms=5)
        for form in forms
    ]
    meaning = {"I": "I: images alone", "I+T": "I+T: images and class texts", "T": "T: class texts alone"}
    grid[0, 0].legend(handles, [meaning.get(form, form) for form in forms], loc="lower right")
    for axes in list(grid.flat)[len(sets) :]:
        axes.set_axis_off()
    return figure


CLUSTERING = ("nmi", "ami", "ari", "accuracy")


def clustering_bars(board: Board) -> Figure | None:
    """Draw clustering measures side by side for all methods, one panel a label set and space; None without them."""
    columns = [c for c in board.columns if c.probe.startswith("clustering") and c.metric in CLUSTERING]
    panels: dict[tuple[str, str], dict[str, Column]] = {}
    for column in columns:
        panel = (str(column.told["label_set"]), str(column.told["space"]))
        panels.setdefault(panel, {}).setdefault(column.metric, column)
    if not panels:
        return None
    shown = list(panels.items())[:6]
    n_rows, n_columns = _grid(len(shown), 2)
    figure = _figure(5.8 * n_columns, 3.2 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    _titled(figure, "Clustering by method", _subtitle(board, columns))
    groups = families(board)
    bars = [(family, row) for family in groups for row in family.rows]
    for axes, ((label_set, space), metrics) in zip(grid.flat, shown, strict=False):
        order = [metric for metric in CLUSTERING if metric in metrics]
        there = [(f, r) for f, r in bars if any(metrics[m].key in r.cells for m in order)]
        width = 0.84 / max(1, len(there))
        for number, (family, row) in enumerate(there):
            for place, metric in enumerate(order):
                if metrics[metric].key not in row.cells:
                    continue
                y, error = _bars([row], metrics[metric])
                x = place - 0.42 + (number + 0.5) * width
                shade = 0.55 + 0.45 * (1 + family.rows.index(row)) / len(family.rows)
                axes.bar(x, y, width * 0.92, color=to_rgba(family.colour, shade))
                axes.errorbar(x, y, error, fmt="none", ecolor="#333333", elinewidth=0.9, capsize=1.5)
        axes.set_xticks(range(len(order)), [m.upper() if m != "accuracy" else "accuracy" for m in order])
        axes.grid(axis="x", visible=False)
        axes.set_title(" · ".join(part for part in (label_set, space) if part))
        if axes in grid[:, 0]:
            axes.set_ylabel("score (%)")
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    measured = [f for f in groups if any(column.key in row.cells for row in f.rows for column in columns)]
    handles = [Line2D([], [], color=f.colour, marker="s", ls="", ms=7) for f in measured]
    figure.legend(handles, [f.name for f in measured], loc="outside lower center", ncols=min(4, len(measured)))
    return figure


# --- Figures of snapshots ---------------------------------------------------------------------------------------

PARTS = {"cross_modal": "cross-modal", "sum": "sum of kernels", "product": "product of kernels"}


@dataclass(frozen=True)
class Shot:
    """A run's snapshot with the row of the board that it belongs to."""

    row: Row
    seed: int
    snapshot: KernelSnapshot


def shots_of(board: Board, runs: Sequence[Run]) -> list[Shot]:
    """Return one snapshot a method: that of its largest dimension and lowest seed, parents first."""
    chosen: list[Shot] = []
    for family in families(board):
        for row in sorted(family.rows, key=lambda r: -r.dim):
            members = [m for cell in row.cells.values() for m in cell["members"]]
            seeded = sorted({(record.seed, run.name): run for run, record in members}.items())
            loaded = ((key[0], load_snapshot(run.folder)) for key, run in seeded)
            found = next(((seed, snapshot) for seed, snapshot in loaded if snapshot is not None), None)
            if found:
                chosen.append(Shot(row, *found))
                break
    return chosen


def _panels(shots: Sequence[Shot]) -> tuple[KernelSnapshot, dict[str, tuple[str, NDArray[np.float32]]]] | None:
    """Return the snapshot with most kernels and, by name, the title and matrix of each panel."""
    full = [s for s in shots if len(s.snapshot.kernels) > 2]
    if not full:
        return None
    # The last method is the one that is furthest from the parents; its own embedding is shown beside the exact product.
    shot = max(reversed(full), key=lambda s: (len(s.snapshot.kernels), s.row.fusion not in OWN_COLOURS, s.row.dim))
    panels = {}
    for name, matrix in shot.snapshot.kernels.items():
        title = PARTS.get(name, f"expert: {name.replace('_', ' ')}")
        if name == "fused":
            if shot.row.fusion in OWN_COLOURS:
                continue
            title = f"{shot.row.label} ({shot.row.dim})"
        panels[name] = (title, matrix)
    return shot.snapshot, panels


def _contrast(snapshot: KernelSnapshot, matrix: NDArray[np.float32]) -> tuple[float, float]:
    same = snapshot.labels[:, None] == snapshot.labels[None, :]
    off = ~np.eye(len(same), dtype=bool)
    return float(matrix[same & off].mean()), float(matrix[~same].mean())


def kernel_heat_maps(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw the kernels of parents, sum, product and fused embedding, ordered by class, on one colour scale."""
    found = _panels(shots)
    if found is None:
        return None
    snapshot, panels = found
    n_rows, n_columns = _grid(len(panels), 3)
    figure = _figure(3.1 * n_columns + 1.1, 3.4 * n_rows + 0.4)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    n = len(snapshot.labels)
    present = np.unique(snapshot.labels)
    _titled(
        figure,
        "Kernels of one sample, ordered by class",
        f"{board.data}, pair {board.pair} · {n} test items of {len(present)} classes ({snapshot.label_set})"
        " · w: mean within a class, b: between classes · one colour scale",
    )
    off = np.concatenate([m[~np.eye(n, dtype=bool)] for _, m in panels.values()])
    low, high = float(np.quantile(off, 0.01)), float(np.quantile(off, 0.99))
    edges = np.r_[0, snapshot.boundaries, n]
    image = None
    for number, (axes, (title, matrix)) in enumerate(zip(grid.flat, panels.values(), strict=False)):
        image = axes.imshow(matrix, vmin=low, vmax=high, cmap="magma", interpolation="nearest")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for edge in snapshot.boundaries - 0.5:
            axes.axhline(edge, color="white", lw=0.5, alpha=0.8)
            axes.axvline(edge, color="white", lw=0.5, alpha=0.8)
        within, between = _contrast(snapshot, matrix)
        axes.set_title(title)
        axes.set_xlabel(f"w {within:.2f}   b {between:.2f}   w − b {within - between:.2f}")
        axes.set_xticks([])
        if len(present) <= 14 and number % n_columns == 0:
            names = [snapshot.classes[label] for label in present]
            axes.set_yticks((edges[:-1] + edges[1:] - 1) / 2, names, fontsize=7)
            axes.tick_params(axis="y", length=0)
        else:
            axes.set_yticks([])
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    assert image is not None
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.45, aspect=40, pad=0.02, extend="both")
    bar.set_label("similarity")
    bar.outline.set_visible(False)
    return figure


def similarity_distributions(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw similarities of matching and non-matching image-text pairs, before fusion and after."""
    before = next((s.snapshot for s in shots if "cross_modal" in s.snapshot.similarities), None)
    after = [s for s in shots if "fused" in s.snapshot.similarities and s.row.fusion != PARENT][:5]
    if before is None or not after:
        return None
    panels = [("before: cross-modal encoder", before.similarities["cross_modal"], before.matches)]
    for shot in after:
        title = f"after: {shot.row.label} ({shot.row.dim})"
        panels.append((title, shot.snapshot.similarities["fused"], shot.snapshot.matches))
    n_rows, n_columns = _grid(len(panels), 3)
    figure = _figure(3.9 * n_columns, 2.7 * n_rows + 0.3)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
    _titled(
        figure,
        "Similarities of images and texts, before fusion and after",
        f"{board.data}, pair {board.pair} · {before.matches.sum()} matching and {(~before.matches).sum()} other pairs"
        " · AUC: chance that a matching pair is the more similar · lines: means",
    )
    spread = np.array([np.quantile(part, [0.001, 0.999]) for _, s, m in panels for part in (s[m], s[~m])])
    bins = np.linspace(spread[:, 0].min(), spread[:, 1].max(), 36)
    for number, (axes, (title, similarity, matches)) in enumerate(zip(grid.flat, panels, strict=False)):
        match, other = similarity[matches], similarity[~matches]
        for data, colour, name in ((other, "#8a8a8a", "not matching"), (match, "#0072B2", "matching")):
            axes.hist(data, bins, density=True, color=colour, alpha=0.5, label=name)
            axes.axvline(data.mean(), ymax=0.87, color=colour, lw=1.3)
        ranks = stats.rankdata(np.r_[match, other])[: len(match)]
        auc = (ranks.sum() - len(match) * (len(match) + 1) / 2) / (len(match) * len(other))
        axes.set_title(title)
        axes.margins(y=0.16)
        axes.text(0.01, 0.99, f"AUC {auc:.3f}", transform=axes.transAxes, va="top", fontsize=8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("cosine similarity" if number == 0 else "fused similarity (text with itself: 1)")
        axes.xaxis.set_major_locator(MaxNLocator(6))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    return figure


def _distances(kernel: NDArray[np.float32]) -> NDArray[np.float64]:
    k = kernel.astype(np.float64)
    diagonal = np.diag(k)
    return np.asarray(np.sqrt(np.maximum(diagonal[:, None] + diagonal[None, :] - k - k.T, 0)))


def _tsne(distances: NDArray[np.float64]) -> NDArray[Any]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(distances) - 1) / 3)
    model = TSNE(metric="precomputed", init="random", perplexity=perplexity, random_state=0)
    return np.asarray(model.fit_transform(distances))


def _umap(distances: NDArray[np.float64]) -> NDArray[Any]:
    import umap

    model = umap.UMAP(metric="precomputed", n_neighbors=min(15, len(distances) - 1), random_state=0, n_jobs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="using precomputed metric")
        return np.asarray(model.fit_transform(distances))


def _projection(board: Board, shots: Sequence[Shot], name: str, project: Callable[..., NDArray[Any]]) -> Figure | None:
    found = _panels(shots)
    if found is None:
        return None
    snapshot, panels = found
    n_rows, n_columns = _grid(len(panels), 3)
    figure = _figure(3.3 * n_columns, 3.3 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    present = np.unique(snapshot.labels)
    _titled(
        figure,
        f"{name} of the kernels",
        f"{board.data}, pair {board.pair} · {len(snapshot.labels)} test items of {len(present)} classes"
        f" ({snapshot.label_set}) · from kernel distances, seed 0",
    )
    few = len(present) <= 14
    turbo = mpl.colormaps["turbo"]
    palette = [*OWN_COLOURS.values(), *COLOURS] if few else [turbo(v) for v in np.linspace(0.03, 0.97, len(present))]
    for axes, (title, matrix) in zip(grid.flat, panels.values(), strict=False):
        points = project(_distances(matrix))
        for number, label in enumerate(present):
            mine = snapshot.labels == label
            marker = MARKERS[number % len(MARKERS)]
            axes.scatter(*points[mine].T, s=15, color=palette[number], marker=marker, lw=0, alpha=0.85)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#cccccc")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    if few:
        handles = [
            Line2D([], [], color=palette[i], marker=MARKERS[i % len(MARKERS)], ls="", ms=5) for i in range(len(present))
        ]
        names = [snapshot.classes[label] for label in present]
        figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(present)))
    return figure


def tsne(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw t-SNE of each kernel's distances."""
    return _projection(board, shots, "t-SNE", _tsne)


def umap(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw UMAP of each kernel's distances (importing umap takes seconds)."""
    return _projection(board, shots, "UMAP", _umap)


BOARD_FIGURES: Mapping[str, Callable[[Board], Figure | None]] = {
    "linear_against_zero_shot": linear_against_zero_shot,
    "accuracy_against_dimension": accuracy_against_dimension,
    "few_shot": few_shot_curves,
    "clustering": clustering_bars,
}
SNAPSHOT_FIGURES: Mapping[str, Callable[[Board, Sequence[Shot]], Figure | None]] = {
    "kernels": kernel_heat_maps,
    "similarities": similarity_distributions,
    "tsne": tsne,
    "umap": umap,
}
OPTIONAL = ("tsne", "umap")
"""Figures that are drawn only when they are asked for, since they take seconds."""
KINDS = (*BOARD_FIGURES, *SNAPSHOT_FIGURES)
FORMATS = ("png", "svg", "pdf")


def save_figures(
    found: Sequence[Board],
    runs: Sequence[Run],
    folder: str | Path,
    *,
    kinds: Iterable[str] | None = None,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Draw every figure that the results allow.

    Args:
        found: boards of the runs.
        runs: for their snapshots.
        folder: where the files go; made if it is not there.
        kinds: of :data:`KINDS`; None: all but :data:`OPTIONAL`.
        formats: of ``png``, ``svg`` and ``pdf``.

    Returns:
        the files, named by kind, and by dataset and pair where there are several.
    """
    chosen = [kind for kind in KINDS if kind not in OPTIONAL] if kinds is None else list(kinds)
    wanted = [check_choice("figures", kind, KINDS) for kind in chosen]
    for name in formats:
        check_choice("formats", name, FORMATS)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        for board in found:
            shots = shots_of(board, runs) if set(wanted) & SNAPSHOT_FIGURES.keys() else []
            for kind in wanted:
                draw = BOARD_FIGURES.get(kind)
                figure = draw(board) if draw else SNAPSHOT_FIGURES[kind](board, shots)
                if figure is None:
                    continue
                suffix = f"-{board.data}-{board.pair}" if len(found) > 1 else ""
                for name in formats:
                    path = folder / f"{kind}{suffix}.{name}"
                    figure.savefig(path)
                    written.append(path)
    return written
