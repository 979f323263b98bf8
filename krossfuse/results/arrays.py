"""Named arrays in one compressed file: items' scores, and the matrices behind pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.files import replacing
from krossfuse.results.errors import ResultsError


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Save arrays as one compressed ``.npz``, the whole file or nothing."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Load a file of :func:`save_arrays`.

    Raises:
        ResultsError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own on a truncated file
        raise ResultsError(f"{path} is damaged ({error}); run its job again") from error


def array_digest(array: NDArray[Any]) -> str:
    """Return a digest of an array's type, shape and values."""
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=12)
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
