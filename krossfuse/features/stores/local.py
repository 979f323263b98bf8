"""The store that is a folder: content-addressed, memory-mapped, resumable, and safe between jobs.

Layout of the folder ``root``::

    <key>/features.npy      (rows, dim), plain NumPy
    <key>/entry.json        what the key is the digest of, what it is about, shape, dtype, SHA-256 of the file
    <key>.partial/          the same while it is written (:mod:`krossfuse.features.writer`)
    .locks/<key>.lock       held by the job that computes <key>

Rules. An entry appears by one rename, when all its rows are there. A killed process loses at most the batch it was in
(a power cut also what was written in the last second, which the checksums of the rows show). A file is checked in full
at its first read in a process, and again whenever it has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from torch import Tensor

from krossfuse.core.errors import ConfigError, StoreError, check_choice, check_positive
from krossfuse.features.entry import (
    DTYPES,
    RECORD,
    DamagedEntryError,
    Entry,
    EntryFormatError,
    read_record,
    unreadable,
)
from krossfuse.features.keys import FeatureKey
from krossfuse.features.npy import array_dtype, check_header, memory_map, state_of, verified
from krossfuse.features.stores.base import BusyError
from krossfuse.features.writer import FeatureWriter, begin, rows_done, take_over

log = logging.getLogger(__name__)

_PARTIAL, _DELETED = ".partial", ".deleted"

W = TypeVar("W", bound=FeatureWriter)


class LocalStore:
    """Features in a folder.

    Args:
        root: the folder; made when the first entry is written.

    Raises:
        ConfigError: ``root`` is a URL.
    """

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise ConfigError(
                f"paths.store={str(root)!r} is a URL, and store=local is a folder; say store=fsspec store.url={root}"
            )
        self.root = Path(root).expanduser()
        self.where = str(self.root)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, FeatureKey) and (self.root / key.digest / RECORD).is_file()

    def read(self, key: FeatureKey) -> Tensor:
        """Return the features of ``key``: (rows, dim) over a memory map.

        The map is private: writing to the tensor changes this process's copy of a page, never the file.

        Raises:
            StoreError: there is no such entry, or one in another format.
            DamagedEntryError: its size, header or checksum is not what was written.
        """
        if key not in self:
            raise StoreError(f"feature store {self.where!r} has no entry {key}; run the extraction first")
        entry = self._entry(self.root / key.digest)
        offset = self._check(entry, again=False)
        return memory_map(self.root / entry.name / entry.data, (entry.rows, entry.dim), entry.dtype, offset)

    def verify(self, entry: Entry, *, again: bool = False) -> None:
        """Check a finished entry against its record, in blocks.

        Args:
            entry: the entry.
            again: check even what this process has checked already.

        Raises:
            DamagedEntryError: a difference; the message names it and the way out.
            EntryFormatError: it was written in another format.
        """
        self._check(self._entry(self.root / entry.name), again=again)  # the record as it is now

    def _check(self, entry: Entry, *, again: bool) -> int:
        """Check a finished entry; return the offset of the data in its file."""
        path = self.root / entry.name / entry.data
        if entry.key.digest != entry.name:
            raise self._damaged(entry.name, f"{RECORD} describes another key, {entry.key}")
        try:
            with path.open("rb") as file:
                offset = check_header(file, (entry.rows, entry.dim), entry.dtype)
                size = os.fstat(file.fileno()).st_size
                expected = offset + entry.rows * entry.dim * array_dtype(entry.dtype).itemsize
                if size != expected:
                    raise ValueError(f"{entry.data} has {size} bytes instead of {expected}")
                state = state_of(path)
                if again or state not in verified:
                    file.seek(0)
                    is_now = hashlib.file_digest(file, "sha256").hexdigest()
                    if is_now != entry.sha256:
                        verified.discard(state)
                        raise ValueError(
                            f"the SHA-256 of {entry.data} is {is_now[:12]}... instead of {entry.sha256[:12]}..."
                        )
                    verified.add(state)
        except FileNotFoundError:
            raise self._damaged(entry.name, f"{entry.data} is missing") from None
        except ValueError as error:
            raise self._damaged(entry.name, str(error)) from None
        return offset

    @contextlib.contextmanager
    def lock(self, keys: Iterable[FeatureKey], *, wait: bool = True) -> Iterator[None]:
        """Hold the right to write ``keys``; wait, and say so, while another job holds one of them.

        A job that dies lets go by itself. Keys are taken in one fixed order, so two jobs cannot block each other.

        Raises:
            BusyError: another job holds one, and ``wait`` is False.
        """
        with contextlib.ExitStack() as held:
            for key in sorted({key.digest: key for key in keys}.values(), key=lambda key: key.digest):
                lock = self.file_lock(key.digest)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    if not wait:
                        raise BusyError(f"another job is computing features {key}") from None
                    log.warning("waiting for another job that is computing features %s", key)
                    lock.acquire(poll_interval=0.1)
                held.callback(lock.release)
            yield

    def writer(self, key: FeatureKey, *, rows: int, dim: int, dtype: str = "float32") -> FeatureWriter:
        """Begin an entry, or take up one that a killed job left. Call it under :meth:`lock`.

        Rows whose checksum does not fit are taken as not yet written. The disk space is reserved at once.

        Raises:
            ConfigError: ``rows`` or ``dim`` is not positive, or an unknown dtype.
            EntryFormatError: what the killed job left is in another format.
            StoreError: no space, or no permission.
        """
        return self.make_writer(key, rows, dim, dtype, FeatureWriter)

    def make_writer(self, key: FeatureKey, rows: int, dim: int, dtype: str, make: Callable[[Path, str], W]) -> W:
        """Return what ``make`` makes of the folder and the token of an entry: see :meth:`writer`."""
        check_positive("rows", rows, integer=True)
        check_positive("dim", dim, integer=True)
        check_choice("dtype", dtype, DTYPES)
        folder, token = self.root / f"{key.digest}{_PARTIAL}", uuid.uuid4().hex
        writer: W | None = None
        try:
            try:
                entry = self._entry(folder)
                if (entry.rows, entry.dim, entry.dtype, entry.key.digest) == (rows, dim, dtype, key.digest):
                    if take_over(folder, token):
                        writer = make(folder, token)
                    else:
                        log.warning("a process of an earlier job still writes features %s; beginning anew", key)
            except EntryFormatError:
                raise
            except (StoreError, OSError, ValueError):
                writer = None
            if writer is None:
                self._remove(folder)
                begin(folder, key, rows, dim, dtype, token)
                writer = make(folder, token)
        except OSError as error:
            size = rows * (dim * array_dtype(dtype).itemsize + 8)
            raise StoreError(
                f"cannot write {size / 1e6:.1f} MB of features to the store {self.where!r}: {error}; free some "
                "space, or set another folder (paths.store=...)"
            ) from error
        writer.discard_damaged()
        return writer

    def entries(self) -> list[Entry]:
        """Return all entries, finished, partial and unreadable, oldest first."""
        entries = []
        for folder in self.root.iterdir() if self.root.is_dir() else []:
            if not (folder / RECORD).is_file() or folder.name.endswith(_DELETED):
                continue
            try:
                entries.append(self._entry(folder))
            except StoreError as error:
                why = "another format" if isinstance(error, EntryFormatError) else f"damaged {RECORD}"
                entries.append(
                    unreadable(
                        folder.name.removesuffix(_PARTIAL),
                        str(folder),
                        why=why,
                        size=_size(folder),
                        created=(folder / RECORD).stat().st_mtime,
                        partial=folder.name.endswith(_PARTIAL),
                    )
                )
        return sorted(entries, key=lambda entry: entry.created)

    def record(self, entry: Entry) -> str:
        """Return the record of an entry, JSON, as it was written."""
        return self._folder(entry.name, entry.partial).joinpath(RECORD).read_text("utf-8")

    def delete(self, name: str, *, partial: bool = False) -> bool:
        """Delete the entry of a full key (``partial``: what a killed job left of it). Readers keep their maps.

        Returns:
            False if a job is writing it just now, so it was left alone.
        """
        lock = self.file_lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            self._remove(self._folder(name, partial))
            for gone in self.root.glob(f"*{_DELETED}"):  # what a killed deletion left
                shutil.rmtree(gone, ignore_errors=True)
        finally:
            lock.release()
        return True

    def _folder(self, name: str, partial: bool) -> Path:
        return self.root / (name + _PARTIAL if partial else name)

    @staticmethod
    def _remove(folder: Path) -> None:
        """Remove an entry: out of sight at once, then file by file."""
        if folder.exists():
            gone = folder.rename(folder.with_name(f"{folder.name}.{time.time_ns()}{_DELETED}"))
            shutil.rmtree(gone, ignore_errors=True)

    def file_lock(self, name: str) -> FileLock:
        """Return the lock of a key.

        Raises:
            StoreError: the folder cannot be made.
        """
        folder = self.root / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the feature store {self.where!r}: {error}; set paths.store") from error
        return FileLock(folder / f"{name}.lock")

    def _entry(self, folder: Path) -> Entry:
        """Return what a folder's record says.

        Raises:
            EntryFormatError: it was written in another format.
            DamagedEntryError: it cannot be read.
        """
        name, partial = folder.name.removesuffix(_PARTIAL), folder.name.endswith(_PARTIAL)
        try:
            text = (folder / RECORD).read_text("utf-8")
            entry = read_record(text, name=name, where=str(folder), size=_size(folder), partial=partial)
            return replace(entry, done=rows_done(folder)) if partial else entry
        except (OSError, ValueError) as error:
            raise self._damaged(folder.name, str(error)) from None

    def _damaged(self, name: str, why: str) -> DamagedEntryError:
        return DamagedEntryError(
            f"feature-store entry {str(self.root / name)!r} is damaged: {why}; delete it (krossfuse store delete "
            f"{name.partition('.')[0][:12]} --store {self.where!r}) and it is computed anew"
        )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
