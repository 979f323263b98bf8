"""What the tasks of a sweep say while they run: a line a point that starts or ends, in a file a task.

The sweep reads them, wherever its tasks run; a task that is killed leaves the lines that it wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

TASK = "_task_"
"""Key of the configuration by which a sweep tells a launcher's worker which task it is to run."""

What = Literal["start", "done", "kept", "failed"]


@dataclass(frozen=True)
class Line:
    """One thing that happened to a point.

    Attributes:
        point: its number in the sweep.
        what: it started; it is done; it was done already, by another process; it failed.
        error: that it failed with, in one line.
        traceback: the end of it.
    """

    point: int
    what: What
    error: str = ""
    traceback: str = ""


class Journal:
    """The file of one task."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, line: Line) -> None:
        """Append a line, in one write.

        Raises:
            OSError: it cannot be written.
        """
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, json.dumps(asdict(line)).encode() + b"\n")
        finally:
            os.close(descriptor)


class Reader:
    """Reads the journals of several tasks as they grow."""

    def __init__(self) -> None:
        self._read: dict[Path, int] = {}

    def follow(self, paths: Iterable[Path]) -> None:
        """Read further journals too; they need not be there yet."""
        self._read |= dict.fromkeys(paths, 0)

    def new(self) -> Iterator[Line]:
        """Yield the lines that were written since the last call; one that is torn is none."""
        for path, start in list(self._read.items()):
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    content = file.read()
            except FileNotFoundError:
                continue
            whole = content[: content.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            for text in whole.splitlines():
                try:
                    read = json.loads(text)
                    yield Line(**{field.name: read[field.name] for field in fields(Line)})
                except (ValueError, TypeError, KeyError):
                    continue
