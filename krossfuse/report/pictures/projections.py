"""t-SNE and UMAP of kernels' distances."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from krossfuse.report.board import Board
from krossfuse.report.pictures.snapshots import Shot, panels_of
from krossfuse.report.pictures.style import (
    COLOURS,
    MARKERS,
    OWN_COLOURS,
    drawable,
    grid_of,
    new_picture,
    panel_title,
    subject,
    titled,
)


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
    found = panels_of(shots)
    if found is None:
        return None
    snapshot, panels = found
    n_rows, n_columns = grid_of(len(panels), 3)
    figure = new_picture(3.3 * n_columns, 3.3 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    present = np.unique(snapshot.labels)
    titled(
        figure,
        f"{name} of the kernels",
        f"{subject(board)} · {len(snapshot.labels)} test items of {len(present)} classes"
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
        axes.set_title(panel_title(title, 3.3))
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
        names = [drawable(snapshot.classes[label], most=32) for label in present]
        figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(present)))
    return figure


def tsne(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw t-SNE of each kernel's distances."""
    return _projection(board, shots, "t-SNE", _tsne)


def umap(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw UMAP of each kernel's distances (importing umap takes seconds)."""
    return _projection(board, shots, "UMAP", _umap)
