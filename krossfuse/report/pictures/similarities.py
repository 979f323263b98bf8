"""Similarities of matching and other image-text pairs, before fusion and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from krossfuse.report.board import PARENT, Board
from krossfuse.report.pictures.snapshots import Shot
from krossfuse.report.pictures.style import grid_of, new_picture, panel_title, subject, titled


def similarity_distributions(board: Board, shots: Sequence[Shot]) -> Figure | None:
    """Draw similarities of matching and non-matching image-text pairs, before fusion and after."""
    before = next((s.snapshot for s in shots if "cross_modal" in s.snapshot.similarities), None)
    after = [s for s in shots if "fused" in s.snapshot.similarities and s.row.fusion != PARENT][:5]
    if before is None or not after or before.matches.all() or not before.matches.any():
        return None
    panels = [("before: cross-modal encoder", before.similarities["cross_modal"], before.matches)]
    for shot in after:
        title = f"after: {shot.row.label} ({shot.row.dim})"
        panels.append((title, shot.snapshot.similarities["fused"], shot.snapshot.matches))
    n_rows, n_columns = grid_of(len(panels), 3)
    figure = new_picture(3.9 * n_columns, 2.7 * n_rows + 0.3)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
    titled(
        figure,
        "Similarities of images and texts, before fusion and after",
        f"{subject(board)} · {before.matches.sum()} matching and {(~before.matches).sum()} other pairs"
        " · AUC: chance that a matching pair is the more similar · lines: means",
    )
    spread = np.array([np.quantile(part, [0.001, 0.999]) for _, s, m in panels for part in (s[m], s[~m])])
    bins = np.linspace(spread[:, 0].min(), spread[:, 1].max(), 36)
    for number, (axes, (title, similarity, matches)) in enumerate(zip(grid.flat, panels, strict=False)):
        match, other = similarity[matches], similarity[~matches]
        for data, colour, name in ((other, "#8a8a8a", "not matching"), (match, "#0072B2", "matching")):
            axes.hist(data, bins, histtype="stepfilled", density=True, color=colour, alpha=0.5, label=name)
            axes.axvline(data.mean(), ymax=0.87, color=colour, lw=1.3)
        ranks = pd.Series(np.r_[match, other]).rank().to_numpy()[: len(match)]
        auc = (ranks.sum() - len(match) * (len(match) + 1) / 2) / (len(match) * len(other))
        axes.set_title(panel_title(title, 3.9))
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
