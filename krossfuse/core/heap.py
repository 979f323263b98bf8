"""The C library's heap, kept between batches: on a CPU a large part of a forward pass is page faults otherwise.

glibc hands every block of some size back to the system when it is freed, and the next batch gets the same block again
as pages that the kernel must clear and map one by one. A loop over batches of one size frees and asks for the same
blocks over and over, so that keeping them costs nothing but their own size.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Numbers of mallopt's parameters, from <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8

_KEPT = {
    _MMAP_THRESHOLD: 1 << 30,  # blocks up to a gigabyte come from the heap, which is kept, not from a map of their own
    _TRIM_THRESHOLD: (1 << 31) - 1,  # the free end of the heap stays
    # Each thread has an arena of its own, made of 64 MB heaps that are unmapped as soon as they are empty. Threads that
    # start now share the main one; those that take up the arena of a thread that has ended keep its heaps.
    _ARENA_MAX: 1,
    _TOP_PAD: 256 << 20,
}
_USUAL = {
    # Where glibc's own adjustment ends in a process that has freed a block of 32 MB, which is what setting either
    # threshold turns off for good.
    _MMAP_THRESHOLD: 32 << 20,
    _TRIM_THRESHOLD: 64 << 20,
    _ARENA_MAX: 8 * (os.cpu_count() or 1),
    _TOP_PAD: 128 << 10,
}

_lock = threading.Lock()
_depth = 0


@contextmanager
def kept_heap(keep: bool = True) -> Iterator[bool]:
    """Keep the heap while the block runs: freed memory is not returned to the system until it ends.

    Blocks nest, from any thread. No result depends on it. Where the C library is not glibc, nothing is done.

    Args:
        keep: False does nothing.

    Yields:
        Whether the heap is kept.

    >>> import sys
    >>> with kept_heap(False) as kept:
    ...     kept
    False
    """
    global _depth
    library = _glibc() if keep else None
    if library is None:
        yield False
        return
    with _lock:
        if _depth == 0:
            _set(library, _KEPT)
        _depth += 1
    try:
        yield True
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _set(library, _USUAL)
                library.malloc_trim(0)


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        library.mallopt(parameter, value)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - another library has no such function
    except (OSError, TypeError, AttributeError):
        return None
    return library
