"""Flower's named arrays as ONE vector, and back."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from krossfuse.core.errors import DataError


def check_arrays(arrays: ArrayRecord) -> int:
    """Return the number of coordinates of all arrays.

    Raises:
        DataError: there is none, or one is not of floating-point numbers.
    """
    for name, array in arrays.items():
        if not np.issubdtype(np.dtype(array.dtype), np.floating):
            raise DataError(
                f"array {name!r} is {array.dtype}; only floating-point parameters can be sent with noise: keep "
                "counters and the like out of the ArrayRecord"
            )
    d = sum(int(np.prod(array.shape)) for array in arrays.values())
    if not d:
        raise DataError("the ArrayRecord has no parameters")
    return d


def difference(after: ArrayRecord, before: ArrayRecord) -> NDArray:
    """Return the (d,) whole update, in the order of ``before``.

    Raises:
        DataError: names or shapes differ.
    """
    if set(after) != set(before):
        raise DataError(f"the client's arrays are {sorted(after)}; the server sent {sorted(before)}")
    pieces = []
    for name, array in before.items():
        new, old = after[name].numpy(), array.numpy()
        if new.shape != old.shape:
            raise DataError(f"the client's array {name!r} has shape {new.shape}; the server sent {old.shape}")
        wide = np.result_type(old.dtype, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # who clips looks for what is not finite
            pieces.append(np.subtract(new, old, dtype=wide, casting="same_kind").ravel())
    return np.concatenate(pieces)


def moved(arrays: ArrayRecord, step: NDArray) -> ArrayRecord:
    """Return arrays + step.

    Args:
        arrays: of d coordinates.
        step: (d,).
    """
    out, at = ArrayRecord(), 0
    for name, array in arrays.items():
        old = array.numpy()
        piece = step[at : at + old.size].reshape(old.shape)
        out[name] = Array(np.asarray(old + piece, dtype=old.dtype))
        at += old.size
    return out


def of_type(arrays: ArrayRecord, like: ArrayRecord) -> ArrayRecord:
    """Return arrays in the number types of ``like``: Flower's adaptive strategies make float64 of float32.

    Raises:
        DataError: names differ.
    """
    if set(arrays) != set(like):
        raise DataError(f"the strategy returned arrays {sorted(arrays)}; the global ones are {sorted(like)}")
    return ArrayRecord({name: Array(arrays[name].numpy().astype(array.dtype)) for name, array in like.items()})
