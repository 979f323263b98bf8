"""An index over run folders: thousands of runs open at once, and what was computed of them is not computed again.

The index is one SQLite file in the folder of a sweep. It holds nothing that the run folders do not: it is a copy of
their records, configurations and items' scores, each with the sizes and times of the files that it was read from, and
statistics of scores by a digest of the scores themselves, which therefore never grow old. A run whose files have
changed is read again; an index that is damaged, or of another version, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from krossfuse.results.arrays import array_digest
from krossfuse.results.errors import ResultsError
from krossfuse.results.layout import CONFIG, PER_ITEM, RESULTS, STATUS
from krossfuse.results.records import record_of
from krossfuse.results.runs import Run, read_run, run_folders

log = logging.getLogger(__name__)

NAME = ".krossfuse-index.sqlite"
VERSION = 1
"""Of the tables below, and of the statistics in them: a change of either is another version."""

FILES = (RESULTS, STATUS, CONFIG, PER_ITEM)
"""Of a run folder, what the index is read from."""

_TABLES = {
    "runs": "CREATE TABLE runs (name TEXT PRIMARY KEY, signature TEXT, state TEXT, error TEXT, records TEXT,"
    " config TEXT, digests TEXT, checksum INTEGER)",
    "scores": "CREATE TABLE scores (digest TEXT PRIMARY KEY, packed INTEGER, length INTEGER, data BLOB,"
    " checksum INTEGER) WITHOUT ROWID",
    "statistics": "CREATE TABLE statistics (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
}

Made = TypeVar("Made")


@dataclass(frozen=True)
class IndexedRun(Run):
    """A run that the index knows: nothing of it is read from its folder.

    Attributes:
        index: that holds it.
        text: of its configuration.
        digests: of its items' scores, by ``figure_id``.
    """

    index: RunIndex | None = field(default=None, compare=False, repr=False)
    text: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def config_text(self) -> str:
        """The text of its configuration; empty if it was not written."""
        return self.text

    @property
    def per_item(self) -> dict[str, NDArray[Any]]:
        """Test items' own scores by ``figure_id``; read when it is asked for, and not kept."""
        return {name: scores for name in self.digests if (scores := self.scores(name)) is not None}

    def scores(self, figure_id: str) -> NDArray[Any] | None:
        """Return the items' own scores of one measurement; None where they were not kept."""
        digest = self.digests.get(figure_id)
        if digest is None:
            return None
        kept = self.index.scores(digest) if self.index else None
        if kept is not None:
            return kept
        return read_run(self.folder, self.name).scores(figure_id)  # the index lost them; the folder has them

    def score_digest(self, figure_id: str) -> str | None:
        """Return the digest of :meth:`scores`."""
        return self.digests.get(figure_id)


class RunIndex:
    """The index of a folder of runs; use it as a context manager, which writes what is new at its end.

    Where the folder cannot be written to, or another process holds the index, everything works as well, and is
    computed again the next time.

    Args:
        folder: of a sweep, with the index in it; of a single run, or None: the index is in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        keep = folder is not None and folder.is_dir() and not (folder / RESULTS).exists()
        self.folder = folder
        self.path = folder / NAME if keep and folder is not None else None
        self._fresh: dict[str, str] = {}
        self._may_write = True
        self._connection = self._open()
        self.read_again = 0
        """Runs that were read from their folders, because the index did not know them as they are."""

    def runs(self) -> list[Run]:
        """Return the runs in and below the folder, in the order of their names.

        Raises:
            ResultsError: no such folder, no run below it, or a damaged line.
        """
        folder = self.folder
        if folder is None or not folder.is_dir():
            raise ResultsError(f"no such folder: {folder}")
        nothing: dict[str, tuple[Any, ...]] = {}
        known = self._guarded(self._known, nothing)
        made: list[Run] = []
        fresh: list[tuple[Any, ...]] = []
        for place in run_folders(folder):
            name = folder.resolve().name if place == folder else str(place.relative_to(folder))
            signature = _signature(place)
            run = self._from_row(place, name, known.pop(name, None), signature)
            if run is None:
                run, row = self._read(place, name, signature)
                fresh.append(row)
            made.append(run)
        if not made:
            raise ResultsError(
                f"no results in {folder}: neither it nor a folder below it holds {RESULTS};"
                " give the folder of a run or of a sweep"
            )
        self.read_again += len(fresh)
        self._write(lambda: self._store(fresh, list(known)))
        return made

    def scores(self, digest: str) -> NDArray[Any] | None:
        """Return items' scores by their digest; None where the index has lost them."""

        def select() -> NDArray[Any] | None:
            row = self._connection.execute(
                "SELECT packed, length, data, checksum FROM scores WHERE digest = ?", (digest,)
            ).fetchone()
            if row is None or zlib.crc32(row[2]) != row[3]:
                return None
            if row[0]:
                return np.unpackbits(np.frombuffer(row[2], np.uint8), count=row[1])
            return np.frombuffer(row[2], np.float32)

        return self._guarded(select, None)

    def statistic(
        self, key: str, compute: Callable[[], Made], read: Callable[[Any], Made], dump: Callable[[Made], Any]
    ) -> Made:
        """Return a statistic of scores: the one that was computed before of the same scores, or a new one.

        Args:
            key: made of the digests of all that it depends on.
            compute: makes it.
            read: makes it from its JSON.
            dump: makes its JSON.
        """
        text = self._fresh.get(key)
        if text is None:
            row = self._guarded(
                lambda: self._connection.execute("SELECT value FROM statistics WHERE key = ?", (key,)).fetchone(), None
            )
            text = None if row is None else row[0]
        if text is not None and _checksum([text[8:]]) == int(text[:8] or "0", 16):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return read(json.loads(text[8:]))
        made = compute()
        text = json.dumps(dump(made))
        self._fresh[key] = f"{_checksum([text]):08x}{text}"
        return made

    def close(self) -> None:
        """Write what is new, and close the file."""
        self.flush()
        self._connection.close()

    def flush(self) -> None:
        """Write what is new."""

        def write() -> None:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO statistics VALUES (?, ?)", self._fresh.items())

        if self._fresh:
            self._write(write)
            self._fresh = {}

    def __enter__(self) -> RunIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- The file -----------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        for attempt in (0, 1):
            try:
                return self._connect(self.path)
            except sqlite3.OperationalError as error:  # no right to write, another process, a disk that is full
                log.info("%s: %s; going on without an index on disk", self.path, error)
                break
            except sqlite3.DatabaseError as error:
                log.warning("%s is damaged (%s); it is made again from the run folders", self.path, error)
                if attempt or not self._remove():
                    break
        self.path = None
        return self._connect(None)

    def _connect(self, path: Path | None) -> sqlite3.Connection:
        connection = sqlite3.connect(path or ":memory:", timeout=20, check_same_thread=False)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
            if version != VERSION or found != _TABLES:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    for name in found:
                        connection.execute(f'DROP TABLE "{name}"')
                    for statement in _TABLES.values():
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes is made again
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _remove(self) -> bool:
        try:
            for suffix in ("", "-journal", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _guarded(self, action: Callable[[], Made], otherwise: Made) -> Made:
        """Return what ``action`` does with the file; ``otherwise`` where it cannot, with a new index in its place."""
        try:
            return action()
        except sqlite3.OperationalError as error:
            log.info("%s: %s; what is new is not kept in the index", self.path, error)
            self._may_write = False  # not tried for every run: each try may wait for another process
        except sqlite3.DatabaseError as error:
            log.warning("%s is damaged (%s); it is made again from the run folders", self.path, error)
            self._connection.close()
            if self.path is not None:
                self._remove()
            self._connection = self._open()
        return otherwise

    def _write(self, action: Callable[[], None]) -> None:
        if self._may_write:
            self._guarded(action, None)

    def _known(self) -> dict[str, tuple[Any, ...]]:
        rows = self._connection.execute(
            "SELECT name, signature, state, error, records, config, digests, checksum FROM runs"
        )
        return {row[0]: row for row in rows}

    def _from_row(self, place: Path, name: str, row: tuple[Any, ...] | None, signature: str) -> IndexedRun | None:
        if row is None or row[1] != signature or _checksum(row[:7]) != row[7]:
            return None
        _, _, state, error, lines, text, digests, _ = row
        records = tuple(record_of(json.loads(line)) for line in lines.split("\n") if line)
        return IndexedRun(place, name, records, state, error, self, text, json.loads(digests))

    def _read(self, place: Path, name: str, signature: str) -> tuple[IndexedRun, tuple[Any, ...]]:
        run = read_run(place, name)
        arrays = run.per_item
        digests = {figure: array_digest(array) for figure, array in arrays.items()}
        lines = (place / RESULTS).read_bytes().rpartition(b"\n")[0].decode()
        if len(run.records) != sum(1 for line in lines.split("\n") if line):
            signature = ""  # it was written to in between: what was read stands now, and is read again next time
            lines = ""
        head = (name, signature, str(run.state), run.error, lines, run.config_text, json.dumps(digests))
        made = IndexedRun(place, name, run.records, run.state, run.error, self, run.config_text, digests)
        packed = [_packed(digests[figure], array) for figure, array in arrays.items()]
        self._write(lambda: self._store_scores(packed))
        return made, (*head, _checksum(head))

    def _store_scores(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", rows)

    def _store(self, fresh: Sequence[tuple[Any, ...]], gone: Sequence[str]) -> None:
        if not fresh and not gone:
            return
        with self._connection:
            self._connection.executemany("DELETE FROM runs WHERE name = ?", ((name,) for name in gone))
            self._connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fresh)


def _signature(folder: Path) -> str:
    """Return what changes when one of a run's files does."""
    parts = []
    for name in FILES:
        try:
            stat = os.stat(folder / name)
            parts.append(f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}")
        except OSError:
            parts.append("-")
    return " ".join(parts)


def folder_digest(folder: Path) -> str:
    """Return what changes when a run below a folder is new, gone or written to; nothing is opened."""
    digest = hashlib.blake2b(digest_size=12)
    for place in run_folders(folder):
        digest.update(f"{place} {_signature(place)}\n".encode())
    return digest.hexdigest()


def _checksum(texts: Sequence[str]) -> int:
    return zlib.crc32("\0".join(texts).encode())


def _packed(digest: str, array: NDArray[Any]) -> tuple[Any, ...]:
    hits = array.dtype == np.uint8
    data = (np.packbits(array) if hits else np.ascontiguousarray(array, np.float32)).tobytes()
    return digest, int(hits), len(array), data, zlib.crc32(data)


@contextlib.contextmanager
def open_runs(folders: Sequence[str | Path]) -> Iterator[tuple[list[Run], RunIndex]]:
    """Yield the runs of some folders, and an index that remembers statistics of them (that of the first folder).

    Where there are several folders, a run's name begins with its folder's.

    Raises:
        ResultsError: a folder does not exist, or holds no run; or a damaged line.
    """
    places = list(dict.fromkeys(Path(folder).resolve() if len(folders) > 1 else Path(folder) for folder in folders))
    with contextlib.ExitStack() as stack:
        indexes = [stack.enter_context(RunIndex(place)) for place in places]
        runs: dict[Path, Run] = {}
        for index, name in zip(indexes, _names(places), strict=True):
            for run in index.runs():  # one folder may lie in another
                runs.setdefault(run.folder, run.under(name) if len(places) > 1 else run)
        yield list(runs.values()), indexes[0]


def _names(places: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart."""
    for parts in range(1, max((len(place.parts) for place in places), default=1) + 1):
        names = ["/".join(place.parts[-parts:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]
