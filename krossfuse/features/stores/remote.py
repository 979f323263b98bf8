"""The store that is a URL: any file system that fsspec knows (s3://, gs://, abfs://, sftp://, file://, memory://).

Layout below ``url``::

    <key>/features-<beginning of its SHA-256>.npy
    <key>/entry.json        the record; it names the features' file, and is written after it

A remote can neither be memory-mapped nor locked, nor written row by row. So

* features are read into a cache on this machine, checked while they come, and mapped from there; the next read asks
  only whether the record is still the same;
* an entry is written (row by row, resumable after a kill) in the cache, and uploaded when it is whole. If that fails,
  it waits in the cache and the next job uploads it;
* a transfer that breaks is tried again (:mod:`krossfuse.core.retries`), then named;
* jobs on this machine wait for each other. Jobs on different machines do not: both compute, and the last record holds.
  It names its own file, so that record and features always belong together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from krossfuse.core.errors import ConfigError, KrossFuseError, StoreError
from krossfuse.core.files import write_whole
from krossfuse.core.retries import tried
from krossfuse.features.entry import RECORD, DamagedEntryError, Entry, EntryFormatError, read_record, unreadable
from krossfuse.features.keys import FeatureKey
from krossfuse.features.npy import state_of, verified
from krossfuse.features.stores.local import LocalStore
from krossfuse.features.writer import FeatureWriter

log = logging.getLogger(__name__)

_BLOCK = 8 << 20


class FsspecStore:
    """Features below a URL, with a cache on this machine.

    Args:
        url: as fsspec writes it, ``s3://bucket/folder``.
        cache: folder of the cache; each URL has its own part of it.
        options: of the file system (credentials, endpoint, ...), as fsspec's ``storage_options``.

    Raises:
        ConfigError: no URL, an unknown protocol, or one whose package is not installed.
    """

    def __init__(self, url: str | None, *, cache: str | Path, options: Mapping[str, Any] | None = None) -> None:
        from fsspec.core import url_to_fs

        if not url or "://" not in str(url):
            raise ConfigError(
                f"store.url={url!r} is no URL: give store.url=s3://BUCKET/FOLDER (or gs://, sftp://, file://, ...); "
                "for a folder say store=local paths.store=FOLDER"
            )
        self.where = str(url).rstrip("/")
        try:
            self._fs, root = url_to_fs(self.where, **dict(options or {}))
        except ImportError as error:
            raise ConfigError(f"store.url={url!r} needs another package: {error}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(f"store.url={url!r}, store.options={dict(options or {})}: {error}") from None
        self._root = root.rstrip("/")
        part = hashlib.sha256(self.where.encode()).hexdigest()[:16]
        self.cache = LocalStore(Path(cache).expanduser() / part)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, FeatureKey) and self._text(key.digest) is not None

    def read(self, key: FeatureKey) -> Tensor:
        """Return the features of ``key``: (rows, dim) over a memory map of the cache's copy.

        Raises:
            StoreError: there is no such entry, one in another format, or the remote cannot be reached.
            DamagedEntryError: it is not what was written.
        """
        text = self._text(key.digest)
        if text is None:
            raise StoreError(f"feature store {self.where!r} has no entry {key}; run the extraction first")
        entry = self._entry(key.digest, text)
        if entry.key.digest != key.digest:
            raise self._damaged(key.digest, f"{RECORD} describes another key, {entry.key}")
        if not self._cached(key, entry):
            # A lock of its own: the job may hold the key's, to write what it finds missing.
            with self.cache.file_lock(f"{key.digest}.download"):
                if not self._cached(key, entry):
                    self._download(entry, text)
        return self.cache.read(key)

    def _cached(self, key: FeatureKey, entry: Entry) -> bool:
        """Whether the cache has what the record describes."""
        try:
            if key not in self.cache:
                return False
            copy = json.loads((self.cache.root / entry.name / RECORD).read_bytes())
            self.cache.read(key)
            return bool(copy["sha256"] == entry.sha256)
        except (StoreError, OSError, ValueError, KeyError):
            return False

    def _download(self, entry: Entry, text: bytes) -> None:
        """Copy an entry into the cache, whole or not at all; called under the lock of downloads."""
        for left in self.cache.root.glob(f"{entry.name}.*.download"):
            shutil.rmtree(left, ignore_errors=True)
        folder = self.cache.root / f"{entry.name}.{uuid.uuid4().hex}.download"
        try:
            folder.mkdir(parents=True)
            sha256 = self._hash(entry, folder / entry.data)
            if sha256 != entry.sha256:
                raise self._other_bytes(entry, sha256)
            write_whole(folder / RECORD, text)
            final = self.cache.root / entry.name
            if final.exists():
                shutil.rmtree(final)
            folder.rename(final)
            verified.add(state_of(final / entry.data))
        except OSError as error:
            raise StoreError(
                f"cannot keep a copy of {self.where}/{entry.name} in the cache {self.cache.where!r}: {error}; free "
                "some space, or set another folder (store.cache=...)"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _hash(self, entry: Entry, copy: Path | None = None) -> str:
        """Read an entry's features; return their SHA-256, and write them to ``copy``."""
        path = self._path(entry.name, entry.data)

        def read() -> str:
            sha = hashlib.sha256()
            with contextlib.ExitStack() as stack:
                stream = stack.enter_context(self._fs.open(path, "rb"))
                file = None if copy is None else stack.enter_context(copy.open("wb"))
                while block := stream.read(_BLOCK):
                    sha.update(block)
                    if file is not None:
                        file.write(block)
            return sha.hexdigest()

        try:
            with self._reach("read", entry.name):
                return tried(f"{self.where}/{entry.name}", read)
        except FileNotFoundError:
            raise self._damaged(entry.name, f"{entry.data} is missing") from None

    @contextlib.contextmanager
    def lock(self, keys: Iterable[FeatureKey], *, wait: bool = True) -> Iterator[None]:
        """Hold the right to write ``keys`` among the jobs of this machine; those of others are not waited for.

        What an earlier job computed and could not upload is uploaded now.
        """
        wanted = list(keys)
        with self.cache.lock(wanted, wait=wait):
            for key in wanted:
                if key in self.cache and key not in self:
                    self._upload(key)
            yield

    def writer(self, key: FeatureKey, *, rows: int, dim: int, dtype: str = "float32") -> FeatureWriter:
        """Begin an entry in the cache, or take up one that a killed job left; ``finish`` uploads it.

        Raises:
            ConfigError: ``rows`` or ``dim`` is not positive, or an unknown dtype.
            StoreError: no space, or no permission.
        """
        return self.cache.make_writer(key, rows, dim, dtype, partial(_UploadingWriter, self))

    def _upload(self, key: FeatureKey) -> None:
        name = key.digest
        record = json.loads((self.cache.root / name / RECORD).read_bytes())
        data = f"features-{record['sha256'][:16]}.npy"
        with self._reach("written (the whole entry waits in the cache; the next job uploads it)", name):
            here = self.cache.root / name / record.get("data", "features.npy")

            def write() -> None:
                self._fs.makedirs(self._path(name), exist_ok=True)
                self._fs.put_file(str(here), self._path(name, data))
                with self._fs.transaction, self._fs.open(self._path(name, RECORD), "wb") as stream:
                    stream.write(json.dumps({**record, "data": data}, indent=2, ensure_ascii=False).encode() + b"\n")

            tried(f"{self.where}/{name}", write)

    def entries(self) -> list[Entry]:
        """Return all entries, and those that jobs on this machine are writing or left half-written; oldest first."""
        entries = [entry for entry in self.cache.entries() if entry.partial]
        try:
            with self._reach("listed"):
                self._fs.invalidate_cache()
                names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            names = []
        for name in names:
            text = self._text(name)
            if text is None:
                continue
            try:
                entries.append(self._entry(name, text))
            except StoreError as error:
                why = "another format" if isinstance(error, EntryFormatError) else f"damaged {RECORD}"
                where = f"{self.where}/{name}"
                entries.append(unreadable(name, where, why=why, size=len(text), created=0.0, partial=False))
        return sorted(entries, key=lambda entry: entry.created)

    def record(self, entry: Entry) -> str:
        """Return the record of an entry, JSON, as it was written."""
        if entry.partial:
            return self.cache.record(entry)
        text = self._text(entry.name)
        if text is None:
            raise StoreError(f"feature store {self.where!r} has no entry {entry.name} any more")
        return text.decode()

    def verify(self, entry: Entry, *, again: bool = False) -> None:
        """Read every byte of a finished entry and compare its checksum.

        Raises:
            DamagedEntryError: a difference; the message names it and the way out.
        """
        text = self._text(entry.name)
        if text is None:
            raise self._damaged(entry.name, f"{RECORD} is missing")
        entry = self._entry(entry.name, text)  # the record as it is now
        if entry.key.digest != entry.name:
            raise self._damaged(entry.name, f"{RECORD} describes another key, {entry.key}")
        if (sha256 := self._hash(entry)) != entry.sha256:
            raise self._other_bytes(entry, sha256)

    def delete(self, name: str, *, partial: bool = False) -> bool:
        """Delete the entry of a full key, here and there (``partial``: what a killed job on this machine left of it).

        Returns:
            False if a job on this machine is writing it just now, so it was left alone.
        """
        if not self.cache.delete(name, partial=partial):
            return False
        if not partial:
            with self._reach("deleted", name), contextlib.suppress(FileNotFoundError):
                self._fs.rm(self._path(name, RECORD))  # out of sight first
            with self._reach("deleted", name), contextlib.suppress(FileNotFoundError):
                self._fs.rm(self._path(name), recursive=True)
        return True

    def _path(self, *names: str) -> str:
        return "/".join([self._root, *names])

    def _text(self, name: str) -> bytes | None:
        """Return the record of an entry, or None if there is none."""
        try:
            with self._reach("read", name):
                text: bytes = self._fs.cat_file(self._path(name, RECORD))
                return text
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _entry(self, name: str, text: bytes) -> Entry:
        size = len(text)
        try:
            entry = read_record(text, name=name, where=f"{self.where}/{name}", size=size, partial=False)
            with self._reach("read", name), contextlib.suppress(FileNotFoundError):
                size += int(self._fs.size(self._path(name, entry.data)) or 0)
            return read_record(text, name=name, where=entry.where, size=size, partial=False)
        except ValueError as error:
            raise self._damaged(name, str(error)) from None

    @contextlib.contextmanager
    def _reach(self, what: str, name: str = "") -> Iterator[None]:
        """Turn what a file system raises into an error that names the place; a missing file stays one."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KrossFuseError):
            raise
        except Exception as error:  # each file system has its own
            place = f"{self.where}/{name}" if name else self.where
            raise StoreError(
                f"feature store {place!r} cannot be {what}: {type(error).__name__}: {error}; look at store.url, "
                "store.options, the network and your permissions"
            ) from error

    def _other_bytes(self, entry: Entry, sha256: str) -> DamagedEntryError:
        return self._damaged(
            entry.name, f"the SHA-256 of {entry.data} is {sha256[:12]}... instead of {entry.sha256[:12]}..."
        )

    def _damaged(self, name: str, why: str) -> DamagedEntryError:
        return DamagedEntryError(
            f"feature-store entry {f'{self.where}/{name}'!r} is damaged: {why}; delete it (krossfuse store delete "
            f"{name[:12]} --store {self.where}) and it is computed anew"
        )


class _UploadingWriter(FeatureWriter):
    """Writes in the cache, and uploads when all rows are there. A worker's copy is a plain writer."""

    def __init__(self, store: FsspecStore, folder: Path, token: str) -> None:
        super().__init__(folder, token)
        self._store = store

    def finish(self) -> None:
        """Make the entry visible in the cache, and upload it.

        Raises:
            StoreError: rows are missing, or the upload failed (the next job tries again).
        """
        super().finish()
        self._store._upload(self.key)
