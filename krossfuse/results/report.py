"""``krossfuse report FOLDER``: tables, pictures and one HTML page again from any run or sweep, nothing recomputed."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from krossfuse.results.aggregate import aggregate
from krossfuse.results.records import ResultsError, Run, read_runs
from krossfuse.results.tables import (
    Board,
    boards,
    few_shot_table,
    long_table,
    markdown_frame,
    markdown_table,
    print_boards,
    save_csv,
)


def report(folder: str | Path, out: str | Path | None = None, *, console: Console | None = None) -> list[Path]:
    """Rebuild the tables of a run or sweep folder.

    Args:
        folder: of a run or a sweep.
        out: where the files go; ``folder/report`` if None.
        console: where the tables are printed.

    Returns:
        the files that were written.

    Raises:
        ResultsError: no such folder, no results in it, or a damaged file.
    """
    runs = read_runs(folder)
    console = console or Console()
    unfinished = [run for run in runs if run.state != "finished"]
    if not any(run.records for run in runs):
        raise ResultsError(f"no figures in {folder}: {_states(unfinished) or 'its runs measured nothing'}")
    table, notes = aggregate(runs)
    found = boards(table)
    target = Path(folder) / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    written = _write_tables(found, target)
    print_boards(found, console)
    if unfinished:
        notes.append(f"not finished: {_states(unfinished)}")
    for note in notes:
        console.print(note, style="yellow")
    return written


def _states(runs: list[Run]) -> str:
    return "; ".join(f"{run.name} {run.state}" + (f" ({run.error})" if run.error else "") for run in runs)


def _write_tables(found: list[Board], target: Path) -> list[Path]:
    written = [target / "results.csv", target / "results.md"]
    save_csv(long_table(found), written[0])
    few = few_shot_table(found)
    text = "\n".join(markdown_table(board) for board in found)
    if not few.empty:
        text += f"\n### Few-shot accuracy\n\n{markdown_frame(few)}\n"
        save_csv(few, target / "few_shot.csv")
        written.append(target / "few_shot.csv")
    written[1].write_text(text, encoding="utf-8")
    return written


def main(argv: list[str] | None = None) -> int:
    """Run ``krossfuse report FOLDER [--out DIR]``."""
    parser = argparse.ArgumentParser(prog="krossfuse report", description=__doc__)
    parser.add_argument("folder", help="folder of a run or of a sweep")
    parser.add_argument("--out", help="where the report goes (default: FOLDER/report)")
    arguments = parser.parse_args(argv)
    report(arguments.folder, arguments.out)
    return 0
