"""Rows of features that cannot be fused: the error that knows which they are, and where they stand in a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError

_SCAN_ROWS = 4096


class RowError(DataError):
    """Some rows of the features cannot be fused.

    Args:
        reason: what is wrong with them.
        bad: (n, dim) features in, (n,) bool out: which rows are.
        x: the rows at hand.

    Attributes:
        role: of the features, once it is known.
    """

    def __init__(self, reason: str, bad: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.reason, self.bad, self.dtype = reason, bad, x.dtype
        self.role: str | None = None
        rows = bad(x).nonzero().flatten()
        super().__init__(f"{reason} in {len(rows)} of {len(x)} rows, the first at row {int(rows[0])} of the batch")


def can_look() -> bool:
    """Return whether values can be looked at: not while a method is traced into a function of tensors.

    Then nothing is checked: what is refused otherwise comes out as NaN (:mod:`krossfuse.fusion.export`). Nor can they
    while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling():
        return False
    capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]
    return not capturing


_NOTED: ContextVar[list[Tensor] | None] = ContextVar("noted", default=None)


def holds(condition: Tensor) -> bool:
    """Return whether a condition (0-dimensional) on values holds; inside :func:`looked_at_once` it is noted only."""
    noted = _NOTED.get()
    if noted is None or condition.device.type == "cpu":
        return bool(condition)
    noted.append(condition)
    return True


def looked_at_once(run: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Return what ``run`` does, which asks :func:`holds` as it goes: an accelerator is waited for once, at the end.

    Where a condition did not hold, it runs again and looks each time, and so refuses or mends what it found.

    Args:
        run: computes on the device, and can be run twice.
        device: a CPU has nothing to wait for, and looks each time.
    """
    if device.type == "cpu" or _NOTED.get() is not None or not can_look():
        return run()
    noted: list[Tensor] = []
    token = _NOTED.set(noted)
    try:
        out = run()
    finally:
        _NOTED.reset(token)
    return out if not noted or bool(torch.stack(noted).all()) else run()


def compiles() -> bool:
    """Return whether ``torch.compile`` traces a method, rather than an exporter; False where torch does not say."""
    exporting = getattr(torch.compiler, "is_exporting", None)
    return torch.compiler.is_compiling() and exporting is not None and not exporting()


def not_finite(x: Tensor) -> Tensor:
    """Return which rows hold NaN or infinity."""
    return ~torch.isfinite(x).all(1)


def zero(x: Tensor) -> Tensor:
    """Return which rows are zero."""
    return (x == 0).all(1)


def check_features(role: str, x: object, dim: int) -> None:
    """Check that the features of a role are a matrix of floating-point numbers.

    Args:
        role: whose they are.
        x: the features; the number of columns is the kernel's to check.
        dim: of the role, for the message.

    Raises:
        DataError: they are no tensor, not (n, dim), or not floating-point.
    """
    if not isinstance(x, Tensor):
        raise DataError(f"features of {role!r} must be a tensor of shape (n, {dim}), got a {type(x).__name__}; "
                        f"use torch.as_tensor")  # fmt: skip
    if x.ndim != 2:
        raise DataError(f"features of {role!r}: expected features of shape (n, {dim}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        precision = str(x.dtype).removeprefix("torch.")
        raise DataError(f"features of {role!r} must be floating-point numbers, got {precision}; use .float()")


@contextmanager
def of_role(role: str) -> Iterator[None]:
    """Name the role in the errors of the block."""
    try:
        yield
    except DataError as error:
        error.args = (f"features of {role!r}: {error}",)
        if isinstance(error, RowError):
            error.role = role
        raise


def located(error: RowError, where: str, x: Tensor) -> DataError | None:
    """Return the error that says where all the bad rows stand in a whole part.

    Args:
        error: of some of its rows.
        where: the part's name.
        x: (n, dim) features of the part and of the error's role.

    Returns:
        None where no row of the part is bad.
    """
    bad, exact, first, count = 0, 0, -1, 0
    for rows in blocks(len(x), _SCAN_ROWS):
        mask = error.bad(x[rows].to(error.dtype))
        bad, count = bad + int(mask.sum()), count + len(mask)
        exact += int(error.bad(x[rows]).sum())
        if first < 0 and bad:
            first = rows.start + int(mask.nonzero()[0])
    if not bad:
        return None
    precision = str(error.dtype).removeprefix("torch.")
    reason = error.reason if exact else f"{error.reason} (in {precision}, whose range they leave)"
    of = "features" if error.role is None else f"features of {error.role!r}"
    return DataError(f"{where}: {of}: {reason} in {bad} of {count} rows, the first at row {first}")
