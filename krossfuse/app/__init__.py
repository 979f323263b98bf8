"""The application: composing, checking, running and reporting jobs; the only room that knows all the others."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Loaded when first used: `krossfuse --help` needs none of the libraries behind them.
_HOME = {"CONFIG_DIR": "paths", "check": "build", "job_config": "build", "hydra_main": "command", "main": "command"}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
