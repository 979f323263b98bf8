"""Transfers that are tried again: a network fails in the middle, and a moment later it does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from krossfuse.core.errors import KrossFuseError

log = logging.getLogger(__name__)

TRIES = 3
FINAL = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, KrossFuseError)
"""What another try does not mend."""

_PAUSE_SECONDS = 0.2
T = TypeVar("T")


def tried(what: str, action: Callable[[], T]) -> T:
    """Return what an action returns; one that fails is tried again after a pause, ``TRIES`` times in all.

    Args:
        what: that is transferred, for the warning.
        action: begins anew each time.

    Raises:
        Exception: what the last try raised, or the first that raised one of :data:`FINAL`.
    """
    for attempt in range(1, TRIES):
        try:
            return action()
        except FINAL:
            raise
        except Exception as error:  # each file system has its own
            log.warning("%s: %s: %s; trying again", what, type(error).__name__, error)
            time.sleep(_PAUSE_SECONDS * attempt)
    return action()
