"""Helper processes: how many fit the machine, and that they end with the process that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from typing import Any

_PR_SET_PDEATHSIG = 1
_watched: set[int] = set()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Make this process, which :mod:`multiprocessing` started, end within seconds of its parent's end.

    A parent that is killed by SIGKILL can tell nobody. A thread waits for the parent's end of a pipe to close; on
    Linux the kernel is asked too, which needs no thread to get its turn.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux" and os.getppid() == parent.pid:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getpid() not in _watched:  # a forked process has its parent's memory, but not its threads
        _watched.add(os.getpid())
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True, name="ends with parent").start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


class EndWithParent:
    """Put among what is pickled for a spawned process: unpickled there, it calls :func:`end_with_parent`.

    That is before anything in which the process could wait for its siblings.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, ()


def _arrived() -> EndWithParent:
    end_with_parent()
    return EndWithParent()
