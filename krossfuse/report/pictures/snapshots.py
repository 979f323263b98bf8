"""Which snapshots are drawn, and as which panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krossfuse.report.board import Board, Row
from krossfuse.report.pictures.style import OWN_COLOURS, families
from krossfuse.results.runs import Run
from krossfuse.results.snapshot import KernelSnapshot, load_snapshot

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


def panels_of(shots: Sequence[Shot]) -> tuple[KernelSnapshot, dict[str, tuple[str, NDArray[np.float32]]]] | None:
    """Return the snapshot with most kernels and, by name, the title and matrix of each panel."""
    # One item (figures.max_items=1) is similar to itself, and that is all.
    full = [s for s in shots if len(s.snapshot.kernels) > 2 and len(s.snapshot.labels) > 1]
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
