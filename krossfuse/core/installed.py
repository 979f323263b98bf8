"""Versions of installed libraries."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def version(library: str) -> str:
    """Return the version of an installed library, whose metadata are read once: that is a millisecond and more.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    return metadata.version(library)
