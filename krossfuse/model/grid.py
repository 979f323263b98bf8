"""Search results as a picture grid: a PNG, or a page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from krossfuse.core.errors import ConfigError, KrossFuseError
from krossfuse.core.files import write_whole
from krossfuse.model.search import Hit

SIDE, CAPTION, COLUMNS = 160, 32, 5
"""Pixels of a picture's side, height of its two lines of text, and pictures a row."""

Picture = Callable[[int], Image.Image]
"""A row of the index in, its picture out."""


def write_grid(path: Path, title: str, hits: Sequence[Hit], picture: Picture) -> None:
    """Write results as ``.png`` or ``.html``; what a picture cannot be read of is left grey.

    Raises:
        ConfigError: another ending.
    """
    if path.suffix not in (".png", ".html"):
        raise ConfigError(f"--grid={path}: the file must end in .png or .html")
    tiles = [_tile(picture, hit) for hit in hits]
    write_whole(path, _page(title, hits, tiles).encode() if path.suffix == ".html" else _png(title, hits, tiles))


def _tile(picture: Picture, hit: Hit) -> Image.Image:
    try:
        return ImageOps.pad(picture(hit.row).convert("RGB"), (SIDE, SIDE), color="white")
    except (KrossFuseError, OSError):  # moved or deleted since
        return Image.new("RGB", (SIDE, SIDE), "lightgrey")


def _png(title: str, hits: Sequence[Hit], tiles: Sequence[Image.Image]) -> bytes:
    rows, gap = -(-len(tiles) // COLUMNS), 8
    step_x, step_y = SIDE + gap, SIDE + CAPTION + gap
    sheet = Image.new("RGB", (COLUMNS * step_x + gap, rows * step_y + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), _shortened(title, 100), fill="black")
    for number, (hit, tile) in enumerate(zip(hits, tiles, strict=True)):
        x, y = gap + number % COLUMNS * step_x, CAPTION + number // COLUMNS * step_y
        sheet.paste(tile, (x, y))
        draw.text((x, y + SIDE + 2), f"{hit.rank}.  {hit.score:.3f}", fill="black")
        draw.text((x, y + SIDE + 16), _shortened(hit.name, 26), fill="black")
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _shortened(text: str, length: int) -> str:
    # The font that Pillow brings has Latin letters only.
    plain = "".join(c if c.isprintable() and ord(c) < 256 else "?" for c in text)
    return plain if len(plain) <= length else f"{plain[: length - 3]}..."


def _page(title: str, hits: Sequence[Hit], tiles: Sequence[Image.Image]) -> str:
    figures = []
    for hit, tile in zip(hits, tiles, strict=True):
        stream = io.BytesIO()
        tile.save(stream, "PNG")
        source = base64.b64encode(stream.getvalue()).decode()
        name = escape(hit.name)
        figures.append(
            f'<figure><img src="data:image/png;base64,{source}" alt="{name}" width="{SIDE}" height="{SIDE}">'
            f"<figcaption>{hit.rank}. {name}<br>{hit.score:.3f}</figcaption></figure>"
        )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>body{{font-family:sans-serif;margin:1rem}}"
        "main{display:flex;flex-wrap:wrap;gap:1rem}"
        f"figure{{margin:0;width:{SIDE}px}}figcaption{{font-size:.8rem;overflow-wrap:anywhere}}</style>"
        f"<h1>{escape(title)}</h1><main>{''.join(figures)}</main></html>\n"
    )
