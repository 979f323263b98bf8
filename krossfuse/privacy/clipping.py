"""Clipping the WHOLE update: what bounds a client's influence, hence the sensitivity.

Clipping every tensor to C instead would leave √L·C for L tensors.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.errors import check_choice, check_positive

Norm = Literal["l2", "l1"]
NORMS: tuple[Norm, ...] = ("l2", "l1")
_MARGIN = 1 - 2.0**-22
"""So that rounding to float32 does not lift a clipped norm above its bound."""


def clip(updates: NDArray, bound: float | NDArray[np.float64], norm: Norm = "l2") -> NDArray:
    """Return updates scaled down to a norm of at most ``bound``; shorter ones are returned as they are.

    Args:
        updates: (..., d) float, each row ONE client's whole update.
        bound: C > 0, a number or one a row. L2 for Gaussian noise, L1 for Laplace noise.
        norm: ``l2`` or ``l1``.

    Returns:
        the same shape and type.

    Raises:
        ConfigError: a bound that is not positive, or an unknown norm.
    """
    check_choice("norm", norm, NORMS)
    bounds = np.asarray(bound, dtype=np.float64)
    for value in np.atleast_1d(bounds):
        check_positive("clip", float(value))
    lengths = norms(updates, norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(lengths > bounds, bounds / lengths * _MARGIN, 1.0)
    return (updates * factors[..., None]).astype(updates.dtype)


def norms(updates: NDArray, norm: Norm = "l2") -> NDArray[np.float64]:
    """Return the (...,) norms of (..., d) updates, summed in float64."""
    wide = updates.astype(np.float64)
    if norm == "l1":
        total: NDArray[np.float64] = np.abs(wide).sum(axis=-1)
        return total
    length: NDArray[np.float64] = np.sqrt(np.square(wide, out=wide).sum(axis=-1))
    return length
