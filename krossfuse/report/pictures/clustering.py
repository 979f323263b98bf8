"""Clustering measures side by side."""

from __future__ import annotations

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from krossfuse.report.board import Board, Column
from krossfuse.report.pictures.style import bars, families, grid_of, new_picture, subtitle, titled

CLUSTERING = ("nmi", "ami", "ari", "accuracy")


def clustering_bars(board: Board) -> Figure | None:
    """Draw clustering measures side by side for all methods, one panel a label set and space; None without them."""
    columns = [c for c in board.columns if c.probe.startswith("clustering") and c.metric in CLUSTERING]
    panels: dict[tuple[str, str], dict[str, Column]] = {}
    for column in columns:
        panel = (str(column.measure["label_set"]), str(column.measure["space"]))
        panels.setdefault(panel, {}).setdefault(column.metric, column)
    if not panels:
        return None
    shown = list(panels.items())[:6]
    n_rows, n_columns = grid_of(len(shown), 2)
    figure = new_picture(5.8 * n_columns, 3.2 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    titled(figure, "Clustering by method", subtitle(board, columns))
    groups = families(board)
    drawn = [(family, row) for family in groups for row in family.rows]
    for axes, ((label_set, space), metrics) in zip(grid.flat, shown, strict=False):
        order = [metric for metric in CLUSTERING if metric in metrics]
        there = [(f, r) for f, r in drawn if any(metrics[m].key in r.cells for m in order)]
        width = 0.84 / max(1, len(there))
        for number, (family, row) in enumerate(there):
            for place, metric in enumerate(order):
                if metrics[metric].key not in row.cells:
                    continue
                y, error = bars([row], metrics[metric])
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
