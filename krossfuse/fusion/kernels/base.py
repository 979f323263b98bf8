"""What a kernel is: a feature map φ with its exact kernel function k(x, y) beside it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from krossfuse.core.errors import DataError, check_positive
from krossfuse.fusion.rows import RowError, can_look, holds, not_finite, zero


class Kernel(nn.Module, ABC):
    """A kernel of one parent: feature map by :meth:`forward`, exact value by :meth:`kernel`.

    Attributes:
        name: as in the configuration and in results.
        in_dim: dimension of the parent's features.
        out_dim: dimension of the feature map.
        deterministic: no seed changes it. Every kernel takes a ``seed``; those that draw nothing have no use for it.
    """

    name: ClassVar[str]
    in_dim: int
    out_dim: int
    deterministic: bool = True

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        check_positive("in_dim", in_dim, integer=True)
        self.in_dim = in_dim

    @property
    def needs_fit(self) -> bool:
        """Whether :meth:`fit` must run before anything else."""
        return False

    def check_rows(self, rows: int) -> None:
        """Check that a fit on so many rows is possible.

        Raises:
            DataError: they are too few.
        """

    def fit(self, x: Tensor) -> Self:
        """Fit on (n, in_dim) features, without labels; nothing to do for most kernels."""
        return self

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return φ(x): (n, in_dim) to (n, out_dim).

        Raises:
            DataError: NaN or infinite features, a wrong dimension, or a zero vector where direction matters.
            NotFittedError: the bandwidth has not been fitted.
        """

    @abstractmethod
    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the exact kernel (n, m) of (n, in_dim) and (m, in_dim); raises as :meth:`forward`."""

    def describe(self) -> dict[str, Any]:
        """Return the kernel's configuration, flat and JSON-able."""
        return {"kernel": self.name}

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise DataError(f"expected features of shape (n, {self.in_dim}), got {tuple(x.shape)}")
        # One cheap pass: a finite sum has finite terms only (a sum that overflows is looked at again).
        if can_look() and not holds(torch.isfinite(x.detach().sum())) and not bool(torch.isfinite(x).all()):
            raise RowError("NaN or infinite features", not_finite, x)
        return x


def unit_rows(x: Tensor) -> Tensor:
    """Return x / ‖x‖, row by row.

    Rows whose squares leave the range of the precision are scaled by their largest entry first, so every finite row
    but zero has its direction (but not in a traced function, which has no such second look).

    Raises:
        RowError: NaN, infinity or a zero vector.
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if not can_look():
        traced: Tensor = x / norm
        return traced
    low, high = norm.detach().aminmax() if len(x) else (norm.new_ones(()), norm.new_ones(()))
    # Half precision is accumulated in float32, where its squares have room. aminmax propagates NaN: comparisons fail.
    floor = 0.0 if x.element_size() < 4 else torch.finfo(x.dtype).tiny ** 0.5 / torch.finfo(x.dtype).eps
    if not holds((low > floor) & (high < math.inf)):
        for reason, bad in (("NaN or infinite features", not_finite), ("zero vectors, which have no direction,", zero)):
            if bool(bad(x).any()):
                raise RowError(reason, bad, x)
        rescue = (norm <= floor) | ~(norm < math.inf)
        scaled = x / x.abs().amax(1, keepdim=True)
        rescued: Tensor = torch.where(rescue, scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True), x / norm)
        return rescued
    unit: Tensor = x / norm
    return unit
