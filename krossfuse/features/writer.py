"""Writing one entry, row by row, from one or several processes, so that a killed one loses its batch only.

While it is written, an entry is a folder with the features' file, its record, ``progress.bin`` (8 bytes a row: done,
and the CRC-32 of the row) and ``owner``, the token of the job that has the right to write it.

That right ends when the job does, and its processes may end later. So every process that writes holds a shared lock
on ``progress.bin``, and a job that takes an entry up

1. replaces the token, so that no process of an earlier job can begin to write;
2. waits until it alone has ``progress.bin``: until those that had begun have ended (or, after ``WAIT_SECONDS``, begins
   anew in another folder, whose files they do not have open).

No process of an earlier job can therefore write into what a later one owns, a finished entry above all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError, StoreError
from krossfuse.core.files import sync, write_whole
from krossfuse.features.entry import DATA, RECORD, make_record, record_text
from krossfuse.features.keys import FeatureKey
from krossfuse.features.npy import (
    array_dtype,
    check_header,
    read_at,
    reserve,
    state_of,
    verified,
    write_at,
    write_header,
)

try:
    import fcntl
except ImportError:  # Windows: there an open file cannot be renamed, and only the token guards
    fcntl = None  # type: ignore[assignment]

PROGRESS, OWNER = "progress.bin", "owner"
WAIT_SECONDS = 30.0
_DONE = np.uint64(1 << 32)
_SYNC_SECONDS = 1.0
_CHECK_ROWS = 4096
_MARK_ROWS = 1 << 20


def begin(folder: Path, key: FeatureKey, rows: int, dim: int, dtype: str, token: str) -> None:
    """Make the folder of an entry that has no rows yet; the disk space is reserved at once.

    Raises:
        OSError: no space, or no permission.
    """
    folder.mkdir(parents=True)
    with (folder / DATA).open("wb") as file:
        start = write_header(file, (rows, dim), dtype)
        reserve(file, start + rows * dim * array_dtype(dtype).itemsize)
    with (folder / PROGRESS).open("wb") as file:
        reserve(file, 8 * rows)
    write_whole(folder / OWNER, token.encode())
    write_whole(folder / RECORD, record_text(make_record(key, rows, dim, dtype, time.time())).encode())


def take_over(folder: Path, token: str) -> bool:
    """Take the right to write an entry that another job began.

    Returns:
        False if a process of that job does not end.

    Raises:
        OSError: the folder is not what it should be.
    """
    write_whole(folder / OWNER, token.encode())
    descriptor = os.open(folder / PROGRESS, os.O_RDWR)
    try:
        return _alone(descriptor)
    finally:
        os.close(descriptor)


def rows_done(folder: Path) -> int:
    """Return how many rows of a partial entry are written."""
    descriptor = os.open(folder / PROGRESS, os.O_RDONLY)
    try:
        rows = os.fstat(descriptor).st_size // 8
        return sum(int((marks >= _DONE).sum()) for _, marks in _marks(descriptor, rows))
    finally:
        os.close(descriptor)


class FeatureWriter:
    """Writes the rows of one partial entry, in any order, from one or several processes.

    It can be pickled, so that each process of a multi-device run opens the same files and writes its own rows.

    Args:
        folder: the partial entry.
        token: of the job that owns it.

    Attributes:
        key: the entry's key.
        rows: number of rows of the entry.
        dim: dimension of the features.
        finished: whether :meth:`finish` has made the entry visible.

    Raises:
        StoreError: another job has taken the entry over.
        OSError, ValueError: the files are not what they should be.
    """

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self.token = folder, token
        self.finished = False
        self._data = self._progress = -1
        self._record = json.loads((folder / RECORD).read_text("utf-8"))
        self.key = FeatureKey(self._record["key"], self._record["about"])
        self.rows, self.dim, self._dtype = self._record["rows"], self._record["dim"], self._record["dtype"]
        self._itemsize = array_dtype(self._dtype).itemsize
        self._synced = time.monotonic()
        try:
            self._progress = os.open(folder / PROGRESS, os.O_RDWR)
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._progress, fcntl.LOCK_SH)
            self._check_owner()
            self._data = os.open(folder / DATA, os.O_RDWR)
            with os.fdopen(os.dup(self._data), "rb") as file:
                file.seek(0)
                self._offset = check_header(file, (self.rows, self.dim), self._dtype)
            if os.fstat(self._data).st_size != self._offset + self.rows * self.dim * self._itemsize:
                raise ValueError(f"{DATA} is truncated")
            if os.fstat(self._progress).st_size != 8 * self.rows:
                raise ValueError(f"{PROGRESS} is truncated")
        except BaseException:
            self.close()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureWriter, (self.folder, self.token)

    def done(self) -> np.ndarray:
        """Return which rows are written: (rows,) bool."""
        done = np.zeros(self.rows, dtype=bool)
        for block, marks in _marks(self._progress, self.rows):
            done[block] = marks >= _DONE
        return done

    def missing(self) -> tuple[int, int]:
        """Return how many rows are not yet written, and the first of them (-1: none)."""
        count, first = 0, -1
        for block, marks in _marks(self._progress, self.rows):
            rows = np.flatnonzero(marks < _DONE)
            if len(rows) and first < 0:
                first = block.start + int(rows[0])
            count += len(rows)
        return count, first

    def write(self, rows: Sequence[int] | np.ndarray, features: Tensor) -> None:
        """Store the features of some rows.

        Args:
            rows: (batch,) row numbers, each once.
            features: (batch, dim).

        Raises:
            DataError: another shape, a row outside the entry, or a feature that is NaN, infinite or too large for the
                stored dtype; the message names the row, and nothing of the batch is stored.
            StoreError: another job has taken the entry over, or finished it.
        """
        index = np.asarray(rows, dtype=np.int64)
        if features.ndim != 2 or tuple(features.shape) != (len(index), self.dim):
            raise DataError(f"{self.key}: expected features ({len(index)}, {self.dim}), got {tuple(features.shape)}")
        if len(index) == 0:
            return
        if index.min() < 0 or index.max() >= self.rows:
            raise DataError(f"{self.key}: rows {index.min()} to {index.max()} do not fit an entry of {self.rows} rows")
        values = self._stored(index, features)
        order = np.argsort(index, kind="stable")
        index, values = index[order], np.ascontiguousarray(values[order])
        marks = np.array([zlib.crc32(row.data) for row in values], dtype=np.uint64) | _DONE
        self._check_owner()
        for run in np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) != 1) + 1):
            start, block = int(index[run[0]]), values[run[0] : run[-1] + 1]
            write_at(self._data, block.data.cast("B"), self._offset + start * self.dim * self._itemsize)
            write_at(self._progress, marks[run[0] : run[-1] + 1].data.cast("B"), 8 * start)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def _stored(self, index: np.ndarray, features: Tensor) -> np.ndarray:
        """Return the features in the stored dtype, all finite."""
        given = features.detach().cpu()
        dtype: torch.dtype = getattr(torch, self._dtype)
        stored = given.float().to(dtype)  # what is out of range becomes infinite, and is refused below
        finite = stored.isfinite().all(dim=1).numpy()
        if not finite.all():
            bad = index[~finite]
            row = int(bad.min())
            of_row = given[int(np.flatnonzero(index == row)[0])]
            rows = f"({len(bad)} such rows in this batch)"
            if bool(of_row.isfinite().all()):
                raise DataError(
                    f"{self.key}: the feature of row {row} holds {float(of_row.double().abs().max()):.3g}, and "
                    f"{self._dtype} goes up to {torch.finfo(dtype).max:.3g} {rows}; it is infinite as "
                    f"{self._dtype}: store float32, or look at the encoder's weights"
                )
            raise DataError(
                f"{self.key}: the feature of row {row} is NaN or infinite {rows}; look at that item, or at the "
                "encoder's weights and precision"
            )
        return (stored.view(torch.int16) if dtype == torch.bfloat16 else stored).numpy()

    def discard_damaged(self) -> None:
        """Mark as not written every row whose checksum does not fit (after a power cut, or a damaged file)."""
        size = self.dim * self._itemsize
        for block, marks in _marks(self._progress, self.rows):
            damaged: list[int] = []
            for part in blocks(len(marks), _CHECK_ROWS):
                done = np.flatnonzero(marks[part] >= _DONE)
                if not len(done):
                    continue
                first = block.start + part.start
                data = read_at(self._data, (part.stop - part.start) * size, self._offset + first * size)
                for i in done:
                    if marks[part.start + i] != _DONE | np.uint64(zlib.crc32(data[i * size : (i + 1) * size])):
                        damaged.append(part.start + int(i))
            if damaged:
                marks = marks.copy()
                marks[damaged] = 0
                write_at(self._progress, marks.data.cast("B"), 8 * block.start)

    def finish(self) -> None:
        """Make the entry visible, all at once.

        Raises:
            StoreError: rows are missing, another job has taken the entry over, or a process of this one still writes.
        """
        count, first = self.missing()
        if count:
            raise StoreError(f"{self.key}: {count} of {self.rows} rows are missing, the first is {first}")
        self._check_owner()
        if not _alone(self._progress):
            raise StoreError(f"{self.key}: a process that was to write it has not ended; run again")
        self._sync()
        with (self.folder / DATA).open("rb") as file:
            self._record |= {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "created": time.time()}
        write_whole(self.folder / RECORD, record_text(self._record).encode())
        self.close()
        final = self.folder.with_name(self.key.digest)
        if final.exists():  # what a read found damaged; it is replaced
            shutil.rmtree(final)
        self.folder.rename(final)
        self.finished = True
        for name in (PROGRESS, OWNER):  # after the rename: a job killed between has lost nothing
            (final / name).unlink()
        sync(final.parent)
        verified.add(state_of(final / DATA))  # just written and just hashed

    def close(self) -> None:
        """Close the files; what is written stays and can be taken up again."""
        for descriptor in (self._data, self._progress):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._progress = -1

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_owner(self) -> None:
        try:
            owner = (self.folder / OWNER).read_text()
        except FileNotFoundError:
            owner = ""
        if owner != self.token:
            raise StoreError(f"{self.key}: another job has taken over or finished this entry; nothing was written")

    def _sync(self) -> None:
        os.fsync(self._data)
        os.fsync(self._progress)
        self._synced = time.monotonic()


def _marks(descriptor: int, rows: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the marks of the rows in blocks."""
    for block in blocks(rows, _MARK_ROWS):
        raw = read_at(descriptor, 8 * (block.stop - block.start), 8 * block.start)
        # What is not there is not written.
        yield block, np.frombuffer(raw.ljust(8 * (block.stop - block.start), b"\0"), dtype=np.uint64)


def _alone(descriptor: int) -> bool:
    """Wait until no other process holds the progress file; False if one does not end in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        except OSError:  # a file system without locks
            break
        else:
            break
    return True
