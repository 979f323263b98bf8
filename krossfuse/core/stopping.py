"""Whether the process has been told to end, by Ctrl-C or SIGTERM, however deep in a library it was at that moment.

A signal's handler raises wherever the program is; where that is inside of what catches everything, the exception is
lost, or comes out as another. Whoever works through many things asks here between two of them.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_told: list[BaseException] = []


def _terminated(number: int, _: object) -> NoReturn:
    print("terminated; whatever was complete is kept, the rest resumes where it stopped", file=sys.stderr)
    _told.append(SystemExit(128 + number))
    raise _told[-1]


def _interrupted(number: int, _: object) -> NoReturn:
    _told.append(KeyboardInterrupt())
    raise _told[-1]


@contextmanager
def listening() -> Iterator[None]:
    """Note that the process is told to end, while the block runs, and raise ``SystemExit`` or ``KeyboardInterrupt``.

    Handlers that somebody else has set stay: a launcher's worker has its own.
    """
    before: dict[int, Any] = {}
    unraisable = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        ours = (
            (signal.SIGTERM, signal.SIG_DFL, _terminated),
            (signal.SIGINT, signal.default_int_handler, _interrupted),
        )
        for number, default, handler in ours:
            if signal.getsignal(number) is default:
                # Lightning's own handler only notes the signal, and a prediction never looks; it calls the one before.
                before[number] = signal.signal(number, handler)
    if before:
        # What is raised while an object is thrown away gets no further than this, and is raised by check_told.
        sys.unraisablehook = lambda lost: None if lost.exc_value in _told else unraisable(lost)
    try:
        yield
    finally:
        for told, earlier in before.items():
            signal.signal(told, earlier)
        if before:
            sys.unraisablehook = unraisable
        _told.clear()


def check_told() -> None:
    """Raise what was lost, if the process has been told to end.

    Raises:
        SystemExit: by SIGTERM.
        KeyboardInterrupt: by Ctrl-C.
    """
    if _told:
        raise _told[0]
