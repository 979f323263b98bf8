"""Listing the image files of class folders: links are followed, loops of them are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from krossfuse.core.errors import DataError
from krossfuse.core.files import check_regular

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

Listing = list[tuple[str, str]]
"""(class folder, path relative to the root) of each image, sorted."""


def list_images(root: Path, below: str = "") -> Listing:
    """List the images of the class folders of ``root/below``; hidden files and folders are left out.

    Class folders without an image are named in a warning, and so is a link to a folder that it lies in, which is not
    followed: all below it is listed already.

    Raises:
        DataError: something with the name of an image that is no file, such as a named pipe.
    """
    base = root / below
    listing: Listing = []
    empty: list[str] = []
    above = frozenset({os.path.realpath(base)})
    for name, path in _folders(base, above):
        files = [(name, Path(file).relative_to(root).as_posix()) for file in _images(path, above)]
        listing += files
        if not files:
            empty.append(name)
    if empty:
        few = ", ".join(map(repr, empty[:10])) + (", ..." if len(empty) > 10 else "")
        log.warning("%s: %d class folder(s) without an image, left out: %s", str(base), len(empty), few)
    return sorted(listing)


def _images(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Yield the images in and below a folder; ``above`` holds the real folders on the way to it."""
    above |= {os.path.realpath(folder)}
    with _scan(folder) as entries:
        files = [e.path for e in entries if not e.name.startswith(".") and e.name.lower().endswith(EXTENSIONS)]
    for path in files:
        if os.path.isdir(path):
            continue
        try:
            check_regular(path)
        except OSError as error:
            raise DataError(f"cannot read image {path!r}: {error}; remove or replace it") from None
        yield path
    for _, inside in _folders(folder, above):
        yield from _images(inside, above)


def _folders(folder: str | Path, above: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield name and path of the folders in a folder, but those that it lies in itself."""
    with _scan(folder) as entries:
        folders = sorted((e.name, e.path) for e in entries if not e.name.startswith(".") and e.is_dir())
    for name, path in folders:
        real = os.path.realpath(path)
        # Links lead out of the tree, so the way back up to a real folder is looked at as well as the way walked.
        if any(one == real or one.startswith(real.rstrip(os.sep) + os.sep) for one in above):
            log.warning("%r is a link to %r, a folder that it lies in; it is not followed", path, real)
        else:
            yield name, path


def _scan(folder: str | Path) -> os._ScandirIterator[str]:
    try:
        return os.scandir(str(folder))
    except OSError as error:
        raise DataError(f"cannot list folder {str(folder)!r}: {error}") from None
