"""Federated training: accuracy against rounds and against bits, and what ε and bits buy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from krossfuse.report.board import Board, Column, Row
from krossfuse.report.pictures.style import COLOURS, GREY, MARKERS, drawable, grid_of, new_picture, subtitle, titled
from krossfuse.report.values import scale
from krossfuse.results.inference import t_quantile

MOST_PANELS = 12
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2, 3, 2)), (0, (3, 4)))
MECHANISM_COLOURS = {
    "none": GREY,
    "gaussian": COLOURS[0],
    "cepam": COLOURS[1],
    "gaussian_sdq": COLOURS[2],
    "sdq": COLOURS[3],
    "released": COLOURS[4],
    "laplace": COLOURS[5],
}
"""One colour a mechanism in every picture; ε, lattices and the like are told by the line."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """One federation of one method: means over seeds of what its records say by round.

    Attributes:
        panel: label set, modality, clients with their partition, and method: what shares a panel.
        name: of the federation, without the clients and the partition.
        mechanism: by name.
        epsilon: over all rounds; None where nothing is protected.
        total_bits: sent by all clients in all rounds.
        accuracy: at the end, in the shown unit.
        curves: by name of the history, (points,).
        low: (points,) of the accuracy's 95 % interval over seeds, NaN for one seed.
        high: see ``low``.
    """

    panel: tuple[str, ...]
    name: str
    mechanism: str
    epsilon: float | None
    total_bits: float
    accuracy: float
    curves: Mapping[str, Floats]
    low: Floats
    high: Floats


def trainings(board: Board) -> tuple[list[Training], list[Column]]:
    """Return the federations of a board, and the columns they stand in."""
    found, columns = [], []
    for column in board.columns:
        if column.metric != "accuracy":
            continue
        for row in board.rows:
            training = _training(row, column)
            if training is not None:
                found.append(training)
                columns += [] if column in columns else [column]
    return found, columns


def _training(row: Row, column: Column) -> Training | None:
    if column.key not in row.cells:
        return None
    protocols = [record.protocol for _, record in row.cells[column.key]["members"]]
    histories = [p.get("history") for p in protocols]
    if not all(isinstance(h, Mapping) and len(h.get("accuracy", [])) > 1 for h in histories):
        return None
    points = min(len(h["accuracy"]) for h in histories)
    names = set.intersection(*(set(h) for h in histories))
    stacked = {n: np.array([h[n][:points] for h in histories], dtype=float) for n in sorted(names)}
    each = stacked["accuracy"] * scale(column.declared)
    width = np.full(points, np.nan)
    if len(each) > 1:
        width = t_quantile(0.95, len(each) - 1) * each.std(0, ddof=1) / np.sqrt(len(each))
    first, measure = protocols[0], column.measure
    shared = [f"{first['clients']} clients" if first.get("clients") else "", str(first.get("partition", ""))]
    words = str(measure["federation"]).split(", ")
    name = ", ".join(word for word in words if word not in shared)
    clients = ", ".join(word for word in shared if word in words)
    epsilons = [p.get("epsilon") for p in protocols]
    return Training(
        panel=(str(measure["label_set"]), str(measure["modality"]), clients, row.name),
        name=", ".join(part for part in (name, str(measure["other"])) if part),
        mechanism=str(first.get("mechanism", "")),
        epsilon=None if any(e is None for e in epsilons) else float(np.mean(epsilons)),
        total_bits=float(np.mean([p["total_bits"] for p in protocols])),
        accuracy=float(row.cells[column.key]["mean"]) * scale(column.declared),
        curves={n: values.mean(0) for n, values in stacked.items()} | {"accuracy": each.mean(0)},
        low=np.maximum(each.mean(0) - width, 0.0),
        high=np.minimum(each.mean(0) + width, scale(column.declared)),
    )


def accuracy_against_round(board: Board) -> Figure | None:
    """Draw accuracy against rounds, one panel a method and number of clients; None where nothing was federated."""
    return _curves(board, "round", "round", "Accuracy by round of federated training", log=False)


def accuracy_against_bits(board: Board) -> Figure | None:
    """Draw accuracy against the total bits that all clients have sent, headers included; None as above."""
    label = "bits sent by all clients so far"
    return _curves(board, "total_bits", label, "Accuracy by bits sent in federated training", log=True)


def _curves(board: Board, name: str, label: str, title: str, *, log: bool) -> Figure | None:
    found, columns = trainings(board)
    if not found:
        return None
    looks = _looks(found)
    figure, grid, panels = _panels(found)
    titled(figure, title, subtitle(board, columns, "band: 95% interval over seeds, of the mean"))
    for axes, (panel, own) in zip(grid.flat, panels.items(), strict=False):
        for one in own:
            colour, dashes = looks[one.name]
            x = one.curves[name]
            axes.plot(x, one.curves["accuracy"], color=colour, ls=dashes, lw=1.4)
            if np.isfinite(one.low).all():
                axes.fill_between(x, one.low, one.high, color=colour, alpha=0.10, lw=0)
        if log:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            # Within a decade there may be no power of ten to label.
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(EngFormatter(places=0))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(_panel_title(panel))
    _finish(figure, grid, panels, label, looks)
    return figure


def privacy_bits_accuracy(board: Board) -> Figure | None:
    """Draw the accuracy that every ε and number of bits gave, one panel a method and number of clients; or None."""
    found, columns = trainings(board)
    epsilons = sorted({round(t.epsilon, 3) for t in found if t.epsilon is not None})
    if not epsilons:
        return None
    unprotected = any(t.epsilon is None for t in found)
    figure, grid, panels = _panels(found)
    titled(
        figure,
        "What privacy and bits buy",
        subtitle(
            board,
            columns,
            "colour and number: accuracy (%)" + (" · right of the line: nothing is protected" if unprotected else ""),
        ),
    )
    values = [t.accuracy for t in found]
    beyond = epsilons[-1] * (epsilons[-1] / epsilons[0] if len(epsilons) > 1 else 4.0) ** 0.45 * 1.5
    markers = dict(zip(dict.fromkeys(t.mechanism for t in found), MARKERS, strict=False))
    image = None
    for axes, (panel, own) in zip(grid.flat, panels.items(), strict=False):
        for one in own:
            x = beyond if one.epsilon is None else one.epsilon
            image = axes.scatter(
                x, one.total_bits, c=[one.accuracy], vmin=min(values), vmax=max(values), cmap="viridis", s=85,
                marker=markers[one.mechanism], edgecolor="white", lw=0.6, zorder=3,
            )  # fmt: skip
            axes.annotate(f"{one.accuracy:.0f}", (x, one.total_bits), (6, 5), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(EngFormatter(places=0))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if unprotected:
            axes.axvline((epsilons[-1] * beyond) ** 0.5, color=GREY, lw=0.8, ls=(0, (3, 3)))
        axes.set_xlim(epsilons[0] / 1.6, (beyond if unprotected else epsilons[-1]) * 1.6)
        axes.margins(y=0.18)
        ticks = {e: f"{e:.3g}" for e in epsilons} | ({beyond: "∞"} if unprotected else {})
        axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(_panel_title(panel))
    for axes in grid[-1]:
        axes.set_xlabel("ε over all rounds")
    for axes in grid[:, 0]:
        axes.set_ylabel("total bits")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.7, aspect=30, pad=0.02)
    bar.set_label("accuracy (%)")
    bar.outline.set_visible(False)
    handles = [Line2D([], [], color=GREY, marker=m, ls="", ms=7) for m in markers.values()]
    figure.legend(handles, list(markers), loc="outside lower center", ncols=min(6, len(markers)))
    return figure


def _panels(found: Sequence[Training]) -> tuple[Figure, NDArray[Any], dict[tuple[str, ...], list[Training]]]:
    panels: dict[tuple[str, ...], list[Training]] = {}
    for one in found:
        panels.setdefault(one.panel, []).append(one)
    shown = dict(list(panels.items())[:MOST_PANELS])
    n_rows, n_columns = grid_of(len(shown), 4 if len(shown) in (8, 12) else 3)
    figure = new_picture(max(6.4, 3.7 * n_columns + 0.6), 3.0 * n_rows + 0.9)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False, sharey=True), shown


def _looks(found: Sequence[Training]) -> dict[str, tuple[str, Any]]:
    """Return by federation its mechanism's colour, and dashes that tell those of a mechanism apart."""
    looks: dict[str, tuple[str, Any]] = {}
    for one in sorted(found, key=lambda t: (list(MECHANISM_COLOURS).index(t.mechanism), -(t.epsilon or 0), t.name)):
        number = sum(other[0] == MECHANISM_COLOURS[one.mechanism] for other in looks.values())
        looks.setdefault(one.name, (MECHANISM_COLOURS[one.mechanism], DASHES[number % len(DASHES)]))
    return looks


def _panel_title(panel: tuple[str, ...]) -> str:
    label_set, modality, clients, row = panel
    return f"{row}\n" + " · ".join(part for part in (label_set, modality, clients) if part)


def _finish(
    figure: Figure, grid: NDArray[Any], panels: Mapping[Any, Any], label: str, looks: Mapping[str, tuple[str, Any]]
) -> None:
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for number, axes in enumerate(list(grid.flat)[: len(panels)]):
        if number + grid.shape[1] >= len(panels):
            axes.set_xlabel(label)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    handles = [Line2D([], [], color=colour, ls=dashes, lw=1.6) for colour, dashes in looks.values()]
    names = [drawable(name) for name in looks]
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
