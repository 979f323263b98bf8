"""A signal is not lost in a library that catches everything."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from krossfuse.core.stopping import check_told, listening


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_what_a_library_swallows_is_raised_later(number: int, raised: type[BaseException]) -> None:
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    try:
        with listening():
            check_told()
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), number)
                time.sleep(5)
            with pytest.raises(raised):
                check_told()
        with listening():
            check_told()
    finally:
        signal.signal(number, before)


def test_a_handler_of_somebody_else_stays() -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with listening():
            os.kill(os.getpid(), signal.SIGTERM)
            check_told()
    finally:
        signal.signal(signal.SIGTERM, before)
