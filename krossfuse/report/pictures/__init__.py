"""Pictures of results, one kind a file. Each draws boards or snapshots, and computes nothing anew.

Colours are Okabe and Ito's (told apart by colour-blind readers) and one method has one colour in every picture. A kind
more is a file with a function of a board, or of a board and snapshots, and a line in :data:`BOARD_PICTURES` or
:data:`SNAPSHOT_PICTURES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from krossfuse.core.errors import check_choice
from krossfuse.report.board import Board
from krossfuse.report.pictures.clustering import clustering_bars
from krossfuse.report.pictures.dimension import accuracy_against_dimension
from krossfuse.report.pictures.federated import accuracy_against_bits, accuracy_against_round, privacy_bits_accuracy
from krossfuse.report.pictures.few_shot import few_shot_curves
from krossfuse.report.pictures.kernels import kernel_heat_maps
from krossfuse.report.pictures.projections import tsne, umap
from krossfuse.report.pictures.similarities import similarity_distributions
from krossfuse.report.pictures.snapshots import Shot, shots_of
from krossfuse.report.pictures.style import STYLE, settle
from krossfuse.report.pictures.trade import linear_against_zero_shot
from krossfuse.results.runs import Run

BOARD_PICTURES: Mapping[str, Callable[[Board], Figure | None]] = {
    "linear_against_zero_shot": linear_against_zero_shot,
    "accuracy_against_dimension": accuracy_against_dimension,
    "few_shot": few_shot_curves,
    "clustering": clustering_bars,
    "accuracy_against_round": accuracy_against_round,
    "accuracy_against_bits": accuracy_against_bits,
    "privacy_bits_accuracy": privacy_bits_accuracy,
}
SNAPSHOT_PICTURES: Mapping[str, Callable[[Board, Sequence[Shot]], Figure | None]] = {
    "kernels": kernel_heat_maps,
    "similarities": similarity_distributions,
    "tsne": tsne,
    "umap": umap,
}
OPTIONAL = ("tsne", "umap")
"""Pictures that are drawn only when they are asked for, since they take seconds."""
KINDS = (*BOARD_PICTURES, *SNAPSHOT_PICTURES)
FORMATS = ("png", "svg", "pdf")
MOST_ROWS = 16
"""Rows of a board that a picture has room for: of more, it shows the best, and says so."""


def save_pictures(
    boards: Sequence[Board],
    runs: Sequence[Run],
    folder: str | Path,
    *,
    kinds: Iterable[str] | None = None,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Draw every picture that the results allow; of a board with more than :data:`MOST_ROWS` rows, the best of them.

    Args:
        boards: of the runs.
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
        for board in (board.best_rows(MOST_ROWS) for board in boards):
            shots = shots_of(board, runs) if set(wanted) & SNAPSHOT_PICTURES.keys() else []
            for kind in wanted:
                draw = BOARD_PICTURES.get(kind)
                figure = draw(board) if draw else SNAPSHOT_PICTURES[kind](board, shots)
                if figure is None:
                    continue
                settle(figure)
                suffix = f"-{board.data}-{board.pair}" if len(boards) > 1 else ""
                stem = re.sub(r"[^\w.+-]", "_", kind + suffix)  # a name may hold what no file's name can
                for name in formats:
                    path = folder / f"{stem}.{name}"
                    figure.savefig(path)
                    written.append(path)
    return written
