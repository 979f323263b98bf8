"""Where shards lie: a folder, or any URL that fsspec knows, whose files are copied to this machine when needed."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import Any

from krossfuse.core.errors import DataError
from krossfuse.core.files import replacing
from krossfuse.core.retries import TRIES, tried


class Places:
    """The files beside a manifest.

    Args:
        manifest: its path or URL.
        cache: folder for copies of remote files.
        options: of the file system, as fsspec's ``storage_options``.
    """

    def __init__(self, manifest: str, *, cache: str | Path | None, options: dict[str, Any] | None = None) -> None:
        self.root = manifest.rpartition("/")[0]
        self.remote = "://" in manifest
        self.options = dict(options or {})
        part = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self.cache = Path(cache or ".").expanduser() / part

    def local(self, name: str) -> Path:
        """Return a file as a path on this machine; a remote one is copied first, whole or not at all.

        A transfer that fails is tried again (:func:`krossfuse.core.retries.tried`).

        Raises:
            DataError: it cannot be had; the message names it.
        """
        if not self.remote:
            return Path(self.root or ".") / name
        path = self.cache / name.replace("/", "_")
        if not path.exists():
            try:
                tried(f"{self.root}/{name}", lambda: self._copy(name, path))
            except FileNotFoundError:
                raise DataError(f"shard {name!r} is missing: there is no {self.root}/{name}") from None
            except Exception as error:  # each file system has its own
                times = "" if isinstance(error, PermissionError) else f", tried {TRIES} times"
                raise DataError(
                    f"{self.root}/{name} cannot be read{times}: {type(error).__name__}: {error}; what is encoded "
                    "already is kept: run again"
                ) from error
        return path

    def _copy(self, name: str, path: Path) -> None:
        from fsspec.core import open as open_url

        opened = open_url(f"{self.root}/{name}", "rb", **self.options)
        with opened as source, replacing(path) as partial, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, 8 << 20)

    def read(self, name: str) -> bytes:
        """Return the bytes of a small file.

        Raises:
            DataError: it cannot be read.
        """
        if self.remote:
            self.release(name)  # a manifest may have changed since it was copied
        try:
            return self.local(name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.root}/{name}: {error}") from None

    def release(self, name: str) -> None:
        """Remove the copy of a remote file."""
        if self.remote:
            with contextlib.suppress(FileNotFoundError):
                (self.cache / name.replace("/", "_")).unlink()
