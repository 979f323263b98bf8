"""One HTML page that holds tables, pictures and where they come from, and needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from krossfuse.report.boards import Board, Column
from krossfuse.report.cells import cell_text, is_best, notes_for, row_names
from krossfuse.report.differences import Differences, differences, every_two
from krossfuse.report.few_shot import few_shot_table
from krossfuse.report.reference import SOURCE
from krossfuse.results.aggregate import CONDITIONS, SUBSET
from krossfuse.results.runs import Run
from krossfuse.results.significance import Comparison


def html_page(
    folder: Path,
    runs: Sequence[Run],
    made: Sequence[Board],
    paper: pd.DataFrame,
    notes: Sequence[str],
    pictures: Sequence[Path],
    further: Sequence[Sequence[Board]] = (),
    frames: Sequence[tuple[str, pd.DataFrame]] = (),
) -> str:
    """Return the page as text; the pictures (PNG files) are in it.

    Args:
        folder: of the runs, for the title.
        runs: all of them, for where the measurements come from.
        made: their boards.
        paper: the paper's values beside measured ones.
        notes: warnings.
        pictures: PNG files.
        further: of each board, the same compared with other baselines.
        frames: tables over all boards, by title.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    records = [record for run in runs for record in run.records]
    seeds = sorted({record.seed for record in records})
    return environment.get_template("report.html.j2").render(
        title=f"KrossFuse: {folder.resolve().name}",
        summary=f"{len(runs)} runs, {len(records)} recorded measurements, seeds {', '.join(map(str, seeds))}",
        warnings=notes,
        boards=[
            {
                "title": board.title,
                "notes": notes_for(board, board.primary()),
                "numbers": board.numbers,
                "main": _board(board, board.primary()),
                "all": _board(board, board.columns),
                "further": [_differences(table) for other in others if (table := differences(other)) is not None],
                "every_two": [_differences(table) for table in every_two(board)],
            }
            for board, others in zip(made, further or [()] * len(made), strict=True)
        ],
        frames=[{"title": title, **_frame(frame)} for title, frame in frames],
        few_shot=_frame(few_shot_table(made)),
        paper=_frame(paper),
        source=SOURCE,
        pictures=[{"name": p.stem, "data": base64.b64encode(p.read_bytes()).decode()} for p in pictures],
        runs=_frame(_run_table(runs)),
        methods=list(_methods(made)),
        protocols=list(_protocols(made)),
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
            against = row.against.get(column.key)
            cells.append(
                {
                    "value": value,
                    "difference": difference,
                    "best": is_best(board, row, column),
                    "verdict": against.verdict if against else "",
                    "title": _verdict(against) if against else "",
                }
            )
        rows.append({"names": row_names(board, row), "cells": cells})
    return {"heads": [column.title.split("\n") for column in columns], "rows": rows}


def _differences(table: Differences) -> dict[str, Any]:
    rows = [
        {
            "names": names,
            "cells": [
                {
                    "value": "" if c else text,
                    "difference": text if c else "",
                    "best": False,
                    "verdict": c.verdict if c else "",
                    "title": _verdict(c) if c else "",
                }
                for text, c in cells
            ],
        }
        for names, cells in table.rows
    ]
    return {"title": table.title, "heads": [column.title.split("\n") for column in table.columns], "rows": rows}


def _verdict(comparison: Comparison) -> str:
    text = f"{comparison.verdict}, p = {comparison.p_value:.2g} (over {comparison.test.replace('+', ' and ')})"
    return f"{text}; its spread over seeds is unknown" if comparison.spread_unknown else text


def _frame(table: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": table.astype(str).to_numpy().tolist()}


def _run_table(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": run.name,
            "state": run.state,
            "measurements": len(run.records),
            "method": run.records[0].fusion if run.records else "",
            "dim": run.records[0].dim if run.records else "",
            "seed": run.records[0].seed if run.records else "",
            "config": run.records[0].method_digest or run.records[0].config_digest if run.records else "",
            "error": run.error,
        }
        for run in runs
    )


def _methods(made: Sequence[Board]) -> Iterable[dict[str, str]]:
    for board in made:
        for row in board.rows:
            run, record = next(iter(row.cells.values()))["members"][0]
            yield {
                "label": f"{board.data}, {board.pair}: {row.name} ({row.dim})",
                "digest": record.method_digest or record.config_digest,
                "description": json.dumps(record.fusion_config, indent=2, ensure_ascii=False),
                "config": run.config_text,
            }


def _protocols(made: Sequence[Board]) -> Iterable[dict[str, str]]:
    for board in made:
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
            yield {"name": f"{board.data}: {column.name}", "text": "\n".join(lines)}


def _versions(runs: Sequence[Run]) -> list[str]:
    made = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in record.versions.items())
        for run in runs
        for record in run.records
    )
    return [text for text in made if text]
