"""``krossfuse report FOLDER``: tables, pictures and one HTML page again from any run or sweep, nothing recomputed."""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console

from krossfuse.core.errors import check_choice
from krossfuse.report.pictures import FORMATS as PICTURES
from krossfuse.report.pictures import KINDS, OPTIONAL, save_figures
from krossfuse.report.reference import SOURCE, paper_beside_measured
from krossfuse.report.tables import (
    Board,
    Column,
    boards,
    cell_text,
    few_shot_table,
    is_best,
    long_table,
    make_console,
    markdown_frame,
    markdown_table,
    notes_for,
    print_boards,
    print_frame,
)
from krossfuse.results.aggregate import CONDITIONS, SUBSET, aggregate
from krossfuse.results.records import ResultsError, Run, read_runs

FORMATS = ("terminal", "csv", "md", "html", *PICTURES)
DEFAULT_FORMATS = ("terminal", "csv", "md", "html", "png")
DEFAULT_FIGURES = tuple(kind for kind in KINDS if kind not in OPTIONAL)


def report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    figures: Sequence[str] = DEFAULT_FIGURES,
    console: Console | None = None,
) -> list[Path]:
    """Rebuild the tables and pictures of a run or sweep folder from what is recorded in it.

    Files: ``results.csv`` (every aggregated figure), ``results.md``, ``few_shot.csv`` and ``paper.csv`` where there is
    something for them, the pictures, and ``report.html``, one page that holds all of it and needs nothing else.

    Args:
        folder: of a run or a sweep.
        out: where the files go; ``folder/report`` if None.
        formats: of :data:`FORMATS`.
        figures: kinds of ``figures.KINDS``.
        console: where the tables are printed.

    Returns:
        the files that were written.

    Raises:
        ResultsError: no such folder, no results in it, or a damaged file.
        ConfigError: an unknown format or kind of figure.
    """
    for name in formats:
        check_choice("format", name, FORMATS)
    for kind in figures:
        check_choice("figures", kind, KINDS)
    runs = read_runs(folder)
    unfinished = [run for run in runs if run.state != "finished"]
    if not any(run.records for run in runs):
        raise ResultsError(f"no figures in {folder}: {_states(unfinished) or 'its runs measured nothing'}")
    table, notes = aggregate(runs)
    found = boards(table)
    paper = paper_beside_measured(found)
    if unfinished:
        notes.append(f"not finished, so figures may be missing: {_states(unfinished)}")
    target = Path(folder) / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    if "terminal" in formats:
        _print(found, paper, notes, console or make_console())
    written = _write_tables(found, paper, target, formats)
    kinds_of_picture = [name for name in formats if name in PICTURES]
    if kinds_of_picture:
        written += save_figures(found, runs, target, kinds=figures, formats=kinds_of_picture)
    if "html" in formats:
        pictures = [path for path in written if path.suffix == ".png"]
        with tempfile.TemporaryDirectory() as scratch:
            if "png" not in formats:
                pictures = save_figures(found, runs, scratch, kinds=figures)
            page = target / "report.html"
            page.write_text(_html(Path(folder), runs, found, paper, notes, pictures), encoding="utf-8")
        written.append(page)
    return written


def _states(runs: Iterable[Run]) -> str:
    return "; ".join(f"{run.name} {run.state}" + (f" ({run.error})" if run.error else "") for run in runs)


def _print(found: Sequence[Board], paper: pd.DataFrame, notes: Sequence[str], console: Console) -> None:
    print_boards(found, console)
    if len(paper):
        print_frame(paper, f"Paper ({SOURCE}) beside measured", console)
    for note in notes:
        console.print(note, style="yellow")


def _write_tables(found: Sequence[Board], paper: pd.DataFrame, target: Path, formats: Sequence[str]) -> list[Path]:
    few = few_shot_table(found)
    frames = {"results": long_table(found), "few_shot": few, "paper": paper}
    written = []
    if "csv" in formats:
        for name, frame in frames.items():
            if len(frame):
                written.append(target / f"{name}.csv")
                frame.to_csv(written[-1], index=False)
    if "md" in formats:
        parts = [markdown_table(board) for board in found]
        if len(few):
            parts.append(f"### Few-shot accuracy\n\n{markdown_frame(few)}\n")
        if len(paper):
            parts.append(f"### Paper ({SOURCE}) beside measured\n\n{markdown_frame(paper)}\n")
        written.append(target / "results.md")
        written[-1].write_text("\n".join(parts), encoding="utf-8")
    return written


# --- HTML -------------------------------------------------------------------------------------------------------


def _html(
    folder: Path,
    runs: Sequence[Run],
    found: Sequence[Board],
    paper: pd.DataFrame,
    notes: Sequence[str],
    pictures: Sequence[Path],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    records = [record for run in runs for record in run.records]
    seeds = sorted({record.seed for record in records})
    return environment.get_template("report.html.j2").render(
        title=f"KrossFuse: {folder.resolve().name}",
        summary=f"{len(runs)} runs, {len(records)} recorded figures, seeds {', '.join(map(str, seeds))}",
        warnings=notes,
        boards=[
            {
                "title": board.title,
                "notes": notes_for(board, board.primary()),
                "main": _board(board, board.primary()),
                "all": _board(board, board.columns),
            }
            for board in found
        ],
        few_shot=_frame(few_shot_table(found)),
        paper=_frame(paper),
        source=SOURCE,
        figures=[{"name": p.stem, "data": base64.b64encode(p.read_bytes()).decode()} for p in pictures],
        runs=_frame(_run_table(runs)),
        methods=list(_methods(found)),
        protocols=list(_protocols(found)),
        versions=_versions(runs),
    )


def _board(board: Board, columns: Sequence[Column]) -> dict[str, Any]:
    rows = []
    for row in board.rows:
        if not any(column.key in row.cells for column in columns):
            continue
        cells = []
        for column in columns:
            value, difference = cell_text(row, column)
            against = row.against_parent.get(column.key)
            cells.append(
                {
                    "value": value,
                    "difference": difference,
                    "best": is_best(board, row, column),
                    "verdict": against.verdict if against else "",
                    "title": f"{against.verdict}, p = {against.p_value:.2g} ({against.test})" if against else "",
                }
            )
        rows.append({"label": row.label, "dim": row.dim, "constant": row.constant, "cells": cells})
    return {"heads": [column.title.split("\n") for column in columns], "rows": rows}


def _frame(table: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": table.astype(str).to_numpy().tolist()}


def _run_table(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": run.name,
            "state": run.state,
            "figures": len(run.records),
            "method": run.records[0].fusion if run.records else "",
            "dim": run.records[0].dim if run.records else "",
            "seed": run.records[0].seed if run.records else "",
            "config": run.records[0].config_digest if run.records else "",
            "error": run.error,
        }
        for run in runs
    )


def _methods(found: Sequence[Board]) -> Iterable[dict[str, str]]:
    for board in found:
        for row in board.rows:
            run, record = next(iter(row.cells.values()))["members"][0]
            yield {
                "label": f"{board.data}, {board.pair}: {row.label} ({row.dim})",
                "digest": record.config_digest,
                "description": json.dumps(record.fusion_config, indent=2, ensure_ascii=False),
                "config": run.config_text,
            }


def _protocols(found: Sequence[Board]) -> Iterable[dict[str, str]]:
    for board in found:
        for column in board.columns:
            cells = [row.cells[column.key] for row in board.rows if column.key in row.cells]
            members = [member for cell in cells for member in cell["members"]]
            shown: dict[str, list[str]] = {}
            for _, record in members:
                for key, value in record.protocol.items():
                    text = json.dumps(value, ensure_ascii=False)
                    if key not in (*CONDITIONS, SUBSET) and text not in shown.setdefault(key, []):
                        shown[key].append(text)
            # What differs from run to run (a selected value, seconds) is listed, as far as there is room.
            lines = [f"{key}: {', '.join(v[:8])}{', ...' if len(v) > 8 else ''}" for key, v in sorted(shown.items())]
            lines.append(f"seconds, mean a run: {sum(r.seconds for _, r in members) / len(members):.2f}")
            yield {"name": f"{board.data}: {column.title.replace(chr(10), ', ')}", "text": "\n".join(lines)}


def _versions(runs: Sequence[Run]) -> list[str]:
    found = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in record.versions.items())
        for run in runs
        for record in run.records
    )
    return [text for text in found if text]


def main(argv: list[str] | None = None) -> int:
    """Run ``krossfuse report FOLDER [--out DIR] [--format ...] [--figures ...]``."""
    parser = argparse.ArgumentParser(
        prog="krossfuse report",
        description="Tables, figures and one HTML page again from a run or sweep folder; nothing is recomputed.",
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
        nargs="+",
        default=list(DEFAULT_FIGURES),
        metavar="KIND",
        help=f"of {', '.join(KINDS)} (default: all but {' and '.join(OPTIONAL)}, which take longer)",
    )
    arguments = parser.parse_args(argv)
    console = make_console()
    written = report(
        arguments.folder, arguments.out, formats=arguments.format, figures=arguments.figures, console=console
    )
    if written:
        console.print(f"{len(written)} files in {written[0].parent}", style="dim")
    return 0
