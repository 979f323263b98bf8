"""Where a command's items come from: a folder of images, a text file of lines, or a column of a parquet file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from krossfuse.core.errors import ConfigError, DataError, require
from krossfuse.core.parts import Modality
from krossfuse.data.listing import EXTENSIONS

TEXT_SUFFIXES = (".txt", ".text")


@dataclass(frozen=True)
class Items:
    """Items of one modality.

    Attributes:
        modality: of all.
        items: paths, texts, or images that are decoded when their turn comes.
        names: of each: the path below the folder, the text, or the row.
        root: folder that the names of images lie in; None where they are in no folder.
    """

    modality: Modality
    items: Sequence[Any]
    names: list[str]
    root: Path | None = None


def read_items(source: str | Path, *, column: str | None = None) -> Items:
    """Return what a path holds; images are not opened yet.

    Args:
        source: a folder of images (those below it too), one image, a ``.txt`` file with a text a line, or a
            ``.parquet`` file.
        column: of the parquet file: texts, or images as bytes (also in the form of the Hugging Face hub).

    Raises:
        ConfigError: no such path, an unknown kind of file, or no column was named.
        DataError: nothing is in it.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if column is not None and suffix != ".parquet":
        raise ConfigError(f"--column={column} is for parquet files, and the source is {str(source)!r}")
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if not found:
            raise DataError(f"no images below {str(source)!r} (files that end in {', '.join(EXTENSIONS)})")
        return Items("image", found, [p.relative_to(path).as_posix() for p in found], path.resolve())
    if not path.is_file():
        raise ConfigError(f"there is no file or folder {str(source)!r}")
    if suffix in EXTENSIONS:
        return Items("image", [path], [path.name], path.resolve().parent)
    if suffix in TEXT_SUFFIXES:
        return _lines(path)
    if suffix == ".parquet":
        return _parquet(path, column)
    raise ConfigError(f"{str(source)!r} is neither a folder of images, nor an image, nor a .txt file of lines, nor a "
                      ".parquet file")  # fmt: skip


def _lines(path: Path) -> Items:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is no UTF-8 text ({error}); convert it") from None
    if not lines:
        raise DataError(f"{str(path)!r} is empty: there is no line to encode")
    return Items("text", lines, list(lines))


def _parquet(path: Path, column: str | None) -> Items:
    require("pyarrow", "a .parquet file", extra="parquet", instead="a .txt file of lines")
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        columns = parquet.read_schema(path).names
        if column is None or column not in columns:
            raise ConfigError(
                f"{str(path)!r}: say --column with one of {columns}" + (f", not {column!r}" if column else "")
            )
        values = parquet.read_table(path, columns=[column]).column(0)
    except (ArrowException, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read as parquet: {error}") from None
    if not len(values):
        raise DataError(f"{str(path)!r} has no row to encode")
    first = next((v for v in (values[row].as_py() for row in range(len(values))) if v is not None), None)
    names = [str(row) for row in range(len(values))]
    if isinstance(first, str):
        texts = values.to_pylist()
        lost = next((row for row, text in enumerate(texts) if text is None), None)
        if lost is not None:
            raise DataError(f"{str(path)!r}, column {column!r}: row {lost} is empty; fill or drop it")
        return Items("text", texts, names)
    if isinstance(first, bytes) or (isinstance(first, dict) and "bytes" in first):
        return Items("image", _Bytes(values, f"{str(path)!r}, column {column!r}"), names)
    raise DataError(
        f"{str(path)!r}, column {column!r} holds {type(first).__name__}; it must hold texts, or images as bytes"
    )


class _Bytes(Sequence[Image.Image]):
    """Images in a column of bytes, decoded when asked for."""

    def __init__(self, values: Any, where: str) -> None:
        self.values, self.where = values, where

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> Image.Image:  # type: ignore[override]
        value = self.values[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise DataError(f"{self.where}: row {row} is empty; fill or drop it")
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
            raise DataError(f"{self.where}: row {row} is no image ({type(error).__name__}: {error})") from None
        return image
