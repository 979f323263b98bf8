"""The precision in which a model computes and writes, by name."""

from __future__ import annotations

import torch

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.features.entry import DTYPES


def dtype_named(name: str | torch.dtype, *, option: str = "dtype") -> torch.dtype:
    """Return a floating-point dtype by its name; one that is given as such is returned.

    Args:
        name: ``float32``, ``float16``, ``bfloat16``, or a dtype.
        option: how the user calls it, for the message.

    Raises:
        ConfigError: no such precision, or a dtype of no floating-point numbers.

    Examples:
        >>> dtype_named("bfloat16")
        torch.bfloat16
    """
    if isinstance(name, str):
        dtype: torch.dtype = getattr(torch, check_choice(option, name, DTYPES))
        return dtype
    if not isinstance(name, torch.dtype) or not name.is_floating_point:
        raise ConfigError(f"{option}={name!r} must be a floating-point dtype, or one of {list(DTYPES)}")
    return name


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as :func:`dtype_named` takes it."""
    return str(dtype).removeprefix("torch.")
