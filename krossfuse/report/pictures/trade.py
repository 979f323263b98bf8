"""Linear-probe against zero-shot accuracy: what fusion buys, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from krossfuse.report.board import PARENT, Board, Column
from krossfuse.report.pictures.labels import Label, place_labels, right_labels, two_lines
from krossfuse.report.pictures.style import GREY, bars, families, grid_of, new_picture, subtitle, titled
from krossfuse.report.values import within

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ZERO_SHOT_LINE = "the cross-modal encoder's zero-shot"


def paired_columns(board: Board) -> Iterator[tuple[Column, Column]]:
    """Yield (linear probe, zero-shot) accuracy columns of the same label set and modality."""
    primary = [c for c in board.primary() if c.metric == "accuracy"]
    for linear in (c for c in primary if c.probe.startswith("linear")):
        for zero in (c for c in primary if c.probe.startswith("zero_shot")):
            same = ("label_set", "modality", "split")
            if all(linear.measure[name] == zero.measure[name] for name in same):
                yield linear, zero


def linear_against_zero_shot(board: Board) -> Figure | None:
    """Draw linear-probe against zero-shot accuracy, one panel a label set; None where either was not measured."""
    pairs = list(paired_columns(board))[:4]
    if not pairs:
        return None
    n_rows, n_columns = grid_of(len(pairs), 2)
    figure = new_picture(5.6 * n_columns, 4.3 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    titled(
        figure,
        "What fusion buys in linear probe, and what it costs in zero-shot",
        subtitle(
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
        place_labels(axes, labels, obstacles)
    return figure


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
            x, x_reach = bars(both, zero)
            y, y_reach = bars(both, linear)
            axes.errorbar(x, y, y_reach, x_reach, fmt="none", ecolor=to_rgba(family.colour, 0.35), elinewidth=1.1)
            sizes = 26 + 34 * np.arange(len(both)) / max(1, len(both) - 1)
            axes.plot(x, y, color=family.colour, lw=1.1, alpha=0.7)
            above = 4 if family.fusion == PARENT else 3
            axes.scatter(
                x, y, s=sizes, color=family.colour, marker=family.marker, zorder=above, edgecolor="white", lw=0.6
            )
            span = f"{both[0].dim}–{both[-1].dim}" if len(both) > 1 else str(both[0].dim)
            names.append((x[-1], y[-1], two_lines(f"{family.name} ({span})"), family.colour))
            for a, b, reach_x, reach_y in zip(x, y, x_reach.T, y_reach.T, strict=True):
                obstacles += _cross(a, b, np.nan_to_num(reach_x), np.nan_to_num(reach_y))
            if family.fusion == PARENT:
                axes.axvline(x[-1], color=GREY, lw=0.9, ls=(0, (4, 3)), zorder=1, label=ZERO_SHOT_LINE)
        for row in only:
            y, _ = bars([row], linear)
            axes.axhline(y[0], color=family.colour, lw=1.3, ls=(0, (1, 1.5)), zorder=1)
            levels.append((y[0], f"{family.name} ({row.dim}),\nno zero-shot", family.colour))
    axes.margins(0.16, 0.14)
    axes.set_xlim(within(zero.declared, axes.get_xlim()))
    axes.set_ylim(within(linear.declared, axes.get_ylim()))
    low, high = axes.get_ylim()
    for line in (line for line in axes.lines if line.get_label() == ZERO_SHOT_LINE):
        obstacles += [(float(np.ravel(line.get_xdata())[0]), y) for y in np.linspace(low, high, 60)]
    axes.set_title(" · ".join(p for p in (linear.measure["label_set"], linear.measure["modality"]) if p))
    right_labels(axes, levels, lines=2)
    axes.set_xlabel("zero-shot accuracy (%)")
    axes.set_ylabel("linear-probe accuracy (%)")
    return axes, names, obstacles


def _cross(x: float, y: float, x_bar: NDArray[Any], y_bar: NDArray[Any]) -> list[tuple[float, float]]:
    """Return points along a marker's error bars, for labels to keep off."""
    steps = np.linspace(0, 1, 5)
    across = [(x + s * d, y) for d in (-x_bar[0], x_bar[1]) for s in steps]
    return across + [(x, y + s * d) for d in (-y_bar[0], y_bar[1]) for s in steps]
