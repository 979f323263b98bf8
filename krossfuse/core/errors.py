"""Errors that name the thing, both sides and the way out, and the checks that raise them."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Iterable


class KrossFuseError(Exception):
    """Base class of every error that KrossFuse raises on purpose."""


class ConfigError(KrossFuseError, ValueError):
    """A configuration value is impossible; nothing has been loaded or computed yet."""


class DimensionError(ConfigError):
    """A configured dimension does not fit the dimensions of the inputs."""


class DataError(KrossFuseError, ValueError):
    """The data (items, labels, features) cannot be used as they are."""


class StoreError(KrossFuseError, RuntimeError):
    """A feature-store entry is missing, damaged or locked."""


class NotFittedError(KrossFuseError, RuntimeError):
    """A component that needs a fit was used before it."""


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``choices``, or an empty string."""
    near = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ConfigError: it is not; the message lists the choices and the nearest one.
    """
    options = list(choices)
    if isinstance(value, str) and value in options:
        return value
    raise ConfigError(f"{name}={value!r} is not one of {options}{did_you_mean(value, options)}")


def check_positive(name: str, value: object, *, integer: bool = False) -> None:
    """Check that ``value`` is a finite number (an integer if asked) above zero.

    Raises:
        ConfigError: it is not.
    """
    kind = "a positive integer" if integer else "a positive, finite number"
    number = isinstance(value, int) or (not integer and isinstance(value, float))
    if isinstance(value, bool) or not number or not value > 0 or not math.isfinite(value):  # type: ignore[operator,arg-type]
        raise ConfigError(f"{name}={value!r} must be {kind}")


def check_range(name: str, value: object, low: float, high: float, why: str) -> None:
    """Check that ``value`` is a number from ``low`` to ``high``.

    Raises:
        ConfigError: it is not; ``why`` says where the bounds come from.
    """
    check_positive(name, value)
    if not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"{name}={value!r} must be a number from {low:g} to {high:g}: {why}")


def require(package: str, what: str, *, extra: str, instead: str = "") -> None:
    """Check that an optional package is installed; nothing is imported.

    Args:
        package: its name, as imported.
        what: what needs it, as the user says it.
        extra: of krossfuse, that brings it.
        instead: what needs it not.

    Raises:
        ConfigError: it is not installed; the message names the extra.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{what} needs the package {package}, which is not installed: pip install 'krossfuse[{extra}]'"
            f"{instead and f' ({instead} needs nothing more)'}"
        )
