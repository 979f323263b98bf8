"""Other code's log lines, kept down for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quieter(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Let loggers say nothing below a level while the block runs; one that says less already stays so.

    Args:
        names: of the loggers.
        level: the lowest that is said.

    >>> with quieter("a.library"):
    ...     logging.getLogger("a.library").isEnabledFor(logging.INFO)
    False
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(level, logger.getEffectiveLevel()))
    try:
        yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)
