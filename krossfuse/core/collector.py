"""Python's collector of circular garbage, kept from looking through what stays."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

FORKS = "KROSSFUSE_FORKS"
"""Variable that tells a process that others are forked from it, so that nothing that it imports is ever garbage."""

if FORKS in os.environ:  # it imports this first
    gc.disable()


@contextmanager
def uncollected(*, for_good: bool = False) -> Iterator[None]:
    """Look for no circles meanwhile: for what makes very many objects that all live on, as imports do.

    Args:
        for_good: nor look, ever after, through what there is at the end.

    >>> import gc
    >>> with uncollected():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if was_on:
            gc.enable()
