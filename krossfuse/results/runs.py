"""Reads run folders and sweep folders back, checking every line."""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from numpy.typing import NDArray

from krossfuse.results.arrays import array_digest, load_arrays
from krossfuse.results.configs import parse_config
from krossfuse.results.errors import ResultsError
from krossfuse.results.layout import CONFIG, PER_ITEM, RESULTS, STATUS
from krossfuse.results.records import Record, parse_record

State = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class Run:
    """A run folder, read back.

    Attributes:
        folder: where it is.
        name: its path below the folder that was asked for.
        records: its measurements, in the order of writing.
        state: ``finished``; ``failed``; or ``unfinished`` (still running, or killed).
        error: the message of a failed run.
    """

    folder: Path
    name: str
    records: tuple[Record, ...]
    state: State
    error: str = ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if it was not written.

        Raises:
            ResultsError: the file is damaged.
        """
        try:
            return parse_config(self.config_text)
        except ValueError as error:
            raise ResultsError(f"{self.folder / CONFIG} is damaged ({error})") from None

    @cached_property
    def config_text(self) -> str:
        """The text of ``config.yaml``; empty if it was not written.

        Raises:
            ResultsError: it is no text.
        """
        path = self.folder / CONFIG
        try:
            return path.read_text(encoding="utf-8") if path.exists() else ""
        except UnicodeDecodeError as error:
            raise ResultsError(f"{path} is damaged ({error})") from None

    @cached_property
    def per_item(self) -> dict[str, NDArray[Any]]:
        """Test items' own scores by ``figure_id``; empty if the run was killed before it wrote them."""
        path = self.folder / PER_ITEM
        return load_arrays(path) if path.exists() else {}

    def scores(self, figure_id: str) -> NDArray[Any] | None:
        """Return the items' own scores of one measurement; None where they were not kept."""
        return self.per_item.get(figure_id)

    def score_digest(self, figure_id: str) -> str | None:
        """Return a digest of :meth:`scores`, or None: measurements that share it have the same scores."""
        scores = self.scores(figure_id)
        return None if scores is None else array_digest(scores)

    def under(self, folder: str) -> Self:
        """Return the run as one of several folders: its name begins with its folder's."""
        return replace(self, name=f"{folder}/{self.name}")


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read one run folder, checking every line.

    A last line without its end is what a job leaves that is killed in the middle of writing; it is skipped, and
    the run counts as unfinished.

    Raises:
        ResultsError: no such folder, no results in it, or a damaged line (named by file and number).
    """
    folder = Path(folder)
    path = folder / RESULTS
    if not folder.is_dir():
        raise ResultsError(f"no such folder: {folder}")
    if not path.is_file():
        raise ResultsError(f"{folder} is not a run folder: it holds no {RESULTS}")
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_record(line.decode()))
        except (ResultsError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path}, line {number}: {error}") from None
    state: State = "unfinished"
    message = ""
    if (status := folder / STATUS).is_file() and not torn:
        state, message = _read_status(status)
    return Run(folder, name if name is not None else folder.name, tuple(records), state, message)


def _read_status(path: Path) -> tuple[State, str]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        state, message = read["state"], str(read.get("error", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} is damaged ({error})") from None
    if state not in typing.get_args(State):
        raise ResultsError(f"{path} is damaged (state {state!r} is not one of {list(typing.get_args(State))})")
    return typing.cast(State, state), message


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders at and below ``folder``, in the order of their names; hidden folders are left out."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if RESULTS in files:
            yield Path(root)


def read_runs(folder: str | Path) -> list[Run]:
    """Read a run folder or a sweep folder (runs at any depth), in the order of their names.

    Runs that are failed or unfinished are read too: see :attr:`Run.state`.

    Raises:
        ResultsError: no such folder, no run below it, or a damaged line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultsError(f"no such folder: {folder}")
    runs = [
        read_run(place, folder.resolve().name if place == folder else str(place.relative_to(folder)))
        for place in run_folders(folder)
    ]
    if not runs:
        raise ResultsError(
            f"no results in {folder}: neither it nor a folder below it holds {RESULTS};"
            " give the folder of a run or of a sweep"
        )
    return runs
