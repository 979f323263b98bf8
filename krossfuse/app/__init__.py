"""The application: composing, checking, running and reporting jobs; the only room that knows all the others."""

from __future__ import annotations

from typing import Any

from krossfuse.core.lazy import attribute

# Loaded when first used: `krossfuse --help` needs none of the libraries behind them.
_HOME = {"CONFIG_DIR": "paths", "check": "build", "job_config": "build", "hydra_main": "command", "main": "command"}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    return attribute(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
