"""Tables for the terminal, as wide as it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from textwrap import wrap

import pandas as pd
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from krossfuse.report.board import Board, Column, Key, Row
from krossfuse.report.cells import cell_text, is_best, notes_for, row_names
from krossfuse.report.differences import Differences, differences
from krossfuse.report.few_shot import few_shot_table
from krossfuse.results.significance import Verdict

VERDICT_STYLE: dict[Verdict, str] = {"better": "green", "worse": "red", "different": "", "no difference shown": "dim"}

METHOD_WIDTH = 44
"""Characters at which the name of a method is wrapped at the latest, so that measurements have room beside it."""

MOST_ROWS = 40
"""Rows of a board that are printed."""

PIPED_WIDTH = 120
"""Characters of a line where standard output is no terminal and COLUMNS does not say."""

ELSEWHERE = "krossfuse report FOLDER writes all of it: report.html to explore, results.csv to compute with"


def make_console() -> Console:
    """Return a console on standard output: as wide as COLUMNS says, or the terminal is, or :data:`PIPED_WIDTH`."""
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdigit() and int(asked) > 0 else None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(width=width)


def print_boards(
    boards: Sequence[Board], console: Console | None = None, further: Sequence[Sequence[Board]] = ()
) -> None:
    """Print every board as one table, and the few-shot table.

    Args:
        boards: to print.
        console: where to; None: a new one on standard output.
        further: of each board, the same compared with other baselines: their differences are printed.
    """
    console = console or make_console()
    width = min(console.width, 140)
    for number, board in enumerate(boards):
        for item in terminal_table(board.best_rows(MOST_ROWS), width=width):
            console.print(item)
        for other in further[number] if further else ():
            if (table := differences(other.best_rows(MOST_ROWS))) is not None:
                console.print()
                for item in difference_terminal(table, width):
                    console.print(item)
    for item in few_shot_terminal([board.best_rows(MOST_ROWS) for board in boards]):
        console.print(item)


def terminal_table(board: Board, columns: Sequence[Column] | None = None, width: int = 120) -> list[RenderableType]:
    """Return the board as one table no wider than ``width`` characters, and the notes under it.

    Where not all measurements have room, differences go under their values; then every probe's first measurement is
    shown before any second one, and a line says which are left out.
    """
    columns = board.primary() if columns is None else list(columns)
    names = [row_names(board, row) for row in board.rows]
    heads = ["method", "dim", *board.numbers]
    cells = {c.key: [_cell(board, row, c) for row in board.rows] for c in columns}
    lead = _lead_widths(heads, names, width)
    shown = _fitting(columns, {c.key: _width(c.title, cells[c.key]) for c in columns}, width - sum(lead))
    if len(shown) < len(columns):
        cells = {c.key: [_cell(board, row, c, stacked=True) for row in board.rows] for c in columns}
        shown = _fitting(columns, {c.key: _width(c.title, cells[c.key]) for c in columns}, width - sum(lead))
    there = [i for i, row in enumerate(board.rows) if any(column.key in row.cells for column in shown)]
    table = _new_table(board.title, heads)
    for column in shown:
        table.add_column(Text(column.title), justify="right")
    for i in there:
        # Names from outside are texts: Rich would read markup in them.
        table.add_row(*_names(names[i], lead[0] - 2), *(cells[column.key][i] for column in shown))
    left_out = [column.name for column in columns if column not in shown]
    notes = [*_left_out(left_out, board), *(notes_for(board, shown) if shown else [])]
    return [table, *(Text(note, style="dim") for note in notes)]


def difference_terminal(table: Differences, width: int = 120) -> list[RenderableType]:
    """Return a table of differences as one table no wider than ``width`` characters, and what it leaves out."""
    lead = _lead_widths(table.heads, [names for names, _ in table.rows], width)
    places = {column.key: i for i, column in enumerate(table.columns)}
    texts = {column.key: [cells[i][0] for _, cells in table.rows] for i, column in enumerate(table.columns)}
    widths = {column.key: _width(column.title, list(map(Text, texts[column.key]))) for column in table.columns}
    shown = _fitting(table.columns, widths, width - sum(lead))
    printed = _new_table(table.title, table.heads)
    for column in shown:
        printed.add_column(Text(column.title), justify="right")
    for names, cells in table.rows:
        own = [cells[places[column.key]] for column in shown]
        styled = (Text(text, VERDICT_STYLE[made.verdict] if made else "") for text, made in own)
        printed.add_row(*_names(names, lead[0] - 2), *styled)
    left_out = [column.name for column in table.columns if column not in shown]
    return [printed, *(Text(note, style="dim") for note in _left_out(left_out, None))]


def few_shot_terminal(boards: Sequence[Board]) -> list[RenderableType]:
    """Return the few-shot table for the terminal; empty where nothing was measured so."""
    table = few_shot_table([board for board in boards if board.few_shot])
    if table.empty:
        return []
    printed = RichTable(title="Few-shot accuracy", box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for name in table.columns:
        printed.add_column(Text(str(name)), justify="left" if name in ("method", "training") else "right")
    previous = None
    for values in table.astype(str).itertuples(index=False):
        if previous is not None and values[0] != previous:
            printed.add_section()
        printed.add_row(*map(Text, ["" if values[0] == previous else values[0], *values[1:]]))
        previous = values[0]
    notes = [note for board in boards if board.few_shot for note in notes_for(board, board.few_shot)]
    shown = [note for note in notes if note.startswith(("±", "†", "More seeds"))]
    return [printed, *(Text(note, style="dim") for note in dict.fromkeys(shown))]


def print_frame(table: pd.DataFrame, title: str, console: Console) -> None:
    """Print a data frame of texts, the first :data:`MOST_ROWS` of it."""
    printed = RichTable(title=Text(title), box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for name in table.columns:
        printed.add_column(Text(str(name)))
    for values in table.head(MOST_ROWS).astype(str).itertuples(index=False):
        printed.add_row(*map(Text, values))
    console.print(printed)
    if len(table) > MOST_ROWS:
        console.print(Text(f"and {len(table) - MOST_ROWS} more", style="dim"))


def _cell(board: Board, row: Row, column: Column, *, stacked: bool = False) -> Text:
    value, difference = cell_text(row, column)
    text = Text(value)
    if is_best(board, row, column):
        text.stylize("bold")
    if difference:
        style = VERDICT_STYLE[row.against[column.key].verdict]
        text.append(f"\n{difference}" if stacked else f" {difference}", style)
    return text


def _new_table(title: str, heads: Sequence[str]) -> RichTable:
    table = RichTable(
        title=Text(title), box=box.SIMPLE_HEAD, title_style="bold", title_justify="left", header_style="",
        collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if i else "left", no_wrap=i < 2)
    return table


def _names(names: Sequence[str], width: int) -> list[Text]:
    """Return the first cells of a row; a long name is wrapped here, since Rich would rather narrow measurements."""
    return [Text("\n".join(wrap(names[0], width)) or names[0]), *map(Text, names[1:])]


def _lead_widths(heads: Sequence[str], names: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the widths of the first columns with the room between them; of the first no more than 2 of 5 parts."""
    most = max(12, min(METHOD_WIDTH, width * 2 // 5))
    widths = []
    for i, head in enumerate(heads):
        lines = (line for row in names for line in (wrap(row[0], most) if i == 0 else [row[i]]))
        widths.append(2 + max([_words(head), *map(len, lines)]))
    return widths


def _width(title: str, cells: Sequence[Text]) -> int:
    """Return the width of a column with the room before it: a heading is wrapped between its words, a cell never is."""
    return 2 + max([_words(title), *(len(line) for cell in cells for line in cell.plain.split("\n"))])


def _words(title: str) -> int:
    """Return the length of the longest word, at which a heading is wrapped."""
    return max(len(word) for line in title.split("\n") for word in line.split(" "))


def _fitting(columns: Sequence[Column], widths: Mapping[Key, int], room: int) -> list[Column]:
    """Return the columns that fit, each probe's first before any second one, in their own order; at least one."""
    turns: dict[str, int] = {}
    ranked = []
    for place, column in enumerate(columns):
        turns[column.probe] = turns.get(column.probe, -1) + 1
        ranked.append((turns[column.probe], place, column))
    kept: list[Column] = []
    for _, _, column in sorted(ranked, key=lambda one: one[:2]):
        if kept and widths[column.key] > room:
            break
        room -= widths[column.key]
        kept.append(column)
    return [column for column in columns if column in kept]


def _left_out(names: Sequence[str], board: Board | None) -> list[str]:
    """Say what a table has no room for, and where it is."""
    parts = []
    if names:
        shown = "; ".join(names[:6]) + (f"; and {len(names) - 6} more" if len(names) > 6 else "")
        parts.append(f"No room here for {shown}")
    if board is not None and board.part:
        parts.append(f"These are {board.part}")
    return [f"{'. '.join(parts)}: {ELSEWHERE}"] if parts else []
