"""Files that are whole or not there, files that can be read at all, and the user's cache."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` when the block ends, or is removed.

    The folder is made. The bytes are on disk before the file gets its name, so that neither a killed process nor a
    power cut leaves half a file under ``path``.

    Raises:
        OSError: the file cannot be written; ``path`` is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/a.txt") as partial:
    ...         _ = partial.write_text("whole")
    ...     [file.name for file in Path(folder).iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a whole file or nothing: see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def sync(path: str | Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_regular(path: str | Path) -> None:
    """Check that ``path`` is a file: opening a named pipe waits for ever, and a device may never end.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it is a folder, a named pipe, a socket or a device; the message says which.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def cache_dir(name: str) -> str:
    """Return a folder of KrossFuse's own in the user's cache (overridden by KROSSFUSE_CACHE)."""
    import platformdirs

    return str(Path(os.environ.get("KROSSFUSE_CACHE") or platformdirs.user_cache_dir("krossfuse")) / name)
