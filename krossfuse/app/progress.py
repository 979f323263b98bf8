"""How far a sweep is: a bar on a terminal, plain lines in a log; a failure is said when it happens."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from krossfuse.app.journal import Line, Reader

log = logging.getLogger(__name__)

EVERY = 0.5
"""Seconds between two looks at the journals."""

LINE_EVERY = 30.0
"""Seconds between two lines in a log, at least; the first comes after a tenth of the points too."""


class Progress:
    """Follows tasks through their journals while the block runs, wherever they run.

    Args:
        names: of each point that is to be computed, by number.

    Attributes:
        last: by point, the last that its task said of it.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._reader, self._names = Reader(), names
        self._looking = threading.Lock()
        self.last: dict[int, Line] = {}
        self._start = self._said = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            self._bar = _Bar(len(self._names))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self.look()
        if self._bar is not None:
            self._bar.close()

    def follow(self, journals: Sequence[Path]) -> None:
        """Follow further tasks."""
        self._reader.follow(journals)

    def look(self) -> None:
        """Read what is new, and say it."""
        with self._looking:
            for line in self._reader.new():
                self.last[line.point] = line
                if line.what == "failed":
                    log.error("point %d failed (%s): %s", line.point, self._names.get(line.point, ""), line.error)
        if self._bar is not None:
            self._bar.show(self)

    @property
    def counts(self) -> dict[str, int]:
        """How many points are done, failed, running and left."""
        whats = [line.what for line in list(self.last.values())]
        done, failed = sum(what in ("done", "kept") for what in whats), whats.count("failed")
        running = whats.count("start")
        return {"done": done, "failed": failed, "running": running, "left": len(self._names) - done - failed - running}

    def eta(self) -> str:
        """Return how long it will take from here, at the pace so far."""
        counts = self.counts
        ended = counts["done"] + counts["failed"]
        if not ended:
            return ""
        seconds = (time.monotonic() - self._start) / ended * (len(self._names) - ended)
        return f", about {_duration(seconds)} to go" if seconds >= 1 else ""

    def words(self) -> str:
        """Return the counts and the estimate in words."""
        counts = self.counts
        said = ", ".join(f"{counts[what]} {what}" for what in ("failed", "running", "left") if counts[what])
        return f"{counts['done']} of {len(self._names)} points done{f', {said}' if said else ''}{self.eta()}"

    def _follow(self) -> None:
        while not self._end.wait(EVERY):
            self.look()
            now = time.monotonic()
            if self._bar is None and now - self._said > LINE_EVERY and self.last:
                self._said = now
                log.info("%s", self.words())


class _Bar:
    """A line at the bottom of a terminal; what is logged scrolls above it."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(TextColumn("{task.description}"), BarColumn(), transient=True)
        self._task = self._bar.add_task("starting", total=total)
        self._bar.start()

    def show(self, progress: Progress) -> None:
        counts = progress.counts
        self._bar.update(self._task, completed=counts["done"] + counts["failed"], description=progress.words())

    def close(self) -> None:
        self._bar.stop()


def _duration(seconds: float) -> str:
    """Return a duration in two units.

    >>> _duration(42.2), _duration(150), _duration(7300)
    ('42 s', '2 min 30 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
