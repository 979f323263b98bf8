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


def test_a_signal_while_an_object_is_thrown_away_is_raised_later_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Thrown:
        def __init__(self, error: BaseException | None) -> None:
            self.error = error

        def __del__(self) -> None:
            if self.error is not None:
                raise self.error
            signal.raise_signal(signal.SIGTERM)

    said: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda lost: said.append(lost.exc_value))
    before, error = signal.signal(signal.SIGTERM, signal.SIG_DFL), ValueError("the object's own")
    try:
        with listening():
            Thrown(error)
            check_told()
            Thrown(None)
            with pytest.raises(SystemExit):
                check_told()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == [error]


def test_a_handler_of_somebody_else_stays() -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with listening():
            os.kill(os.getpid(), signal.SIGTERM)
            check_told()
    finally:
        signal.signal(signal.SIGTERM, before)
