"""A task: several points of a sweep, one after the other in one process, which share its imports, features and fits.

A launcher starts tasks, wherever it likes; what a task needs is in one file, and what comes of it in the points' run
folders and in its journal (:mod:`krossfuse.app.journal`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import OmegaConf

from krossfuse.app.build import unpacked
from krossfuse.app.journal import Journal, Line
from krossfuse.core.errors import ConfigError
from krossfuse.core.files import write_whole
from krossfuse.core.stopping import check_told
from krossfuse.results.points import Identity, state_of, write_point

log = logging.getLogger(__name__)

LOCKS, REPLACED = ".locks", ".replaced"
"""Folders in a sweep's: of locks, a file a point; and of finished points that were computed anew since."""


@dataclass(frozen=True)
class Point:
    """One job of a sweep, as its task gets it.

    Attributes:
        number: of the job in the sweep.
        folder: its run folder, below the sweep's.
        overrides: that make it.
        identity: what decides its measurements.
        config: its resolved configuration (:func:`krossfuse.app.build.packed`).
        choices: by group, the chosen option.
    """

    number: int
    folder: str
    overrides: Sequence[str]
    identity: Identity
    config: str
    choices: Mapping[str, str]


def write_task(path: Path, sweep: Path, points: Sequence[Point]) -> None:
    """Write the file of a task."""
    lines = [vars(point) | {"identity": vars(point.identity), "overrides": list(point.overrides)} for point in points]
    write_whole(path, json.dumps({"sweep": str(sweep.resolve()), "points": lines}, default=dict).encode())


def journal_of(path: Path) -> Path:
    """Return the journal of a task's file."""
    return path.with_suffix(".journal")


def run_task(path: Path) -> None:
    """Compute the points of a task that no other process has computed; a point that fails does not stop the others.

    Raises:
        ConfigError: the task's file is not there any more.
        OSError: the disk is full, so that no other point could be kept either.
    """
    try:
        read = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"the task {str(path)!r} is gone: its sweep has ended, or was started again") from None
    sweep, journal = Path(read["sweep"]), Journal(journal_of(path))
    for fields in read["points"]:
        point = Point(**fields | {"identity": Identity(**fields["identity"])})
        try:
            with computing(sweep, point.folder):
                _run_point(sweep, point, journal)
        except Exception as error:
            check_told()  # what a library has made of a signal is no failure of the point
            if full := _disk_full(error):
                raise full from error
            trace = traceback.format_exc().splitlines()[-20:]
            journal.write(Line(point.number, "failed", f"{type(error).__name__}: {error}", "\n".join(trace)))
        check_told()


@contextlib.contextmanager
def computing(sweep: Path, folder: str, timeout: float = -1) -> Iterator[None]:
    """Be the only process that computes a point, in a run folder below the sweep's; one that is killed leaves no lock.

    Raises:
        filelock.Timeout: another process does, ``timeout`` seconds long (-1: wait for it).
    """
    (sweep / LOCKS).mkdir(exist_ok=True)
    with FileLock(sweep / LOCKS / f"{folder.replace('/', '_')}.lock", timeout=timeout):
        yield


def _run_point(sweep: Path, point: Point, journal: Journal) -> None:
    from krossfuse.app.job import run

    folder = sweep / point.folder
    state = state_of(folder, point.identity)
    if state == "done":
        journal.write(Line(point.number, "kept"))
        return
    if state in ("changed", "damaged"):
        _set_aside(sweep, folder)
    folder.mkdir(parents=True, exist_ok=True)
    journal.write(Line(point.number, "start"))
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra/overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(list(point.overrides))))
    write_point(folder, point.identity, point.overrides)
    with _logging_into(folder):
        run(unpacked(point.config), folder, choices=point.choices, with_report=False, overwrite=True, sweep=sweep)
    journal.write(Line(point.number, "done"))


def _set_aside(sweep: Path, folder: Path) -> None:
    """Keep what a folder holds out of the way of what takes its place, and out of reports."""
    name = folder.relative_to(sweep).as_posix().replace("/", "_")
    (sweep / REPLACED).mkdir(exist_ok=True)
    shutil.move(folder, sweep / REPLACED / f"{name}-{time.time_ns()}")


@contextlib.contextmanager
def _logging_into(folder: Path) -> Iterator[None]:
    """Let the log go to the run folder of a point, in place of its task's."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import configure_log

    hydra = HydraConfig.get()
    configured: Any = OmegaConf.to_container(hydra.job_logging, resolve=True)
    handlers = {
        name: {
            key: value.replace(hydra.runtime.output_dir, str(folder)) if key == "filename" else value
            for key, value in handler.items()
        }
        for name, handler in configured.get("handlers", {}).items()
    }
    configure_log(OmegaConf.create({**configured, "handlers": handlers}), hydra.verbose)
    try:
        yield
    finally:
        configure_log(OmegaConf.create(configured), hydra.verbose)


def _disk_full(error: BaseException) -> OSError | None:
    """Return the error of a full disk that an error came from."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return cause if cause.filename else OSError(cause.errno, os.strerror(cause.errno), "the sweep's folder")
        cause = cause.__cause__ or cause.__context__
    return None
