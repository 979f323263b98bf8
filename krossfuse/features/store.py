"""The feature store: content-addressed, memory-mapped, resumable, and safe between jobs.

Layout of the folder ``root``::

    <key>/features.npy      (rows, dim), plain NumPy
    <key>/entry.json        what the key is the digest of, what it is about, shape, dtype, SHA-256 of the file
    <key>.partial/          the same while it is written, with progress.bin (8 bytes a row: done, and its CRC-32)
    .locks/<key>.lock       held by the job that computes <key>

Rules. An entry appears by one rename, when all its rows are there. A killed process loses at most the batch it was in
(a power cut also what was written in the last second, which the checksums of the rows show). A file is checked in full
at its first read in a process, and again whenever it has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from krossfuse.core.errors import DataError, StoreError, check_choice, check_positive

log = logging.getLogger(__name__)

DTYPES = ("float32", "float16")
_DATA, _META, _PROGRESS, _PARTIAL, _DELETED = "features.npy", "entry.json", "progress.bin", ".partial", ".deleted"
_DONE = np.uint64(1 << 32)
_SYNC_SECONDS = 1.0
_CHECK_ROWS = 4096

_verified: set[tuple[str, int, int, int]] = set()


class DamagedEntryError(StoreError):
    """An entry's files are not what was written."""


def canonical_json(value: Any, *, where: str = "value") -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN.

    Raises:
        StoreError: it holds something that JSON cannot (an object, NaN, a key that is no text).

    Examples:
        >>> canonical_json({"b": (1, 2), "a": None})
        '{"a":null,"b":[1,2]}'
    """
    return json.dumps(_plain(value, where), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if not bad:
            return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
        raise StoreError(f"feature key: {where} has the key {bad[0]!r}, which is not text")
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise StoreError(f"feature key: {where}={value!r} ({type(value).__name__}) cannot be written as JSON")


@dataclass(frozen=True)
class FeatureKey:
    """The identity of one entry.

    Attributes:
        ingredients: JSON-able; everything that changes a feature, and nothing else. Its digest is the key.
        about: words for people (``dataset``, ``part``, ``encoder``); not part of the digest.
    """

    ingredients: Mapping[str, Any]
    about: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """The name of the entry: 32 hexadecimal digits of the SHA-256 of the ingredients' canonical JSON."""
        return hashlib.sha256(canonical_json(self.ingredients, where="key").encode()).hexdigest()[:32]

    def __str__(self) -> str:
        about = self.about
        what = f"{about.get('encoder', '?')} on {about.get('dataset', '?')}, {about.get('part', '?')}"
        return f"{self.digest[:12]} ({what})"


@dataclass(frozen=True)
class Entry:
    """What the store holds under one key.

    Attributes:
        key: the key, as written beside the data.
        folder: where it lies.
        rows: number of items.
        dim: dimension of the features.
        dtype: ``float32`` or ``float16``.
        done: rows written; less than ``rows`` in a partial entry.
        size: bytes on disk.
        created: seconds since the epoch when it was finished (of a partial entry: begun).
        sha256: of ``features.npy``; empty in a partial entry.
    """

    key: FeatureKey
    folder: Path
    rows: int
    dim: int
    dtype: str
    done: int
    size: int
    created: float
    sha256: str

    @property
    def name(self) -> str:
        """The key's digest, as the folder says (also where the record inside cannot be read)."""
        return self.folder.name.removesuffix(_PARTIAL)

    @property
    def partial(self) -> bool:
        """Whether it is still being written, or was left by a killed job."""
        return self.folder.name.endswith(_PARTIAL)


class FeatureStore:
    """Features on disk, by content.

    Args:
        root: the folder; made when the first entry is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def __contains__(self, key: FeatureKey) -> bool:
        return (self.root / key.digest / _META).is_file()

    def read(self, key: FeatureKey) -> Tensor:
        """Return the features of ``key``: (rows, dim) over a memory map.

        The map is private: writing to the tensor changes this process's copy of a page, never the file.

        Raises:
            StoreError: there is no such entry.
            DamagedEntryError: its size, header or checksum is not what was written.
        """
        if key not in self:
            raise StoreError(f"feature store {str(self.root)!r} has no entry {key}; run the extraction first")
        entry = self._entry(self.root / key.digest)
        offset = self.verify(entry)
        return _memory_map(entry.folder / _DATA, (entry.rows, entry.dim), entry.dtype, offset)

    def verify(self, entry: Entry, *, again: bool = False) -> int:
        """Check a finished entry against its record, in blocks.

        Args:
            entry: the entry.
            again: check even what this process has checked already.

        Returns:
            The offset of the data in ``features.npy``.

        Raises:
            DamagedEntryError: a difference; the message names it and the way out.
        """
        path = entry.folder / _DATA
        entry = self._entry(entry.folder)  # the record as it is now
        if entry.key.digest != entry.folder.name:
            raise self._damaged(entry.folder, f"{_META} describes another key, {entry.key}")
        try:
            with path.open("rb") as file:
                offset = _check_header(file, (entry.rows, entry.dim), entry.dtype)
                stat = os.fstat(file.fileno())
                expected = offset + entry.rows * entry.dim * np.dtype(entry.dtype).itemsize
                if stat.st_size != expected:
                    raise ValueError(f"{_DATA} has {stat.st_size} bytes instead of {expected}")
                seen = (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if again or seen not in _verified:
                    file.seek(0)
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                    if found != entry.sha256:
                        _verified.discard(seen)
                        raise ValueError(f"the SHA-256 of {_DATA} is {found[:12]}... instead of {entry.sha256[:12]}...")
                    _verified.add(seen)
        except FileNotFoundError:
            raise self._damaged(entry.folder, f"{_DATA} is missing") from None
        except ValueError as error:
            raise self._damaged(entry.folder, str(error)) from None
        return offset

    @contextlib.contextmanager
    def lock(self, keys: Iterable[FeatureKey]) -> Iterator[None]:
        """Hold the right to write ``keys``; wait, and say so, while another job holds one of them.

        A job that dies lets go by itself. Keys are taken in one fixed order, so two jobs cannot block each other.
        """
        with contextlib.ExitStack() as held:
            for key in sorted({key.digest: key for key in keys}.values(), key=lambda key: key.digest):
                lock = self._file_lock(key.digest)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    log.warning("waiting for another job that is computing features %s", key)
                    lock.acquire(poll_interval=0.1)
                held.callback(lock.release)
            yield

    def writer(self, key: FeatureKey, *, rows: int, dim: int, dtype: str = "float32") -> FeatureWriter:
        """Begin an entry, or take up one that a killed job left. Call it under :meth:`lock`.

        Rows whose checksum does not fit are taken as not yet written. The disk space is reserved at once.

        Raises:
            ConfigError: ``rows`` or ``dim`` is not positive, or an unknown dtype.
            StoreError: no space, or no permission.
        """
        check_positive("rows", rows, integer=True)
        check_positive("dim", dim, integer=True)
        check_choice("dtype", dtype, DTYPES)
        folder = self.root / f"{key.digest}{_PARTIAL}"
        try:
            try:
                entry = self._entry(folder)
                fits = (entry.rows, entry.dim, entry.dtype, entry.key.digest) == (rows, dim, dtype, key.digest)
                writer = FeatureWriter(folder) if fits else None
            except (StoreError, OSError, ValueError):
                writer = None
            if writer is None:
                shutil.rmtree(folder, ignore_errors=True)
                _create(folder, key, rows, dim, dtype)
                writer = FeatureWriter(folder)
        except OSError as error:
            size = rows * (dim * np.dtype(dtype).itemsize + 8)
            raise StoreError(
                f"cannot write {size / 1e6:.1f} MB of features to the store {str(self.root)!r}: {error}; free some "
                "space, or set another folder (paths.store=...)"
            ) from error
        writer.discard_damaged()
        return writer

    def entries(self) -> list[Entry]:
        """Return all entries, finished, partial and damaged, oldest first."""
        found = []
        for folder in self.root.iterdir() if self.root.is_dir() else []:
            if (folder / _META).is_file() and not folder.name.endswith(_DELETED):
                try:
                    found.append(self._entry(folder))
                except DamagedEntryError:
                    nobody = FeatureKey({}, {"encoder": f"(damaged {_META})"})
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    created = (folder / _META).stat().st_mtime
                    found.append(Entry(nobody, folder, 0, 0, DTYPES[0], 0, size, created, ""))
        return sorted(found, key=lambda entry: entry.created)

    def delete(self, key: str, *, partial: bool = False) -> bool:
        """Delete the entry of a full key (``partial``: what a killed job left of it). Readers keep their maps.

        Returns:
            False if a job is writing it just now, so it was left alone.
        """
        lock = self._file_lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            folder = self.root / (key + _PARTIAL if partial else key)
            if folder.exists():
                folder.rename(folder.with_name(f"{folder.name}.{time.time_ns()}{_DELETED}"))
            for gone in self.root.glob(f"*{_DELETED}"):  # also what a killed deletion left
                shutil.rmtree(gone, ignore_errors=True)
        finally:
            lock.release()
        return True

    def _file_lock(self, digest: str) -> FileLock:
        folder = self.root / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the feature store {str(self.root)!r}: {error}; set paths.store") from error
        return FileLock(folder / f"{digest}.lock")

    def _entry(self, folder: Path) -> Entry:
        try:
            meta = json.loads((folder / _META).read_text("utf-8"))
            key = FeatureKey(meta["key"], meta["about"])
            entry = Entry(
                key=key,
                folder=folder,
                rows=meta["rows"],
                dim=meta["dim"],
                dtype=check_choice("dtype", meta["dtype"], DTYPES),
                done=meta["rows"],
                size=sum(file.stat().st_size for file in folder.iterdir()),
                created=meta["created"],
                sha256=meta["sha256"],
            )
            if not entry.partial:
                return entry
            progress = np.fromfile(folder / _PROGRESS, dtype=np.uint64)
            return Entry(**{**vars(entry), "done": int((progress >= _DONE).sum())})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(folder, f"{_META} cannot be read ({type(error).__name__}: {error})") from None

    def _damaged(self, folder: Path, why: str) -> DamagedEntryError:
        return DamagedEntryError(
            f"feature-store entry {str(folder)!r} is damaged: {why}; delete it (krossfuse store delete "
            f"{folder.name.partition('.')[0][:12]} --store {str(self.root)!r}) and it is computed anew"
        )


class FeatureWriter:
    """Writes the rows of one partial entry, in any order, from one or several processes.

    It can be pickled, so that each process of a multi-device run opens the same files and writes its own rows.

    Attributes:
        folder: the partial entry.
        rows: number of rows of the entry.
        dim: dimension of the features.
        finished: whether :meth:`finish` has made the entry visible.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = False
        self._meta = json.loads((folder / _META).read_text("utf-8"))
        self.key = FeatureKey(self._meta["key"], self._meta["about"])
        self.rows, self.dim, self._dtype = self._meta["rows"], self._meta["dim"], np.dtype(self._meta["dtype"])
        self._data = os.open(folder / _DATA, os.O_RDWR)
        self._progress = os.open(folder / _PROGRESS, os.O_RDWR)
        self._synced = time.monotonic()
        with os.fdopen(os.dup(self._data), "rb") as file:
            file.seek(0)
            self._offset = _check_header(file, (self.rows, self.dim), self._dtype.name)
        if os.fstat(self._data).st_size != self._offset + self.rows * self.dim * self._dtype.itemsize:
            raise ValueError(f"{_DATA} is truncated")
        if os.fstat(self._progress).st_size != 8 * self.rows:
            raise ValueError(f"{_PROGRESS} is truncated")

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureWriter, (self.folder,)

    def done(self) -> np.ndarray:
        """Return which rows are written: (rows,) bool."""
        return self._marks() >= _DONE

    def write(self, rows: Sequence[int] | np.ndarray, features: Tensor) -> None:
        """Store the features of some rows.

        Args:
            rows: (batch,) row numbers, each once.
            features: (batch, dim).

        Raises:
            DataError: another shape, a row outside the entry, or a feature that is NaN or infinite (in the stored
                dtype); the message names the row, and nothing of the batch is stored.
        """
        index = np.asarray(rows, dtype=np.int64)
        if features.ndim != 2 or tuple(features.shape) != (len(index), self.dim):
            raise DataError(f"{self.key}: expected features ({len(index)}, {self.dim}), got {tuple(features.shape)}")
        if len(index) == 0:
            return
        if index.min() < 0 or index.max() >= self.rows:
            raise DataError(f"{self.key}: rows {index.min()} to {index.max()} do not fit an entry of {self.rows} rows")
        # A value out of float16's range becomes infinite here and is refused below.
        with np.errstate(over="ignore"):
            values = features.detach().to("cpu", torch.float32).numpy().astype(self._dtype, copy=False)
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{self.key}: the feature of row {int(index[~finite].min())} is NaN or infinite as {self._dtype} "
                f"({int((~finite).sum())} such rows in this batch); look at that item, or at the encoder's weights "
                "and precision"
            )
        order = np.argsort(index, kind="stable")
        index, values = index[order], np.ascontiguousarray(values[order])
        marks = np.array([zlib.crc32(row.data) for row in values], dtype=np.uint64) | _DONE
        for run in np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) != 1) + 1):
            start, block = int(index[run[0]]), values[run[0] : run[-1] + 1]
            _write_all(self._data, block.data.cast("B"), self._offset + start * self.dim * self._dtype.itemsize)
            _write_all(self._progress, marks[run[0] : run[-1] + 1].data.cast("B"), 8 * start)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def discard_damaged(self) -> None:
        """Mark as not written every row whose checksum does not fit (after a power cut, or a damaged file)."""
        marks = self._marks()
        for start in range(0, self.rows, _CHECK_ROWS):
            count = min(_CHECK_ROWS, self.rows - start)
            if (marks[start : start + count] < _DONE).all():
                continue
            size = self.dim * self._dtype.itemsize
            block = os.pread(self._data, count * size, self._offset + start * size)
            for i in range(count):
                if marks[start + i] >= _DONE and marks[start + i] != (
                    _DONE | np.uint64(zlib.crc32(block[i * size : (i + 1) * size]))
                ):
                    marks[start + i] = 0
        _write_all(self._progress, marks.data.cast("B"), 0)

    def finish(self) -> None:
        """Make the entry visible, all at once.

        Raises:
            StoreError: rows are missing.
        """
        missing = np.flatnonzero(~self.done())
        if len(missing):
            raise StoreError(f"{self.key}: {len(missing)} of {self.rows} rows are missing, the first is {missing[0]}")
        self._sync()
        with (self.folder / _DATA).open("rb") as file:
            self._meta |= {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "created": time.time()}
        _write_json(self.folder / _META, self._meta)
        self.close()
        (self.folder / _PROGRESS).unlink()
        final = self.folder.with_name(self.key.digest)
        if final.exists():  # what a read found damaged; it is replaced
            shutil.rmtree(final)
        self.folder.rename(final)
        _sync_folder(final.parent)
        # Just written and just hashed: the first read need not hash it again.
        stat = (final / _DATA).stat()
        _verified.add((str((final / _DATA).resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns))
        self.finished = True

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

    def _marks(self) -> np.ndarray:
        return np.frombuffer(os.pread(self._progress, 8 * self.rows, 0), dtype=np.uint64).copy()

    def _sync(self) -> None:
        os.fsync(self._data)
        os.fsync(self._progress)
        self._synced = time.monotonic()


def _create(folder: Path, key: FeatureKey, rows: int, dim: int, dtype: str) -> None:
    folder.mkdir(parents=True)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows, dim)}
    with (folder / _DATA).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        _reserve(file, file.tell() + rows * dim * np.dtype(dtype).itemsize)
    with (folder / _PROGRESS).open("wb") as file:
        _reserve(file, 8 * rows)
    meta = {
        "format": 1,
        "key": _plain(key.ingredients, "key"),
        "about": dict(key.about),
        "rows": rows,
        "dim": dim,
        "dtype": dtype,
        "created": time.time(),
        "sha256": "",
    }
    _write_json(folder / _META, meta)


def _reserve(file: Any, size: int) -> None:
    """Give the file its full size, with disk blocks behind it where the system can."""
    file.flush()
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _check_header(file: Any, shape: tuple[int, int], dtype: str) -> int:
    """Return where the data of an .npy file begin, after a comparison of its header; ValueError if it differs."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{_DATA} has .npy version {version} instead of (1, 0)")
    found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
    if (found_shape, fortran, found_dtype) != (shape, False, np.dtype(dtype)):
        raise ValueError(f"{_DATA} holds {found_shape} {found_dtype}, the record says {shape} {dtype}")
    return int(file.tell())


def _memory_map(path: Path, shape: tuple[int, int], dtype: str, offset: int) -> Tensor:
    """Map a file into a tensor, copy-on-write: PyTorch gets a writable array, the file cannot change."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    # Without MAP_NORESERVE Linux refuses a private map that is larger than the memory.
    flags = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.from_numpy(np.frombuffer(mapped, dtype=dtype, offset=offset).reshape(shape))
