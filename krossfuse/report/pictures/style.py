"""The look that all pictures share: one style, one colour a method, titles that fit."""

from __future__ import annotations

import functools
import itertools
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font, get_font_names
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from numpy.typing import NDArray

from krossfuse.report.board import Board, Column, Row, is_few_shot
from krossfuse.report.values import scale

MISSING = "▯"
"""Stands for a letter that no font at hand has."""

FALLBACKS = (
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Emoji",
)
"""Fonts that are asked for letters that Matplotlib's own does not have, where they are installed."""


def _fonts() -> list[str]:
    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]


STYLE: dict[str, Any] = {
    "text.parse_math": False,  # class names may hold a dollar sign
    "font.family": _fonts(),
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "savefig.dpi": 160,
    "figure.dpi": 160,
    "svg.fonttype": "none",
}
GREY = "#555555"
OWN_COLOURS = {
    "cross_modal": "#4d4d4d",
    "image_expert": "#E69F00",
    "text_expert": "#CC79A7",
    "concatenation": "#56B4E9",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8C5A2B", "#882255", "#6A6AD0", "#7A8B00", "#B0003A", "#40808A", "#A06CD5")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "h")


@dataclass(frozen=True)
class Family:
    """Rows of a board that are one method at several dimensions, with the look that they share."""

    name: str
    fusion: str
    colour: str
    marker: str
    rows: list[Row] = field(default_factory=list)

    def with_column(self, column: Column) -> list[Row]:
        """Return its rows that were measured on ``column``, by dimension."""
        return sorted((row for row in self.rows if column.key in row.cells), key=lambda row: row.dim)


def families(board: Board) -> list[Family]:
    """Group the rows of a board into methods; a number that was swept is part of its name."""
    by_name: dict[str, Family] = {}
    colours, markers = itertools.cycle(COLOURS), itertools.cycle(MARKERS)
    for row in board.rows:
        name = _family_name(board, row)
        if name not in by_name:
            own = OWN_COLOURS.get(row.fusion) if row.fusion not in {f.fusion for f in by_name.values()} else None
            by_name[name] = Family(name, row.fusion, own or next(colours), next(markers))
        by_name[name].rows.append(row)
    return list(by_name.values())


def _family_name(board: Board, row: Row) -> str:
    """Return a row's label, with the numbers in which rows of that label differ."""
    alike = [other for other in board.rows if other.label == row.label]
    numbers = [key for key in row.numbers if len({other.numbers.get(key) for other in alike}) > 1]
    return ", ".join([row.label, *(f"{key}={row.numbers[key]}" for key in numbers)])


def subtitle(board: Board, columns: Sequence[Column], *more: str) -> str:
    """Return what stands under a title: the dataset, the seeds, and over what the intervals are."""
    cells = [row.cells[c.key] for row in board.rows for c in columns if c.key in row.cells]
    seeds = sorted({seed for cell in cells for seed in cell["seeds"]})
    runs = "seed " + str(seeds[0]) if len(seeds) == 1 else f"{len(seeds)} seeds ({seeds[0]}–{seeds[-1]})"
    kinds = {source for cell in cells for source in cell["interval"].split("+")}
    draws = "subsets" if any(is_few_shot(column) for column in columns) else "starts"
    spans = {"seeds": "seeds", "subsets": draws, "items": "test items"}
    over = [text for kind, text in spans.items() if kind in kinds]
    intervals = [f"95% intervals over {' and '.join(over)}"] if over else []
    return " · ".join([subject(board), runs, *intervals, *more])


def subject(board: Board) -> str:
    """Return what was measured on."""
    named = f"{board.data}, pair {board.pair}" if board.pair else board.data
    return f"{named} · {board.part}" if board.part else named


def titled(figure: Figure, title: str, below_it: str) -> None:
    """Set a title and a lighter second line, both wrapped to the picture's width."""
    width, height = figure.get_size_inches()
    heads = textwrap.wrap(title, int(width * 9.5))
    lines = textwrap.wrap(below_it, int(width * 15.5))
    below = 0.30 + 0.23 * (len(heads) - 1)
    top = below + 0.17 * len(lines)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - top / height))  # type: ignore[union-attr,call-arg]
    figure.text(0.012, 1 - 0.07 / height, "\n".join(heads), fontsize=11.5, weight="bold", va="top")
    figure.text(0.012, 1 - below / height, "\n".join(lines), fontsize=8, color=GREY, va="top")


def new_picture(width: float, height: float) -> Figure:
    """Return an empty picture, inches wide and high, with room for its titles."""
    return Figure(figsize=(width, height + 0.5), layout="constrained")


def grid_of(count: int, most: int = 3) -> tuple[int, int]:
    """Return the rows and columns of a grid of panels."""
    columns = min(count, most) if count != 4 else 2
    return -(-count // columns), columns


def bars(rows: Sequence[Row], column: Column) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return means (n,) and distances to the interval's ends (2, n), NaN where there is none, in the shown unit."""
    cells = [row.cells[column.key] for row in rows]
    mean, low, high = (np.array([c[name] for c in cells]) * scale(column.declared) for name in ("mean", "low", "high"))
    return mean, np.vstack([np.maximum(mean - low, 0), np.maximum(high - mean, 0)])


def drawable(text: str, most: int = 80) -> str:
    """Return a text without the letters that no font at hand has, and cut off where it is too long for any picture.

    >>> drawable("café {$x$}" + chr(0xE000))  # a letter for private use, which no font has
    'café {$x$}▯'
    """
    text = "".join(letter if letter.isspace() or ord(letter) in _letters() else MISSING for letter in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


@functools.cache
def _letters() -> frozenset[int]:
    fonts = (get_font(findfont(family)) for family in STYLE["font.family"])
    return frozenset(code for font in fonts for code in font.get_charmap())


def settle(figure: Figure) -> None:
    """Lay a picture out for good, so that drawing it warns of nothing: letters that no font has are replaced, and one
    that is too small for its texts grows.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if (shown := drawable(text.get_text(), most=400)) != text.get_text():
            text.set_text(shown)
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        return
    for _ in range(5):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.execute(figure)
        if not any("layout not applied" in str(warning.message) for warning in caught):
            break
        figure.set_size_inches(*(1.35 * figure.get_size_inches()))
    figure.set_layout_engine("none")  # every drawing would lay it out again, which takes as long as to draw it


def panel_title(text: str, width: float) -> str:
    """Return a panel's title on as many lines as its width in inches asks for."""
    return "\n".join(textwrap.wrap(text, max(12, int(width * 9.5))))
