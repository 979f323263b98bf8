"""The checks of what a probe is configured with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from krossfuse.core.errors import ConfigError, check_choice, check_positive

SIMILARITIES = ("dot", "cosine")


def check_names(name: str, value: object, choices: Sequence[str] | None = None) -> list[str]:
    """Return ``value`` if it is a list of names that is not empty (each one of ``choices``, where given).

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not len(value):
        raise ConfigError(f"{name}={value!r} must be a list of names that is not empty")
    return [str(v) if choices is None else check_choice(name, v, choices) for v in value]


def check_counts(name: str, value: object) -> list[int]:
    """Return ``value``, sorted and without repeats, if it is a list of positive integers that is not empty.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not len(value):
        raise ConfigError(f"{name}={value!r} must be a list of positive integers that is not empty")
    for count in value:
        check_positive(name, count, integer=True)
    return sorted(set(value))


def check_grid(name: str, grid: object) -> tuple[float, ...]:
    """Return the values of ``grid``, ascending, without repeats.

    Raises:
        ConfigError: it is empty, or a value is not positive.
    """
    if isinstance(grid, str) or not isinstance(grid, Sequence) or not len(grid):
        raise ConfigError(f"{name}={grid!r} must be a list of positive numbers that is not empty")
    for value in grid:
        check_positive(name, value)
    return tuple(sorted({float(value) for value in grid}))


def check_device(device: object) -> str | None:
    """Return ``device`` if it is None, ``"auto"`` or the name of a device as torch writes it.

    Raises:
        ConfigError: it is none of these.
    """
    if device is None or device == "auto":
        return None if device is None else "auto"
    try:
        return str(torch.device(device))  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"device={device!r} must be null (where the embeddings are), 'auto' (CUDA where there is one), 'cpu', "
            "'cuda' or 'cuda:N'"
        ) from None


def solving_device(device: str | None) -> torch.device | None:
    """Return where to compute: None is where the embeddings are, and so is ``"auto"`` without CUDA.

    Raises:
        ConfigError: there is no such device here.
    """
    if device is None or (device == "auto" and not torch.cuda.is_available()):
        return None
    chosen = torch.device("cuda" if device == "auto" else device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device!r}: there are {torch.cuda.device_count()} CUDA devices here; device=auto uses one where "
            "there is one, and the CPU elsewhere"
        )
    return chosen
