"""Heat maps of kernels, ordered by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from krossfuse.report.board import Board
from krossfuse.report.pictures.snapshots import Shot, panels_of
from krossfuse.report.pictures.style import drawable, grid_of, new_picture, panel_title, subject, titled
from krossfuse.results.snapshot import KernelSnapshot


def _contrast(snapshot: KernelSnapshot, matrix: NDArray[np.float32]) -> tuple[float, ...]:
    same = snapshot.labels[:, None] == snapshot.labels[None, :]
    off = ~np.eye(len(same), dtype=bool)
    # A class of one item has nothing within it, and one class nothing between.
    return tuple(float(part.mean()) if part.size else float("nan") for part in (matrix[same & off], matrix[~same]))


def _shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def kernel_heat_maps(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw the kernels of parents, sum, product and fused embedding, ordered by class, on one colour scale."""
    found = panels_of(shots)
    if found is None:
        return None
    snapshot, panels = found
    n_rows, n_columns = grid_of(len(panels), 3)
    figure = new_picture(3.1 * n_columns + 1.1, 3.4 * n_rows + 0.4)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    n = len(snapshot.labels)
    present = np.unique(snapshot.labels)
    titled(
        figure,
        "Kernels of one sample, ordered by class",
        f"{subject(board)} · {n} test items of {len(present)} classes ({snapshot.label_set})"
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
        for lines in (axes.hlines, axes.vlines):
            lines(snapshot.boundaries - 0.5, -0.5, n - 0.5, color="white", lw=0.5, alpha=0.8)
        within, between = _contrast(snapshot, matrix)
        axes.set_title(panel_title(title, 3.1))
        axes.set_xlabel(f"w {_shown(within)}   b {_shown(between)}   w − b {_shown(within - between)}")
        axes.set_xticks([])
        if len(present) <= 14 and number % n_columns == 0:
            names = [drawable(snapshot.classes[label], most=32) for label in present]
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
