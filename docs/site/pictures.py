"""The pictures of *the idea*, drawn when the site is built: each function returns an SVG."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Matrix = list[list[float]]

INK, LINE, CARD = "#1f2430", "#8a93a6", "#ffffff"
BLUE, ORANGE, GREEN = "#3f6fd1", "#d9822b", "#2f8f5b"
FONT = "font-family='system-ui, sans-serif'"


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' aria-label='{title}'>"
        f"<title>{title}</title><rect width='{width}' height='{height}' rx='10' fill='{CARD}'/>{''.join(parts)}</svg>\n"
    )


def _text(
    x: float, y: float, said: str, *, size: int = 15, anchor: str = "middle", ink: str = INK, bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:g}' y='{y:g}' {FONT} font-size='{size}' text-anchor='{anchor}' fill='{ink}'{weight}>{said}</text>"
    )


def _box(x: float, y: float, width: float, height: float, ink: str, said: str, below: str = "") -> str:
    middle = y + height / 2
    parts = [
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='6' fill='{ink}' fill-opacity='.14' "
        f"stroke='{ink}' stroke-width='1.5'/>",
        _text(x + width / 2, middle + (5 if not below else -3), said, size=14, bold=True),
    ]
    if below:
        parts.append(_text(x + width / 2, middle + 15, below, size=12))
    return "".join(parts)


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    angle = math.atan2(y2 - y1, x2 - x1)
    ends = [(x2 - 8 * math.cos(angle + s), y2 - 8 * math.sin(angle + s)) for s in (0.45, -0.45)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x2, y2), *ends])
    return (
        f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{LINE}' stroke-width='1.5'/>"
        f"<polygon points='{points}' fill='{LINE}'/>"
    )


def _unit(values: list[float]) -> list[float]:
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


def parents(items: int = 6, *, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Return the kernels of two made encoders on four groups of items: each takes two of the groups for one.

    The first cannot tell groups 0 and 1 apart, the second groups 1 and 2.
    """
    draw = random.Random(seed)
    sees = ((0, 0, 1, 2), (0, 1, 1, 2))
    made = []
    for directions in sees:
        features = []
        for group in range(4):
            for _ in range(items):
                noise = [draw.gauss(0, 0.22) for _ in range(6)]
                noise[directions[group]] += 1
                features.append(_unit(noise))
        made.append([[sum(a * b for a, b in zip(x, y, strict=True)) for y in features] for x in features])
    return made[0], made[1]


def _colour(value: float) -> str:
    share = min(max(value, 0.0), 1.0)
    low, high = (0xF4, 0xF6, 0xFB), (0x1B, 0x3A, 0x8C)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def _heat(x: float, y: float, side: float, kernel: Matrix) -> str:
    n, parts = len(kernel), []
    step = side / n
    for row, values in enumerate(kernel):
        for column, value in enumerate(values):
            at = f"x='{x + column * step:.2f}' y='{y + row * step:.2f}'"
            parts.append(f"<rect {at} width='{step + 0.3:.2f}' height='{step + 0.3:.2f}' fill='{_colour(value)}'/>")
    for k in range(1, 4):
        at = k * side / 4
        parts.append(
            f"<path d='M{x + at:g} {y:g}v{side:g}M{x:g} {y + at:g}h{side:g}' stroke='{CARD}' stroke-width='1.5'/>"
        )
    return "".join(parts)


def kernels() -> str:
    """Two parents' kernels, their mean and their product."""
    first, second = parents()
    pairs = [[(a, b) for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
    total = [[(a + b) / 2 for a, b in row] for row in pairs]
    product = [[a * b for a, b in row] for row in pairs]
    side, parts = 170, []
    tiles = [
        (first, "one encoder", "takes 1 and 2 for one"),
        (second, "another encoder", "takes 2 and 3 for one"),
        (total, "sum", "each one's confusion stays"),
        (product, "product", "both must agree: four groups"),
    ]
    for number, (kernel, name, said) in enumerate(tiles):
        x, y = 26 + (number % 2) * 204, 44 + (number // 2) * 240
        parts.append(_text(x + side / 2, y - 14, name, bold=True))
        parts.append(_heat(x, y, side, kernel))
        parts += [_text(x - 10, y + (k + 0.5) * side / 4 + 5, str(k + 1), size=13) for k in range(4)]
        parts.append(_text(x + side / 2, y + side + 20, said, size=13))
    return _svg(420, 496, "Kernel of four groups of items under two encoders, their sum and their product", parts)


def road() -> str:
    """From images and texts to measurements."""
    parts = [
        _box(16, 16, 180, 44, LINE, "images"),
        _box(224, 16, 180, 44, LINE, "texts"),
        _box(16, 100, 118, 56, BLUE, "CLIP, SigLIP", "images and texts"),
        _box(151, 100, 118, 56, ORANGE, "DINOv2", "images only"),
        _box(286, 100, 118, 56, GREEN, "E5", "texts only"),
        _arrow(75, 60, 75, 98),
        _arrow(160, 60, 205, 98),
        _arrow(250, 60, 105, 98),
        _arrow(345, 60, 345, 98),
        _box(66, 200, 288, 56, BLUE, "fusion", "kernels multiply; a sketch makes it short"),
        *(_arrow(x, 156, to, 198) for x, to in ((75, 120), (210, 210), (345, 300))),
        _arrow(210, 256, 210, 292),
        _box(36, 294, 348, 44, INK, "one embedding of images and texts"),
        *(_arrow(x, 338, to, 376) for x, to in ((120, 70), (210, 210), (300, 350))),
        _box(16, 378, 118, 44, LINE, "probes"),
        _box(151, 378, 118, 44, LINE, "search"),
        _box(286, 378, 118, 44, LINE, "zero-shot"),
    ]
    return _svg(420, 438, "Images and texts go through frozen encoders and the fusion into one embedding", parts)


def alignment() -> str:
    """The exact alignment: what images and texts hold, block by block."""

    def row(y: float, name: str, second: str, ink: str) -> str:
        return (
            _text(16, y + 28, name, anchor="start", bold=True)
            + _box(84, y, 110, 44, BLUE, "√C · ψ")
            + _box(202, y, 202, 44, ink, second)
        )

    parts = [
        row(44, "image", "S(ψ ⊗ γ)", ORANGE),
        row(128, "text", "0", LINE),
        _text(139, 30, "cross-modal", size=13),
        _text(303, 30, "cross-modal × expert", size=13),
        _text(139, 113, "compared: C · kψ", size=13),
        _text(303, 113, "adds nothing", size=13),
        _text(210, 204, "image and text: C · kψ, as the encoder alone decides", size=14),
        _text(210, 228, "image and image: C · kψ + kψ · kγ, the expert too", size=14),
    ]
    return _svg(420, 248, "Blocks of an image and of a text under the exact alignment", parts)


ALL: dict[str, Callable[[], str]] = {"kernels": kernels, "road": road, "alignment": alignment}
"""Name of the file, without its ending, and what draws it."""
