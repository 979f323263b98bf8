"""Hands the points of a sweep to a launcher, several a task, and finds out what became of each."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import Timeout
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher

from krossfuse.app.journal import TASK
from krossfuse.app.launchers import collecting_each_job
from krossfuse.app.plan import Planned
from krossfuse.app.progress import Progress
from krossfuse.app.sweep_folder import Outcome
from krossfuse.app.task import LOCKS, Point, computing, journal_of, write_task
from krossfuse.core.logs import quieter
from krossfuse.core.stopping import check_told
from krossfuse.results.points import state_of

log = logging.getLogger(__name__)

TASKS = ".tasks"
"""Folder in a sweep's: of each launch, the tasks' files, journals and logs."""


class Launching:
    """Runs points by a launcher.

    Args:
        launcher: Hydra's; anything that calls the task function for each list of overrides, wherever it likes.
        folder: of the sweep.
        tasks_of: gives points as their tasks get them.
        per_task: points a task; None: all.
        at_a_time: points that the launcher gets at a time; None: all.

    Attributes:
        stopped: what ended it from outside: Ctrl-C, or a signal.
        broken: the launcher's own error, or a task's that is not a point's (a full disk).
    """

    def __init__(
        self,
        launcher: Launcher,
        folder: Path,
        tasks_of: Callable[[Sequence[Planned]], list[Point]],
        *,
        per_task: int | None,
        at_a_time: int | None,
    ) -> None:
        self._launcher, self._folder, self._tasks_of = launcher, folder, tasks_of
        self._per_task, self._at_a_time = per_task, at_a_time
        self._launched = 0
        self.stopped: BaseException | None = None
        self.broken: Exception | None = None

    def __call__(self, points: Sequence[Planned]) -> list[Outcome]:
        """Run points; returns how each ended, in their order."""
        if not points:
            return []
        home = self._folder / TASKS / str(time.time_ns())
        with Progress({point.number: " ".join(point.overrides) for point in points}) as progress:
            waiting = list(points)
            try:
                while waiting:
                    batch, rest = waiting[: self._at_a_time], waiting[self._at_a_time :] if self._at_a_time else []
                    self._launch(batch, home, progress)
                    check_told()
                    progress.look()
                    unreached = [point for point in batch if point.number not in progress.last]
                    if self.broken is None:
                        waiting = rest
                    elif isinstance(self.broken, OSError) or len(unreached) in (0, len(batch)):
                        waiting = rest if not unreached else []
                    else:  # a worker was killed, and the launcher gave up on all others
                        log.warning("the launcher gave up (%s); going on with the others", _one_line(self.broken))
                        waiting = unreached + rest
            except (KeyboardInterrupt, SystemExit) as error:
                self.stopped = error
        log.info("%s", progress.words())
        outcomes = [self._outcome(point, progress) for point in points]
        if all(outcome.state == "done" for outcome in outcomes):
            for name in (TASKS, LOCKS):
                shutil.rmtree(self._folder / name, ignore_errors=True)
        return outcomes

    def _launch(self, points: Sequence[Planned], home: Path, progress: Progress) -> None:
        size = self._per_task or len(points)
        tasks = self._tasks_of(points)
        jobs, journals = [], []
        first = self._launched
        for start in range(0, len(tasks), size):
            path = home / f"{self._launched:05d}.json"
            write_task(path, self._folder, tasks[start : start + size])
            journals.append(journal_of(path))
            here = {"hydra.sweep.dir": self._folder, "hydra.sweep.subdir": Path(TASKS, home.name, path.stem)}
            said = [f"{key}={quoted(str(value))}" for key, value in here.items()]
            jobs.append([*tasks[start].overrides, *said, f"+{TASK}={quoted(str(path.resolve()))}"])
            self._launched += 1
        progress.follow(journals)
        name = type(self._launcher).__name__
        log.info("%s", f"{_count(len(tasks), 'point')} in {_count(len(jobs), 'task')} of up to {size} by {name}")
        self.broken = None
        try:
            # The launcher's own lines are every task's overrides.
            with collecting_each_job(), quieter(type(self._launcher).__module__):
                returned = self._launcher.launch(jobs, initial_job_idx=first)
            failures = [ret._return_value for ret in returned if ret.status is JobStatus.FAILED]
            self.broken = next((error for error in failures if isinstance(error, Exception)), None)
        except Exception as error:
            self.broken = error

    def _outcome(self, point: Planned, progress: Progress) -> Outcome:
        last = progress.last.get(point.number)
        if last is not None and last.what in ("done", "kept"):
            return Outcome(point.folder, point.overrides, "done")
        if last is not None and last.what == "failed":
            return Outcome(point.folder, point.overrides, "failed", last.error, last.traceback)
        if state_of(self._folder / point.folder, point.identity) == "done":
            return Outcome(point.folder, point.overrides, "done")
        if last is None or self.stopped is not None or isinstance(self.broken, OSError):
            return Outcome(point.folder, point.overrides, "left")
        try:
            with computing(self._folder, point.folder, timeout=0):
                why = "its process ended in the middle of it (killed, or out of memory)"
                return Outcome(point.folder, point.overrides, "lost", why)
        except Timeout:
            return Outcome(point.folder, point.overrides, "left", "it is still running in a process of its own")


def quoted(text: str) -> str:
    r"""Return a text as a value of Hydra's grammar.

    >>> quoted("it's")
    "'it\\'s'"
    """
    inner = text.replace("\\", "\\\\") if text.endswith("\\") else text
    return "'" + inner.replace("'", "\\'").replace("${", "\\${") + "'"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
