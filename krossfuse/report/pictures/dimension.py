"""Primary metrics against the dimension of the methods that were swept."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from krossfuse.report.board import Board
from krossfuse.report.pictures.labels import right_labels
from krossfuse.report.pictures.style import bars, families, grid_of, new_picture, subtitle, titled
from krossfuse.report.values import axis_label, within


def accuracy_against_dimension(board: Board) -> Figure | None:
    """Draw primary metrics against the dimension of the methods that were swept; None where none was."""
    groups = families(board)
    swept = {f.name for f in groups if len({row.dim for row in f.rows}) > 1}
    columns = [c for c in board.primary() if any(len(f.with_column(c)) > 1 for f in groups if f.name in swept)][:6]
    if not columns:
        return None
    n_rows, n_columns = grid_of(len(columns), 2)
    figure = new_picture(5.9 * n_columns, 3.5 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    titled(figure, "Results against dimension", subtitle(board, columns, "in brackets: dimension"))
    dims = sorted({row.dim for f in groups if f.name in swept for row in f.rows})
    for axes, column in zip(grid.flat, columns, strict=False):
        labels: list[tuple[float, str, str]] = []
        for family in groups:
            rows = family.with_column(column)
            if not rows:
                continue
            y, reach = bars(rows, column)
            if family.name in swept:
                x = [row.dim for row in rows]
                axes.fill_between(x, y - reach[0], y + reach[1], color=family.colour, alpha=0.15, lw=0)
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
        axes.set_ylim(within(column.declared, axes.get_ylim()))
        axes.set_title(column.title.replace("\n", " · "))
        axes.set_xlabel("dimension of the fused embedding")
        axes.set_ylabel(axis_label(column.declared, column.metric))
        right_labels(axes, labels)
    for axes in list(grid.flat)[len(columns) :]:
        axes.set_axis_off()
    return figure
