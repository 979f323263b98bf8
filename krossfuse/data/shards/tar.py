"""One tar file in the format of webdataset: files of one name and several endings, one after the other, are a sample.

Read with Python's ``tarfile``, headers only; nothing is ever unpacked, and no pickle is ever loaded.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from krossfuse.core.errors import DataError
from krossfuse.core.files import check_regular
from krossfuse.data.common import to_rgb
from krossfuse.data.listing import EXTENSIONS

PICKLES = frozenset({"pkl", "pickle", "pyd", "pt", "pth", "bin", "ckpt", "joblib"})
"""Endings of files that only unpickling could read."""

IMAGES = frozenset(extension.lstrip(".") for extension in EXTENSIONS)
LABEL, CAPTION = "cls", "txt"


@dataclass(frozen=True)
class Sample:
    """One sample of a tar file.

    Attributes:
        key: the name that its files share.
        files: by ending, where the bytes of the file begin and how many there are.
    """

    key: str
    files: Mapping[str, tuple[int, int]]

    @property
    def image(self) -> str | None:
        """The ending of its image."""
        return next((ending for ending in self.files if ending in IMAGES), None)


def read_index(path: Path, name: str) -> list[Sample]:
    """Return the samples of a tar file in its order.

    Args:
        path: of the file.
        name: of the shard, for messages.

    Raises:
        DataError: it is truncated or no tar file, has a path outside itself, something that is no plain file, a pickle,
            or one name twice.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        check_regular(path)
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                key, ending = _split(member, name)
                if member.offset_data + member.size > size:
                    raise DataError(f"shard {name!r} is truncated: {member.name!r} goes beyond its {size:,} bytes")
                files = samples.setdefault(key, {})
                if ending in files:
                    raise DataError(f"shard {name!r} has {member.name!r} twice")
                files[ending] = (member.offset_data, member.size)
            if not _ended(path, tar.offset):
                raise DataError(f"shard {name!r} is truncated: the end of the archive is missing")
    except FileNotFoundError:
        raise DataError(f"shard {name!r} is missing: there is no file {str(path)!r}") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"shard {name!r} cannot be read as a tar file: {error}; is it truncated?") from None
    return [Sample(key, files) for key, files in samples.items()]


def _split(member: tarfile.TarInfo, name: str) -> tuple[str, str]:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise DataError(f"shard {name!r} has a path outside itself: {member.name!r}; nothing of it is read")
    if not member.isreg():
        raise DataError(f"shard {name!r}: {member.name!r} is no plain file (a link or a device); nothing of it is read")
    stem, _, ending = path.name.partition(".")
    ending = ending.lower()
    if ending.rpartition(".")[2] in PICKLES:
        raise DataError(f"shard {name!r} has a pickle, {member.name!r}, which is never loaded; remove it")
    return str(path.parent / stem), ending


def _ended(path: Path, offset: int) -> bool:
    """Whether the block of zeros that ends an archive is where the last member ended."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    return len(block) == tarfile.BLOCKSIZE and not any(block)


def read_file(path: Path, place: tuple[int, int], name: str) -> bytes:
    """Return the bytes of one file in a tar.

    Raises:
        DataError: they are not there.
    """
    try:
        with path.open("rb") as file:
            file.seek(place[0])
            data = file.read(place[1])
    except OSError as error:
        raise DataError(f"shard {name!r} cannot be read: {error}") from None
    if len(data) != place[1]:
        raise DataError(f"shard {name!r} is truncated: it changed while it was read")
    return data


def read_image(data: bytes, what: str) -> Image.Image:
    """Decode an image into RGB; what is transparent becomes white.

    Raises:
        DataError: it is no image; the message says ``what`` it is.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"cannot read image {what} ({type(error).__name__}: {error})") from error


def read_label(data: bytes, what: str) -> int:
    """Return a class number.

    Raises:
        DataError: it is none.
    """
    try:
        return int(data.decode().strip())
    except ValueError:
        raise DataError(f"{what} must hold a class number, not {data[:20]!r}") from None
