"""Tables for the terminal, as wide as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from textwrap import wrap

import pandas as pd
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from krossfuse.report.boards import Board, Column, Row
from krossfuse.report.cells import cell_text, is_best, notes_for, row_names
from krossfuse.report.differences import Differences, differences
from krossfuse.report.few_shot import few_shot_table
from krossfuse.results.significance import Verdict

VERDICT_STYLE: dict[Verdict, str] = {"better": "green", "worse": "red", "different": "", "no difference shown": "dim"}


METHOD_WIDTH = 44
"""Characters at which the name of a method is wrapped, so that measurements have room beside it."""


def make_console() -> Console:
    """Return a console on standard output, 120 characters wide where that is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120)


def print_boards(
    boards: Sequence[Board], console: Console | None = None, further: Sequence[Sequence[Board]] = ()
) -> None:
    """Print every board and the few-shot table; wide boards as several tables.

    Args:
        boards: to print.
        console: where to; None: a new one on standard output.
        further: of each board, the same compared with other baselines: their differences are printed.
    """
    console = console or make_console()
    width = min(console.width, 140)
    for number, board in enumerate(boards):
        for item in terminal_tables(board, width=width):
            console.print(item)
        for other in further[number] if further else ():
            if (table := differences(other)) is not None:
                console.print()
                for item in difference_terminal(table, width):
                    console.print(item)
    for item in few_shot_terminal(boards):
        console.print(item)


def terminal_tables(board: Board, columns: Sequence[Column] | None = None, width: int = 120) -> list[RenderableType]:
    """Return the board as tables no wider than ``width`` characters, and the notes under them."""
    columns = board.primary() if columns is None else list(columns)
    tables: list[RenderableType] = []
    for number, chunk in enumerate(_chunks(board, columns, width)):
        table = RichTable(
            title=Text(board.title if number == 0 else f"{board.title} (continued)"),
            box=box.SIMPLE_HEAD,
            title_style="bold",
            title_justify="left",
            header_style="",
            collapse_padding=True,
            pad_edge=False,
        )
        table.add_column("method", no_wrap=True)
        table.add_column("dim", justify="right", no_wrap=True)
        for key in board.numbers:
            table.add_column(Text(key), justify="right")
        for column in chunk:
            table.add_column(Text(column.title), justify="right")
        for row in board.rows:
            if any(column.key in row.cells for column in chunk):
                # Names from outside are texts: Rich would read markup in them.
                table.add_row(*_names(row_names(board, row)), *(_cell(board, row, column) for column in chunk))
        tables.append(table)
    if columns:
        tables += [Text(note, style="dim") for note in notes_for(board, columns)]
    return tables


def difference_terminal(table: Differences, width: int = 120) -> list[RenderableType]:
    """Return a table of differences as tables no wider than ``width`` characters."""
    lead = [2 + _lead(head, [names[i] for names, _ in table.rows]) for i, head in enumerate(table.heads)]
    tables: list[RenderableType] = []
    first = 0
    while first < len(table.columns):
        used, last = sum(lead), first
        while last < len(table.columns):
            cells = (len(cells[last][0]) for _, cells in table.rows)
            used += 2 + max(*cells, _words(table.columns[last].title))
            if used > width and last > first:
                break
            last += 1
        title = table.title if first == 0 else f"{table.title} (continued)"
        printed = RichTable(
            title=Text(title), box=box.SIMPLE_HEAD, title_style="bold", title_justify="left", header_style="",
            collapse_padding=True, pad_edge=False,
        )  # fmt: skip
        for i, head in enumerate(table.heads):
            printed.add_column(Text(head), justify="right" if i else "left", no_wrap=i < 2)
        for column in table.columns[first:last]:
            printed.add_column(Text(column.title), justify="right")
        for names, of_row in table.rows:
            styled = (Text(text, VERDICT_STYLE[c.verdict] if c else "") for text, c in of_row[first:last])
            printed.add_row(*_names(names), *styled)
        tables.append(printed)
        first = last
    return tables


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
    """Print a data frame of texts."""
    printed = RichTable(title=Text(title), box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for name in table.columns:
        printed.add_column(Text(str(name)))
    for values in table.astype(str).itertuples(index=False):
        printed.add_row(*map(Text, values))
    console.print(printed)


def _cell(board: Board, row: Row, column: Column) -> Text:
    value, difference = cell_text(row, column)
    text = Text(value)
    if is_best(board, row, column):
        text.stylize("bold")
    if difference:
        text.append(f" {difference}", VERDICT_STYLE[row.against[column.key].verdict])
    return text


def _names(names: Sequence[str]) -> list[Text]:
    """Return the first cells of a row; a long name is wrapped here, since Rich would rather narrow measurements."""
    return [Text("\n".join(wrap(names[0], METHOD_WIDTH)) or names[0]), *map(Text, names[1:])]


def _lead(head: str, texts: Sequence[str]) -> int:
    """Return the width of one of the first columns, of which the first is wrapped where it is long."""
    lines = (line for text in texts for line in (wrap(text, METHOD_WIDTH) if head == "method" else [text]))
    return max(_words(head), *map(len, lines))


def _words(title: str) -> int:
    """Return the length of the longest word, at which a heading is wrapped."""
    return max(len(word) for line in title.split("\n") for word in line.split(" "))


def _chunks(board: Board, columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """Split columns over as many tables as the width asks for."""
    heads = ["method", "dim", *board.numbers]
    leads = zip(*(row_names(board, row) for row in board.rows), strict=True)
    lead = sum(2 + _lead(head, texts) for head, texts in zip(heads, leads, strict=True))
    chunk: list[Column] = []
    used = lead
    for column in columns:
        cells = [len(" ".join(cell_text(row, column)).strip()) for row in board.rows]
        # A long heading is wrapped between its words; a cell never is.
        need = 2 + max(*cells, _words(column.title))
        if chunk and used + need > width:
            yield chunk
            chunk, used = [], lead
        chunk.append(column)
        used += need
    if chunk:
        yield chunk
