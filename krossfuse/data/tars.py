"""Images and texts in tar files, read where they lie: nothing is unpacked, and nothing is unpickled."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from krossfuse.core.errors import DataError
from krossfuse.data.common import to_rgb

IMAGES = ("webp", "jpg", "jpeg", "png")
PICKLES = ("pkl", "pickle", "pyd", "pt", "pth")


@dataclass(frozen=True)
class Member:
    """A file in a tar: where its bytes lie."""

    tar: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            DataError: the tar ends before them.
        """
        with open(self.tar, "rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) < self.size:
            raise DataError(f"{self.tar!r} ends within {self.name!r}; it is truncated: fetch it again")
        return data

    def text(self) -> str:
        """Return its bytes as text.

        Raises:
            DataError: it is no UTF-8.
        """
        try:
            return self.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name!r} in {self.tar!r} is no UTF-8 text: {error}") from None


@dataclass
class Sample:
    """The files of one sample (they share the name up to its first dot), by ending."""

    key: str
    files: dict[str, Member] = field(default_factory=dict)

    def one(self, endings: Sequence[str], what: str) -> Member:
        """Return the file with one of some endings.

        Raises:
            DataError: there is none.
        """
        for ending in endings:
            if ending in self.files:
                return self.files[ending]
        where = next(iter(self.files.values())).tar
        raise DataError(f"sample {self.key!r} of {where!r} has no {what} ({', '.join(endings)}): {list(self.files)}")


def samples_of(tar: Path) -> list[Sample]:
    """List the samples of a tar in its order; a sample is a run of files that share a key.

    Raises:
        DataError: no tar or a truncated one; a path that leads outside it, a link, a pickle, or a key that comes again.
    """
    samples: dict[str, Sample] = {}
    last = ""
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                path = PurePosixPath(info.name)
                if path.is_absolute() or ".." in path.parts or not info.isreg():
                    raise DataError(f"{str(tar)!r} has {info.name!r}, which leads outside it; it is not read")
                stem, _, ending = path.name.partition(".")
                ending = ending.lower()
                if ending.rpartition(".")[2] in PICKLES:
                    raise DataError(f"{str(tar)!r} has {info.name!r}, a pickle, which would run code; it is not read")
                key = (path.parent / stem).as_posix()
                if key != last and key in samples:
                    raise DataError(f"{str(tar)!r} has sample {key!r} twice")
                sample = samples.setdefault(key, Sample(key))
                if ending in sample.files:
                    raise DataError(f"{str(tar)!r} has {info.name!r} twice")
                sample.files[ending] = Member(str(tar), info.name, info.offset_data, info.size)
                last = key
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{str(tar)!r} cannot be read as a tar: {error}; fetch it again") from error
    size = tar.stat().st_size
    for sample in samples.values():
        for member in sample.files.values():
            if member.offset + member.size > size:
                raise DataError(f"{str(tar)!r} ends within {member.name!r}; it is truncated: fetch it again")
    return list(samples.values())


def tars_below(folder: Path) -> list[Path]:
    """Return the tars of a folder, in the order of the numbers in their names.

    Raises:
        DataError: there are none, or ``nshards.txt`` counts others.
    """
    tars = sorted(folder.glob("*.tar"), key=lambda path: [int(n) if n else -1 for n in _numbers(path)] + [0])
    if not tars:
        raise DataError(f"{str(folder)!r} has no tar files")
    counted = folder / "nshards.txt"
    if counted.is_file():
        text = counted.read_text("utf-8").strip()
        if text != str(len(tars)):
            raise DataError(f"{str(counted)!r} counts {text} tars, and there are {len(tars)}; fetch what is missing")
    return tars


def _numbers(path: Path) -> list[str]:
    return re.findall(r"\d+", path.name) or [""]


class TarImages(Sequence[Image.Image]):
    """Images in tars as a lazy sequence of RGB images."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        member = self.members[index]
        return decoded(member.read(), f"{member.name!r} in {member.tar!r}")

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file."""
        return self.members[index].read()


def decoded(data: bytes, what: str) -> Image.Image:
    """Decode the bytes of an image file into RGB.

    Raises:
        DataError: they are no image; the message names it.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"cannot read image {what} ({type(error).__name__}: {error}); replace or remove it") from error
