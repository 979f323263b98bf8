"""A sweep on made embeddings, run by the real command: in this process, or in one of its own that may be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.files import arrays, write_arrays

from krossfuse.results.runs import read_runs

COMMON = ("data=embeddings", "data.path=features.npz", "probe=[zero_shot]", "logger=none")

MACHINE = ["hydra/launcher=machine", "hydra.launcher.n_jobs=2"]


def made(folder: Path, n: dict[str, int] | None = None) -> None:
    """Write the embeddings."""
    write_arrays(folder / "features.npz", arrays(n))


def command(*arguments: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", "krossfuse", "-m", *COMMON, *arguments]


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a sweep in a process and a group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command(*arguments), cwd=folder, **{**pipes, **options})  # type: ignore[call-overload,no-any-return]


def finish(folder: Path, *arguments: str, status: int = 0) -> str:
    """Run a sweep to its end; returns all that it printed."""
    process = start(folder, *arguments)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == status, out
    return out


def values(sweep: Path) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Return, by overrides, all that a sweep recorded but the time that it took."""
    found = {}
    for run in read_runs(sweep):
        if run.state != "finished":
            continue
        overrides = tuple(json.loads((run.folder / "point.json").read_text())["overrides"])
        assert overrides not in found, "a point has two run folders"
        records = [json.loads(line) for line in (run.folder / "results.jsonl").read_text().splitlines()]
        for record in records:
            del record["seconds"]
        scores = {key: array.tolist() for key, array in run.per_item.items()}
        found[overrides] = [*records, scores]
    return found


def finished(sweep: Path) -> dict[str, int]:
    """Return when each finished point was finished, by its folder."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in sweep.glob("*/status.json")
        if json.loads(path.read_text())["state"] == "finished"
    }


def times_computed(sweep: Path) -> dict[str, int]:
    """Return how often each point was fused to its end, by its folder."""
    return {path.parent.name: path.read_text().count("fused in") for path in sweep.glob("*/krossfuse.log")}


def outcomes(sweep: Path) -> Sequence[dict[str, Any]]:
    """Return the list of failed points."""
    path = sweep / "failed.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
