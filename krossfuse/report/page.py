"""``krossfuse report FOLDER``: tables, pictures and one HTML page again from any run or sweep, nothing recomputed."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.files import write_whole
from krossfuse.report.boards import Board, boards
from krossfuse.report.contests import contest_table, contest_title, lost_table
from krossfuse.report.differences import differences
from krossfuse.report.few_shot import few_shot_table
from krossfuse.report.files import comparison_table, long_table, markdown_differences, markdown_frame, markdown_table
from krossfuse.report.html import html_page
from krossfuse.report.pictures import FORMATS as PICTURE_FORMATS
from krossfuse.report.pictures import KINDS, OPTIONAL, save_pictures
from krossfuse.report.reference import SOURCE, paper_beside_measured
from krossfuse.report.terminal import make_console, print_boards, print_frame
from krossfuse.results.aggregate import aggregate
from krossfuse.results.errors import ResultsError
from krossfuse.results.runs import Run, read_runs

FORMATS = ("terminal", "csv", "md", "html", *PICTURE_FORMATS)
DEFAULT_FORMATS = ("terminal", "csv", "md", "html", "png")
DEFAULT_PICTURES = tuple(kind for kind in KINDS if kind not in OPTIONAL)


def report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    pictures: Sequence[str] = DEFAULT_PICTURES,
    baseline: str | int | Sequence[str | int] | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Rebuild the tables and pictures of a run or sweep folder from what is recorded in it.

    Files: ``results.csv`` (every aggregated measurement), ``results.md``, ``few_shot.csv``, ``paper.csv``,
    ``contests.csv`` (wins and losses of the baseline over several data sets) and ``comparisons.csv`` where there is
    something for them, the pictures, and ``report.html``, one page with all of it that needs nothing else.

    Args:
        folder: of a run or a sweep.
        out: where the files go; ``folder/report`` if None.
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
    runs = read_runs(folder)
    unfinished = [run for run in runs if run.state != "finished"]
    if not any(run.records for run in runs):
        raise ResultsError(f"no measurements in {folder}: {_states(unfinished) or 'its runs measured nothing'}")
    table, notes = aggregate(runs)
    made, further = _compared(table, runs, baseline, notes)
    paper = paper_beside_measured(made)
    if unfinished:
        notes.append(f"not finished, so measurements may be missing: {_states(unfinished)}")
    target = Path(folder) / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    if "terminal" in formats:
        _print(made, further, paper, notes, console or make_console())
    written = _write_tables(made, further, paper, target, formats)
    kinds_of_picture = [name for name in formats if name in PICTURE_FORMATS]
    if kinds_of_picture:
        written += save_pictures(made, runs, target, kinds=pictures, formats=kinds_of_picture)
    if "html" in formats:
        drawn = [path for path in written if path.suffix == ".png"]
        with tempfile.TemporaryDirectory() as scratch:
            if "png" not in formats:
                drawn = save_pictures(made, runs, scratch, kinds=pictures)
            page = target / "report.html"
            write_whole(
                page, html_page(Path(folder), runs, made, paper, notes, drawn, further, _contests(made)).encode()
            )
        written.append(page)
    return written


def _compared(
    table: pd.DataFrame, runs: Sequence[Run], baseline: str | int | Sequence[str | int] | None, notes: list[str]
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
            by_name.append(boards(table, name))
        except ConfigError as error:
            if baseline is not None:
                raise
            notes.append(str(error))
            continue
        if missing := [board.data for board in by_name[-1] if board.baseline is None]:
            notes.append(f"no row {name!r} to compare with on {', '.join(missing)}")
    made = by_name[0] if by_name else boards(table)
    return made, [list(others) for others in zip(*by_name[1:], strict=True)] or [[] for _ in made]


def _contests(made: Sequence[Board]) -> list[tuple[str, pd.DataFrame]]:
    """Return, by title, the wins and losses of the baseline over several data sets, where there are several."""
    wins = contest_table(made)
    if wins.empty:
        return []
    lost = lost_table(made)
    return [(contest_title(made), wins), *([("Where another is better", lost)] if len(lost) else [])]


def _states(runs: Iterable[Run]) -> str:
    return "; ".join(f"{run.name} {run.state}" + (f" ({run.error})" if run.error else "") for run in runs)


def _print(
    made: Sequence[Board],
    further: Sequence[Sequence[Board]],
    paper: pd.DataFrame,
    notes: Sequence[str],
    console: Console,
) -> None:
    print_boards(made, console, further)
    for title, frame in _contests(made):
        print_frame(frame, title, console)
    if len(paper):
        print_frame(paper, f"Paper ({SOURCE}) beside measured", console)
    for note in notes:
        console.print(Text(note, style="yellow"))


def _write_tables(
    made: Sequence[Board],
    further: Sequence[Sequence[Board]],
    paper: pd.DataFrame,
    target: Path,
    formats: Sequence[str],
) -> list[Path]:
    few = few_shot_table(made)
    frames = {"results": long_table(made), "few_shot": few, "paper": paper, "contests": contest_table(made)}
    if any(further):
        frames["comparisons"] = comparison_table([*made, *(other for others in further for other in others)])
    written = []
    if "csv" in formats:
        for name, frame in frames.items():
            if len(frame):
                written.append(target / f"{name}.csv")
                frame.to_csv(written[-1], index=False)
    if "md" in formats:
        parts = []
        for board, others in zip(made, further, strict=True):
            parts.append(markdown_table(board))
            parts += [markdown_differences(t) for other in others if (t := differences(other)) is not None]
        parts += [f"### {title}\n\n{markdown_frame(frame)}\n" for title, frame in _contests(made)]
        if len(few):
            parts.append(f"### Few-shot accuracy\n\n{markdown_frame(few)}\n")
        if len(paper):
            parts.append(f"### Paper ({SOURCE}) beside measured\n\n{markdown_frame(paper)}\n")
        written.append(target / "results.md")
        write_whole(written[-1], "\n".join(parts).encode())
    return written


def main(argv: list[str] | None = None) -> int:
    """Run ``krossfuse report FOLDER [--out DIR] [--format ...] [--figures ...] [--baseline ROW]``."""
    parser = argparse.ArgumentParser(
        prog="krossfuse report",
        description="Tables, pictures and one HTML page again from a run or sweep folder; nothing is recomputed.",
    )
    parser.add_argument("folder", help="folder of a run or of a sweep")
    parser.add_argument("--out", help="where the files go (default: FOLDER/report)")
    parser.add_argument(
        "--format",
        nargs="+",
        default=list(DEFAULT_FORMATS),
        metavar="FORMAT",
        help=f"of {', '.join(FORMATS)} (default: {' '.join(DEFAULT_FORMATS)})",
    )
    parser.add_argument(
        "--figures",
        "--pictures",
        dest="pictures",
        nargs="+",
        default=list(DEFAULT_PICTURES),
        metavar="KIND",
        help=f"of {', '.join(KINDS)} (default: all but {' and '.join(OPTIONAL)}, which take longer)",
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        metavar="ROW",
        help="name or number (from 1, in the order printed) of the row that the others are compared with, or several: "
        'the others each in a table of differences, e.g. "Concatenation" 2 (default: report.baselines of the runs\' '
        "configuration, or the cross-modal encoder alone)",
    )
    arguments = parser.parse_args(argv)
    if not arguments.folder.strip():
        raise ConfigError("krossfuse report: the folder is empty; was a variable not set?")
    console = make_console()
    written = report(
        arguments.folder,
        arguments.out,
        formats=arguments.format,
        pictures=arguments.pictures,
        baseline=arguments.baseline,
        console=console,
    )
    if written:
        console.print(f"{len(written)} files in {written[0].parent}", style="dim")
    return 0
