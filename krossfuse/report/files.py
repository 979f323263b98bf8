"""The tables as files: markdown, and one long CSV."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from krossfuse.report.board import Board, Column
from krossfuse.report.cells import cell_text, is_best, notes_for, row_names
from krossfuse.report.differences import Differences
from krossfuse.results.aggregate import MEASURE
from krossfuse.results.records import LINE_FIELDS


def escape(text: str) -> str:
    r"""Return a text that markdown shows as it is: no HTML, no emphasis, no link, no cell of its own.

    >>> escape("<b>a|b</b> *c*")
    '&lt;b&gt;a\\|b&lt;/b&gt; \\*c\\*'
    """
    text = html.escape(text, quote=False)
    # An underscore inside a word is none of markdown's marks, and names are full of them.
    text = re.sub(r"([\\`*\[\]|#~$])|(?<!\w)_|_(?!\w)", lambda match: f"\\{match[0]}", text)
    return re.sub(r"\s*\n\s*", " ", text)


def markdown_table(board: Board, columns: Sequence[Column] | None = None) -> str:
    """Return the board as one markdown table with its notes."""
    columns = board.primary() if columns is None else list(columns)
    titles = ["<br>".join(map(escape, column.title.split("\n"))) for column in columns]
    heads = ["method", "dim", *map(escape, board.numbers), *titles]
    lines = [_row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    for row in board.rows:
        if not any(column.key in row.cells for column in columns):
            continue
        cells = []
        for column in columns:
            value, difference = map(escape, cell_text(row, column))
            if is_best(board, row, column):
                value = f"**{value}**"
            cells.append(f"{value} {difference}".strip())
        lines.append(_row([*map(escape, row_names(board, row)), *cells]))
    notes = (f"{escape(note)}  " for note in notes_for(board, columns))
    return "\n".join([f"### {escape(board.title)}", "", *lines, "", *notes, ""])


def markdown_differences(table: Differences) -> str:
    """Return a table of differences as markdown."""
    titles = ["<br>".join(map(escape, column.title.split("\n"))) for column in table.columns]
    heads = [*map(escape, table.heads), *titles]
    lines = [_row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    lines += [_row([*map(escape, names), *(escape(text) for text, _ in cells)]) for names, cells in table.rows]
    return "\n".join([f"### {escape(table.title)}", "", *lines, ""])


def markdown_frame(table: pd.DataFrame) -> str:
    """Return a data frame of texts as a markdown table."""
    lines = [_row([escape(str(c)) for c in table.columns]), _row(["---"] * len(table.columns))]
    return "\n".join(lines + [_row([escape(str(v)) for v in row]) for row in table.itertuples(index=False)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def comparison_table(boards: Sequence[Board]) -> pd.DataFrame:
    """Return every comparison of boards that differ in their baselines, one a row, with all that tests it."""
    columns = ["data", "pair", "label", "dim", "baseline", *MEASURE, "mean"]
    columns += ["difference", "difference_low", "difference_high", "p_value", "verdict", "test", "seeds_needed"]
    table = long_table(boards)
    return table.loc[table["verdict"] != "", columns] if len(table) else pd.DataFrame(columns=columns)


def long_table(boards: Sequence[Board]) -> pd.DataFrame:
    """Return every aggregated measurement as one row, with its interval and its comparison: what the CSV holds."""
    rows = []
    for board in boards:
        baseline = f"{board.baseline.name} ({board.baseline.dim})" if board.baseline else ""
        for row in board.rows:
            options = {name: row.option(name) for name in LINE_FIELDS}
            for key, cell in row.cells.items():
                against = row.against.get(key)
                rows.append(
                    {name: cell[name] for name in ("data", "pair", "fusion")}
                    | {name: options[name] for name in LINE_FIELDS if name != "C"}
                    | {"dim": cell["dim"], "label": row.label, "C": options["C"]}
                    | {name: row.numbers.get(name, "") for name in board.numbers if name not in LINE_FIELDS}
                    | {"config_digest": cell["config_digest"]}
                    | dict(zip(MEASURE, key, strict=True))
                    | {n: cell[n] for n in ("mean", "low", "high", "half_width", "interval", "n")}
                    | {"seeds": " ".join(map(str, cell["seeds"])), "n_items": cell["n_items"]}
                    | {"spread_unknown": cell["spread_unknown"], "seconds": cell["seconds"]}
                    | {"baseline": baseline}
                    | {
                        "difference": against.difference if against else np.nan,
                        "difference_low": against.low if against else np.nan,
                        "difference_high": against.high if against else np.nan,
                        "p_value": against.p_value if against else np.nan,
                        "verdict": against.verdict if against else "",
                        "test": against.test if against else "",
                        "seeds_needed": against.seeds_needed if against else None,
                    }
                )
    return pd.DataFrame(rows)
