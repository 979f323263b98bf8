"""One HTML page that a person explores, with everything in it: data, scripts, Plotly, and tables without a script.

Data and Plotly are compressed, and unpacked by the browser. Every text from outside reaches the page as JSON and
becomes a text node there, or is escaped by the template.
"""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from krossfuse.core.errors import ConfigError
from krossfuse.core.local_server import as_json
from krossfuse.report.board import Board, Column
from krossfuse.report.cells import cell_text, is_best, notes_for, row_names
from krossfuse.report.dashboard.payload import Payload
from krossfuse.report.differences import Differences, differences
from krossfuse.report.few_shot import few_shot_table
from krossfuse.report.reference import SOURCE
from krossfuse.results.significance import Comparison

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("format.js", "statistics.js", "model.js", "table.js", "details.js", "charts.js", "main.js")
MOST_ROWS = 24
"""Rows of a board in the page's plain tables; its leaderboard has all."""

MOST_PICTURES = 3_000_000
"""Bytes of PNG files in a page; the others are in the folder beside it."""


def html_page(
    content: Payload,
    made: Sequence[Board],
    paper: pd.DataFrame,
    pictures: Sequence[Path],
    further: Sequence[Sequence[Board]] = (),
    frames: Sequence[tuple[str, pd.DataFrame]] = (),
) -> str:
    """Return the page as text; it needs nothing else.

    Args:
        content: what it explores.
        made: the boards, for the plain tables.
        paper: the paper's values beside measured ones.
        pictures: PNG files.
        further: of each board, the same compared with other baselines.
        frames: tables over all boards, by title.
    """
    shown = [board.best_rows(MOST_ROWS) for board in made]
    embedded, left_out = _embedded(pictures)
    others = [[board.best_rows(MOST_ROWS) for board in boards] for boards in further] or [[] for _ in made]
    return _render(
        title=content.data["title"],
        follow=False,
        summary="",
        warnings=content.data["notes"],
        boards=[
            {
                "title": board.title,
                "notes": notes_for(board, board.primary()),
                "numbers": board.numbers,
                "main": _board(board, board.primary()),
                "all": _board(board, board.columns),
                "further": [_differences(table) for other in own if (table := differences(other)) is not None],
            }
            for board, own in zip(shown, others, strict=True)
        ],
        frames=[{"title": title, **_frame(frame)} for title, frame in frames],
        few_shot=_frame(few_shot_table(shown)),
        paper=_frame(paper),
        source=SOURCE,
        pictures=embedded,
        left_out=left_out,
        data=_compressed(as_json(content.data)),
        scores=_compressed(content.scores),
    )


def following_page(title: str) -> str:
    """Return the page that asks the server it comes from for its data, again and again."""
    empty: dict[str, Any] = {"columns": [], "rows": []}
    return _render(
        title=title, follow=True, summary="", warnings=[], boards=[], frames=[], few_shot=empty, paper=empty,
        source=SOURCE, pictures=[], left_out="", data="", scores="",
    )  # fmt: skip


def _render(**values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        # The package's own files, not a name from outside.
        style=Markup((ASSETS / "style.css").read_text(encoding="utf-8")),
        script=Markup(script()),
        plotly=_plotly(),
        **values,
    )


def script() -> str:
    """Return the page's own scripts as one."""
    parts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


@functools.cache
def _plotly() -> str:
    """Return Plotly's script, compressed; the library that ships it need not be imported for that.

    Raises:
        ConfigError: it is not installed, or has no script.
    """
    found = importlib.util.find_spec("plotly")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / "package_data" / "plotly.min.js"
        if path.is_file():
            return _compressed(path.read_bytes())
    raise ConfigError("format='html' needs plotly, which draws the page's pictures; pip install plotly")


def _compressed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 7, mtime=0)).decode()


def _embedded(pictures: Sequence[Path]) -> tuple[list[dict[str, str]], str]:
    room = MOST_PICTURES
    embedded = []
    for path in pictures:
        content = path.read_bytes()
        if len(content) <= room:
            room -= len(content)
            embedded.append({"name": path.stem, "data": base64.b64encode(content).decode()})
    more = len(pictures) - len(embedded)
    return embedded, f"{more} more pictures are files in the report's folder (--format png)." if more else ""


def _board(board: Board, columns: Sequence[Column]) -> dict[str, Any]:
    rows = []
    for row in board.rows:
        if not any(column.key in row.cells for column in columns):
            continue
        cells = []
        for column in columns:
            value, difference = cell_text(row, column)
            against = row.against.get(column.key)
            cells.append(_cell(value, difference, against, best=is_best(board, row, column)))
        rows.append({"names": row_names(board, row), "cells": cells})
    return {"heads": [column.title.split("\n") for column in columns], "rows": rows}


def _differences(table: Differences) -> dict[str, Any]:
    rows = [
        {"names": names, "cells": [_cell("" if c else text, text if c else "", c) for text, c in cells]}
        for names, cells in table.rows
    ]
    return {"title": table.title, "heads": [column.title.split("\n") for column in table.columns], "rows": rows}


def _cell(value: str, difference: str, against: Comparison | None, best: bool = False) -> dict[str, Any]:
    verdict = against.verdict if against else ""
    title = _verdict(against) if against else ""
    return {"value": value, "difference": difference, "best": best, "verdict": verdict, "title": title}


def _verdict(comparison: Comparison) -> str:
    text = f"{comparison.verdict}, p = {comparison.p_value:.2g} (over {comparison.test.replace('+', ' and ')})"
    return f"{text}; its spread over seeds is unknown" if comparison.spread_unknown else text


def _frame(table: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": table.astype(str).to_numpy().tolist()}
