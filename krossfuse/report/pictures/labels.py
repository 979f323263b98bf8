"""Labels in pictures that do not overlap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from krossfuse.report.pictures.style import drawable, settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
Label = tuple[float, float, str, str]
"""x, y, text, colour."""


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _covered(box: Box, others: NDArray[np.float64]) -> float:
    """Return how much of some boxes, (n, 4), one covers, all together."""
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    high = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((wide.clip(0) * high.clip(0)).sum())


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[tuple[float, float]]) -> None:
    """Write each label beside its point, where it covers no other label, point, or the axes' edge.

    Greedy: for each label, in order, the cheapest of places on rings around its point; a thin line leads to a far one.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    settle(figure)
    frame = axes.get_window_extent()
    edges = (frame.x0, frame.y0, frame.x1, frame.y1)
    pixels = figure.dpi / 72
    taken: list[Box] = []
    points = axes.transData.transform(np.array(obstacles)) if len(obstacles) else np.empty((0, 2))
    dots = np.hstack([points - 3 * pixels, points + 3 * pixels])
    for x, y, text, colour in labels:
        at = axes.transData.transform((x, y))
        note = axes.annotate(
            drawable(text), (x, y), (0, 0), textcoords="offset points", fontsize=8, color=colour, weight="bold"
        )
        note.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
        extent = note.get_window_extent()
        width, height = extent.width, extent.height
        best: tuple[float, float, float, Box] | None = None
        for radius, angle in itertools.product((7, 12, 20, 30, 44, 60, 80), range(0, 360, 15)):
            dx, dy = radius * pixels * np.cos(np.radians(angle)), radius * pixels * np.sin(np.radians(angle))
            # The label's nearest side faces the point.
            left = at[0] + dx - width * (0.5 - 0.5 * np.cos(np.radians(angle)))
            bottom = at[1] + dy - height * (0.5 - 0.5 * np.sin(np.radians(angle)))
            box = (left - 2, bottom - 1, left + width + 2, bottom + height + 1)
            outside = width * height - _overlap((left, bottom, left + width, bottom + height), edges)
            cost = (
                30 * outside
                + 12 * sum(_overlap(box, other) for other in taken)
                + 6 * _covered(box, dots)
                + 2.0 * radius * pixels * height / 6
            )
            if best is None or cost < best[0]:
                best = (cost, left, bottom, box)
        assert best is not None
        _, left, bottom, box = best
        taken.append(box)
        note.set_position(((left - at[0]) / pixels, (bottom - at[1]) / pixels))
        reach_x = max(left - at[0], at[0] - left - width, 0)
        reach_y = max(bottom - at[1], at[1] - bottom - height, 0)
        if np.hypot(reach_x, reach_y) > 9 * pixels:
            end = [np.clip(at[0], left, left + width), np.clip(at[1], bottom, bottom + height)]
            line = axes.transData.inverted().transform(np.array([at, end], dtype=float))
            axes.plot(line[:, 0], line[:, 1], color=colour, lw=0.6, alpha=0.7, scalex=False, scaley=False)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move values apart to distances of ``gap`` or more, as little as possible, inside [low, high] where they fit.

    >>> [round(v, 2) for v in spread([1.0, 1.0, 5.0], 1.0, 0.0, 9.0)]
    [0.5, 1.5, 5.0]
    """
    order = np.argsort(values, kind="stable")
    # Pool neighbours that are too near into blocks, each centred on the mean of what it holds.
    blocks: list[tuple[list[int], float]] = []
    for index in order:
        blocks.append(([int(index)], float(values[index])))
        while True:
            members, centre = blocks[-1]
            half = gap * (len(members) - 1) / 2
            centre = min(max(centre, low + half), max(high - half, low + half))
            blocks[-1] = (members, centre)
            if len(blocks) < 2:
                break
            above, below = blocks[-1], blocks[-2]
            edge = below[1] + gap * (len(below[0]) - 1) / 2
            if above[1] - gap * (len(above[0]) - 1) / 2 - edge >= gap - 1e-12:
                break
            joined = below[0] + above[0]
            blocks[-2:] = [(joined, float(np.mean([values[i] for i in joined])))]
    placed = [0.0] * len(values)
    for members, centre in blocks:
        for rank, index in enumerate(members):
            placed[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed


def right_labels(axes: Axes, labels: Sequence[tuple[float, str, str]], *, lines: int = 1) -> None:
    """Write (y, text, colour) to the right of the axes, moved apart, with a thin line to where each belongs."""
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    gap = (high - low) * 0.15 * lines / (axes.get_position().height * figure.get_size_inches()[1])
    transform = axes.get_yaxis_transform()
    for (y, text, colour), place in zip(labels, spread([y for y, _, _ in labels], gap, low, high), strict=True):
        axes.plot([1.0, 1.03], [y, place], transform=transform, color=colour, lw=0.8, clip_on=False)
        axes.text(1.04, place, text, transform=transform, color=colour, fontsize=8, va="center", weight="bold")


def two_lines(text: str) -> str:
    """Break a text at the space nearest to its middle.

    >>> two_lines("RP-KrossFuse, exact (768)").split(chr(10))
    ['RP-KrossFuse,', 'exact (768)']
    """
    spaces = [i for i, letter in enumerate(text) if letter == " "]
    if not spaces:
        return text
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"
