"""Few-shot accuracy against shots."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from krossfuse.report.board import Board
from krossfuse.report.pictures.labels import right_labels
from krossfuse.report.pictures.style import GREY, bars, families, grid_of, new_picture, subtitle, titled
from krossfuse.report.values import within

FORM_LINES = {
    "I": (0, (4, 2)),
    "I+T": "-",
    "T": (0, (1, 1.5)),
    "texts as samples": (0, (6, 1.5, 1, 1.5)),
    "Tip-Adapter": (0, (3, 1, 1, 1, 1, 1)),
    "Tip-Adapter-F": (0, (6, 1, 1, 1, 1, 1)),
    "LP++": (0, (9, 2)),
    "CLIP-Adapter": (0, (9, 2, 1, 2)),
}


def few_shot_curves(board: Board) -> Figure | None:
    """Draw few-shot accuracy against shots, one panel a label set; None where it was not measured at two or more."""
    columns = [c for c in board.few_shot if c.metric == "accuracy"]
    sets = list(dict.fromkeys(c.measure["label_set"] for c in columns))[:4]
    shots = sorted({int(c.measure["shots"]) for c in columns})
    if len(shots) < 2:
        return None
    n_rows, n_columns = grid_of(len(sets), 2)
    figure = new_picture(6.2 * n_columns, 4.2 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    forms = list(dict.fromkeys(str(c.measure["form"]) for c in columns))
    titled(figure, "Few-shot accuracy", subtitle(board, columns))
    for axes, label_set in zip(grid.flat, sets, strict=False):
        labels: list[tuple[float, str, str]] = []
        for family, form in itertools.product(families(board), forms):
            mine = [c for c in columns if c.measure["label_set"] == label_set and c.measure["form"] == form]
            rows = {int(c.measure["shots"]): (family.with_column(c)[-1], c) for c in mine if family.with_column(c)}
            if not rows:
                continue
            x = sorted(rows)
            stacked = [bars([rows[k][0]], rows[k][1]) for k in x]
            y, reach = np.array([m[0] for m, _ in stacked]), np.hstack([b for _, b in stacked])
            axes.fill_between(x, y - reach[0], y + reach[1], color=family.colour, alpha=0.10, lw=0)
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
        axes.set_ylim(within(columns[0].declared, axes.get_ylim()))
        right_labels(axes, labels)
    handles = [
        Line2D([], [], color=GREY, ls=FORM_LINES.get(form, "-"), marker="o", mfc="white" if form == "I" else GREY, ms=5)
        for form in forms
    ]
    meaning = {"I": "I: images alone", "I+T": "I+T: class texts added", "T": "T: class texts alone"}
    grid[0, 0].legend(handles, [meaning.get(form, form) for form in forms], loc="lower right")
    for axes in list(grid.flat)[len(sets) :]:
        axes.set_axis_off()
    return figure
