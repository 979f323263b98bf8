"""Tables, pictures and one HTML page again from any runs or sweeps, nothing recomputed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from krossfuse.core.collector import uncollected
from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.files import write_whole
from krossfuse.report.board import Board
from krossfuse.report.boards import arranged, compare_with, with_baseline
from krossfuse.report.contests import contest_table, contest_title, lost_table
from krossfuse.report.dashboard.page import html_page
from krossfuse.report.dashboard.payload import payload
from krossfuse.report.differences import differences
from krossfuse.report.few_shot import few_shot_table
from krossfuse.report.files import comparison_table, long_table, markdown_differences, markdown_frame, markdown_table
from krossfuse.report.pictures import FORMATS as PICTURE_FORMATS
from krossfuse.report.pictures import KINDS, OPTIONAL, save_pictures
from krossfuse.report.reference import SOURCE, paper_beside_measured
from krossfuse.report.terminal import make_console, print_boards, print_frame
from krossfuse.results.aggregate import cells
from krossfuse.results.errors import ResultsError
from krossfuse.results.index import RunIndex, open_runs
from krossfuse.results.runs import Run

FORMATS = ("terminal", "csv", "md", "html", *PICTURE_FORMATS)
DEFAULT_FORMATS = ("terminal", "csv", "md", "html", "png")
MOST_ROWS = 200
"""Rows of a board in what is written for people to read; ``results.csv`` and the page have all."""
MOST_STATES, MOST_ERROR = 20, 500
"""Runs of which a note says how they ended, and characters of what each says."""
DEFAULT_PICTURES = tuple(kind for kind in KINDS if kind not in OPTIONAL)


@dataclass
class Findings:
    """What is reported of some runs.

    Attributes:
        title: of the report.
        runs: all of them.
        made: their boards, compared with the first baseline.
        further: of each board, the same compared with the other baselines.
        notes: warnings.
    """

    title: str
    runs: list[Run]
    made: list[Board]
    further: list[list[Board]]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def contests(self) -> list[tuple[str, pd.DataFrame]]:
        """Wins and losses of the baseline over several data sets, by title: the first rows of each table."""
        return _contests(self.made)


def report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    pictures: Sequence[str] = DEFAULT_PICTURES,
    baseline: str | int | Sequence[str | int] | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Rebuild the tables and pictures of run or sweep folders from what is recorded in them.

    Files: ``results.csv`` (every aggregated measurement), ``results.md``, ``few_shot.csv``, ``paper.csv``,
    ``contests.csv`` (wins and losses of the baseline over several data sets) and ``comparisons.csv`` where there is
    something for them, the pictures, and ``report.html``, one page to explore all of it that needs nothing else.

    Args:
        folders: of a run or a sweep, or several of them, reported together.
        out: where the files go; ``report`` in the folder if None, or where one stands if there are several folders.
        formats: of :data:`FORMATS`.
        pictures: kinds of ``pictures.KINDS``.
        baseline: name or number of the row that the others are compared with, or several: the first in the main table,
            each other one in a table of differences of its own (all of them in ``comparisons.csv``). None: as the runs'
            configuration says (``report.baselines``), else the cross-modal encoder alone.
        console: where the tables are printed.

    Returns:
        the files that were written.

    Raises:
        ResultsError: no such folder, no results in it, or a damaged file.
        ConfigError: an unknown format or kind of picture, or no such row.
    """
    for name in formats:
        check_choice("format", name, FORMATS)
    for kind in pictures:
        check_choice("figures", kind, KINDS)
    places = [folders] if isinstance(folders, str | Path) else list(folders)
    with uncollected(), open_runs(places) as (runs, index):
        found = find(runs, index, title=report_title(places), baseline=baseline)
        target = Path(out) if out is not None else Path(places[0], "report") if len(places) == 1 else Path("report")
        paper = paper_beside_measured([board.best_rows(MOST_ROWS) for board in found.made])
        target.mkdir(parents=True, exist_ok=True)
        if "terminal" in formats:
            print_findings(found, paper, console or make_console())
        written = _write_tables(found, paper, target, formats)
        kinds_of_picture = [name for name in formats if name in PICTURE_FORMATS]
        if kinds_of_picture:
            written += save_pictures(found.made, runs, target, kinds=pictures, formats=kinds_of_picture)
        if "html" in formats:
            written.append(
                _write_page(found, paper, target, [p for p in written if p.suffix == ".png"], formats, pictures)
            )
        return written


def find(
    runs: list[Run], index: RunIndex, *, title: str, baseline: str | int | Sequence[str | int] | None = None
) -> Findings:
    """Return what is reported of some runs.

    Raises:
        ResultsError: they measured nothing.
        ConfigError: no such row to compare with.
    """
    unfinished = [run for run in runs if run.state != "finished"]
    if not any(run.records for run in runs):
        raise ResultsError(f"no measurements in {title}: {_states(unfinished) or 'its runs measured nothing'}")
    table, notes = cells(runs, index)
    made, further = _compared(arranged(table), runs, baseline, notes, index)
    if unfinished:
        notes.append(f"not finished, so measurements may be missing: {_states(unfinished)}")
    return Findings(f"KrossFuse: {title}", runs, made, further, notes)


def report_title(places: Sequence[str | Path]) -> str:
    """Return the names of the folders that are reported."""
    return ", ".join(Path(place).resolve().name for place in places)


def _compared(
    plain: list[Board],
    runs: Sequence[Run],
    baseline: str | int | Sequence[str | int] | None,
    notes: list[str],
    index: RunIndex,
) -> tuple[list[Board], list[list[Board]]]:
    """Return the boards; and of each, the same compared with the second baseline, the third, ...

    What the user asks for now must be there; a row that a configuration names may be missing, and is noted.
    """
    recorded = next((names for run in runs if (names := (run.config.get("report") or {}).get("baselines"))), None)
    wanted = recorded if baseline is None else baseline
    names = [wanted] if isinstance(wanted, str | int) else list(wanted or [])
    by_name: list[list[Board]] = []
    for name in names:
        try:
            by_name.append(with_baseline(plain, name, index))
        except ConfigError as error:
            if baseline is not None:
                raise
            notes.append(str(error))
            continue
        if missing := [board.data for board in by_name[-1] if board.baseline is None]:
            notes.append(f"no row {name!r} to compare with on {', '.join(missing)}")
    made = by_name[0] if by_name else [compare_with(board, board.parent, index=index) for board in plain]
    return made, [list(others) for others in zip(*by_name[1:], strict=True)] or [[] for _ in made]


def _contests(made: Sequence[Board]) -> list[tuple[str, pd.DataFrame]]:
    """Return, by title, the wins and losses of the baseline over several data sets, where there are several."""
    wins = contest_table(made)
    if wins.empty:
        return []
    lost = lost_table(made)
    tables = []
    for title, frame in ((contest_title(made), wins), ("Where another is better", lost)):
        if len(frame):
            part = f": the first {MOST_ROWS} of {len(frame)}" if len(frame) > MOST_ROWS else ""
            tables.append((title + part, frame.head(MOST_ROWS)))
    return tables


def _states(runs: Sequence[Run]) -> str:
    """Say how some runs ended, the first :data:`MOST_STATES` of them."""
    told = "; ".join(
        f"{run.name} {run.state}" + (f" ({run.error[:MOST_ERROR]})" if run.error else "") for run in runs[:MOST_STATES]
    )
    return told + (f"; and {len(runs) - MOST_STATES} more" if len(runs) > MOST_STATES else "")


def print_findings(found: Findings, paper: pd.DataFrame, console: Console) -> None:
    """Print the tables, the notes, and what stands elsewhere."""
    print_boards(found.made, console, found.further)
    for title, frame in found.contests:
        print_frame(frame, title, console)
    if len(paper):
        print_frame(paper, f"Paper ({SOURCE}) beside measured", console)
    for note in found.notes:
        console.print(Text(note, style="yellow"))


def _write_page(
    found: Findings,
    paper: pd.DataFrame,
    target: Path,
    drawn: list[Path],
    formats: Sequence[str],
    pictures: Sequence[str],
) -> Path:
    content = payload(found.title, found.runs, found.made, found.notes, found.further)
    page = target / "report.html"
    with tempfile.TemporaryDirectory() as scratch:
        if "png" not in formats:
            drawn = save_pictures(found.made, found.runs, scratch, kinds=pictures)
        html = html_page(content, found.made, paper, drawn, found.further, found.contests)
    write_whole(page, html.encode())
    return page


def _write_tables(found: Findings, paper: pd.DataFrame, target: Path, formats: Sequence[str]) -> list[Path]:
    made, further = found.made, found.further
    written = []
    if "csv" in formats:
        frames = {"results": long_table(made), "few_shot": few_shot_table(made), "paper": paper}
        frames["contests"] = contest_table(made)
        if any(further):
            frames["comparisons"] = comparison_table([*made, *(other for others in further for other in others)])
        for name, frame in frames.items():
            if len(frame):
                written.append(target / f"{name}.csv")
                frame.to_csv(written[-1], index=False)
    if "md" in formats:
        written.append(target / "results.md")
        write_whole(written[-1], _markdown(found, paper).encode())
    return written


def _markdown(found: Findings, paper: pd.DataFrame) -> str:
    parts = []
    for board, others in zip(found.made, found.further, strict=True):
        parts.append(markdown_table(board.best_rows(MOST_ROWS)))
        for other in others:
            if (table := differences(other.best_rows(MOST_ROWS))) is not None:
                parts.append(markdown_differences(table))
    parts += [f"### {title}\n\n{markdown_frame(frame)}\n" for title, frame in found.contests]
    few = few_shot_table([board.best_rows(MOST_ROWS) for board in found.made])
    if len(few):
        parts.append(f"### Few-shot accuracy\n\n{markdown_frame(few)}\n")
    if len(paper):
        parts.append(f"### Paper ({SOURCE}) beside measured\n\n{markdown_frame(paper)}\n")
    return "\n".join(parts)
