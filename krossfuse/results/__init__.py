"""Records, run folders, aggregation with intervals, trackers. Knows not how a measurement was computed."""

from __future__ import annotations

from typing import Any

from krossfuse.core.lazy import attribute

# Loaded when first used: a command that only reads a configuration needs none of the libraries behind them.
_HOMES = {
    "records": ("Record",),
    "runs": ("read_run", "read_runs"),
    "trackers": ("CsvTracker", "MlflowTracker", "NoTracker", "TensorBoardTracker", "Tracker", "WandbTracker"),
    "writer": ("RunWriter",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    return attribute(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
