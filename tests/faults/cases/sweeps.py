"""Sweeps that cannot be as they are asked for, and folders of sweeps that are damaged, older or another's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from faults.case import FAILED, Case, Made, Outcome
from faults.files import EMBEDDINGS, Files, embeddings, sweep_folder

APP = "app"
AGAIN = ["-m", *EMBEDDINGS, "seed=0,1,2", "hydra.sweep.dir=sweep"]


def swept(change: Callable[[Path], object] | None = None) -> Files:
    """Return what copies the folder of a real sweep and its embeddings, and then changes the folder."""

    def write(folder: Path, made: Made) -> None:
        sweep_folder()(folder, made)
        (folder / ".made/features.npz").rename(folder / "features.npz")
        if change is not None:
            change(folder / "sweep")

    return write


def sweep(name: str, override: str, *words: str | tuple[str, ...], status: int = 2) -> Case:
    """Return a case of one option of the sweeper on good embeddings."""
    return Case(
        id=name, room=APP, run=["-m", *EMBEDDINGS, "seed=0,1", override], files=embeddings(), words=words, status=status,
        after=nothing_written,
    )  # fmt: skip


def resumed(name: str, change: Callable[[Path], object], *words: str | tuple[str, ...]) -> Case:
    """Return a case of a sweep that is started again in its folder, which has been changed; all ends well."""
    return Case(id=name, room=APP, run=AGAIN, files=swept(change), status=0, words=words, after=three_finished)


def nothing_written(folder: Path, outcome: Outcome) -> None:
    assert not list(folder.rglob("results.jsonl"))
    assert not (folder / "runs").exists()


def three_finished(folder: Path, outcome: Outcome) -> None:
    states = [json.loads(path.read_text())["state"] for path in (folder / "sweep").glob("[0-9]*/status.json")]
    assert states == ["finished"] * 3
    assert (folder / "sweep/report/results.csv").is_file()


def write(path: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_text(content)


def older(folder: Path) -> None:
    """Make a folder what it was before points were known by their identity."""
    (folder / ".points.jsonl").unlink()
    for path in folder.glob("*/point.json"):
        path.unlink()


HELD = contextlib.ExitStack()


def held(folder: Path) -> None:
    """Let this process hold the folder, until :func:`let_go`."""
    from krossfuse.app.sweep_folder import alone_in

    HELD.enter_context(alone_in(folder))


def let_go(folder: Path, outcome: Outcome) -> None:
    HELD.close()


CASES = [
    sweep("chunk-of-none", "hydra.sweeper.chunk=0", "hydra.sweeper.chunk=0", "positive integer"),
    sweep("chunk-of-less", "hydra.sweeper.chunk=-5", "hydra.sweeper.chunk=-5", "positive integer"),
    sweep("chunk-in-words", "hydra.sweeper.chunk=many", "hydra.sweeper.chunk='many'", "positive integer"),
    sweep("resume-nothing", "hydra.sweeper.resume=true", "no sweep to resume", "runs/run"),
    sweep("resume-what-is-no-sweep", "hydra.sweeper.resume=nowhere", "hydra.sweeper.resume='nowhere'", "multirun.yaml"),
    sweep("resume-a-number", "hydra.sweeper.resume=3", "hydra.sweeper.resume=3", "true, false or the folder"),
    sweep("only-what", "hydra.sweeper.only=faild", "hydra.sweeper.only='faild'", "did you mean 'failed'"),
    sweep("dry-run-perhaps", "hydra.sweeper.dry_run=perhaps", "hydra.sweeper.dry_run='perhaps'", "true or false"),
    sweep("sweeper-option", "hydra.sweeper.chnk=3", "chnk"),
    sweep("launcher-that-is-not-installed", "hydra/launcher=ray_cluster", "pip install 'krossfuse[ray]'"),
    sweep("launcher-without-processes", "+hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0", "-1 for one a core"),
    sweep("launcher-without-time", "+hydra.launcher.timeout_min=0", "hydra.launcher.timeout_min=0", "positive"),
    Case(id="only-failed-of-a-sweep-without-failures", room=APP, run=[*AGAIN, "hydra.sweeper.only=failed"],
         files=swept(), words=["hydra.sweeper.only=failed", "no point of sweep failed", "failed.jsonl"]),
    Case(id="only-failed-of-a-damaged-list", room=APP, run=[*AGAIN, "hydra.sweeper.only=failed"],
         files=swept(write("failed.jsonl", "{")), words=["failed.jsonl is damaged", "leave out hydra.sweeper.only"]),
    Case(id="resume-another-study", room=APP, run=["-m", *EMBEDDINGS, "seed=7,8", "hydra.sweep.dir=sweep"],
         files=swept(), words=["sweep holds another study", "3 points", "hydra.sweep.dir="], short=True),
    Case(id="two-sweeps-in-one-folder", room=APP, run=AGAIN, files=swept(held), status=FAILED, after=let_go,
         words=["sweep is being written by another sweep", "process", "hydra.sweep.dir="], short=True),
    resumed("resume-after-a-torn-status", write("1/status.json", "{"), "2 done, 1 damaged", "sweep/1 is damaged"),
    resumed("resume-after-a-torn-point", write("1/point.json", "{"), "2 done, 1 damaged", "sweep/1 is damaged"),
    resumed("resume-after-a-changed-record", write("1/results.jsonl", "{}\n"), "2 done, 1 damaged"),
    resumed("resume-after-lost-scores", lambda folder: (folder / "1/per_item.npz").unlink(), "2 done, 1 damaged"),
    resumed("resume-after-a-torn-list", write(".points.jsonl", "{"), ".points.jsonl is damaged", "3 done"),
    resumed("resume-an-older-sweep", older, "3 damaged; 3 to compute", "older version"),
]  # fmt: skip
