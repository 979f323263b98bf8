"""The cosine kernel about the mean of the fit set, with a power that tames heavy tails."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError, NotFittedError, check_range
from krossfuse.fusion.kernels.base import Kernel, unit_rows
from krossfuse.fusion.rows import can_look, compiles, holds

POWERS = (0.5, 1.0)
"""The power that is chosen lies between the signed square root and the features as they are."""

LIVE = 1e-8
"""A coordinate whose variance is a smaller share of the largest one does not count for the choice of the power."""

_FIT_ROWS = 4096


class CentredKernel(Kernel):
    """The cosine of unit features less their mean, after a signed power of each coordinate.

    With u = x/‖x‖, μ the mean of u over the fit set, and ν that of s,

        z = u − μ,    s = z̃/‖z̃‖, z̃_j = sign(z_j)·|z_j|^a,    φ(x) = (s − ν)/‖s − ν‖.

    Encoders put all their features into a narrow cone: without its axis, ⟨φ(x), φ(y)⟩ is about 0 for unrelated x and y
    whatever the encoder, so that kernels of two encoders can be added and multiplied on equal terms. ``power="auto"``
    is a = √(3/κ), between ½ and 1, with κ the median over the coordinates of E z_j⁴/(E z_j²)²: coordinates with normal
    tails (κ = 3) are left as they are, and of those with heavy tails no single one decides. Label-free. It does not
    change if all features, or single rows, are scaled, nor if coordinates are permuted or change their sign; with
    a = 1, nor under rotations. Section 3 of docs/mathematics.md.

    Args:
        in_dim: dimension of the parent's features.
        power: a in (0, 1], or "auto".
        seed: not used.

    Raises:
        ConfigError: an impossible power.

    Example:
        >>> x = torch.tensor([[3.0, 1.0], [3.0, -1.0]])  # a cosine of 0.8, most of it the common direction
        >>> CentredKernel(2).fit(x).kernel(x[:1], x[1:]).round()
        tensor([[-1.]])
    """

    name = "centred"
    mean: Tensor
    centre: Tensor
    power: Tensor

    def __init__(self, in_dim: int, *, power: float | str = "auto", seed: int = 0) -> None:
        super().__init__(in_dim)
        if power != "auto":
            check_range("power", power, 1e-3, 1.0, "it is the exponent of each coordinate; or say 'auto'")
        self.out_dim, self.configured_power = in_dim, power
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("centre", torch.zeros(in_dim))
        self.register_buffer("power", torch.tensor(math.nan))  # until the fit
        self._power = math.nan  # the same, as a number that a traced function holds

    @property
    def needs_fit(self) -> bool:
        """Always: the means are the fit set's."""
        return True

    def check_rows(self, rows: int) -> None:
        """Check that there are two rows, which can differ."""
        if rows < 2:
            raise DataError(f"the centred kernel needs two rows of features at least, got {rows}")

    def fit(self, x: Tensor) -> Self:
        """Take the means and the power from (n, in_dim) features, in float64 and in three passes.

        Raises:
            DataError: fewer than two rows, or all of one direction; otherwise as :meth:`forward`.
        """
        self.check_rows(len(x))
        mean = self._mean(self._units(x), len(x))
        second, fourth = torch.zeros_like(mean), torch.zeros_like(mean)
        for u in self._units(x):
            squares = (u - mean).square()
            second += squares.sum(0)
            fourth += squares.square().sum(0)
        second, fourth = second / len(x), fourth / len(x)
        if not bool(second.sum() > torch.finfo(torch.float32).eps ** 2):
            raise DataError(f"the features of all {len(x)} rows have one direction; there is nothing to centre")
        power = self.configured_power
        if isinstance(power, str):
            live = second > LIVE * second.max()
            kurtosis = float((fourth[live] / second[live].square()).median())
            power = min(max(math.sqrt(3 / kurtosis), POWERS[0]), POWERS[1])
        self.mean.copy_(mean)
        self.power.fill_(power)
        self._power = float(self.power)
        self.centre.copy_(self._mean((self._powered(u - mean) for u in self._units(x)), len(x)))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._power = float(self.power)

    def _mean(self, rows: Iterator[Tensor], count: int) -> Tensor:
        total = torch.zeros(self.in_dim, dtype=torch.float64, device=self.mean.device)
        for x in rows:
            total += x.sum(0)
        return total / count

    def _units(self, x: Tensor) -> Iterator[Tensor]:
        for rows in blocks(len(x), _FIT_ROWS):
            yield unit_rows(self._check(x[rows].double()))

    def _powered(self, z: Tensor) -> Tensor:
        a = float(self.power) if can_look() else self._power
        if a == 0.5:
            z = z.sign() * z.abs().sqrt()
        elif a != 1 and compiles():
            # Of the same value; TorchInductor keeps it for the norm, where it computes a plain power twice.
            z = z.sign() * (z.abs().log() * a).exp()
        elif a != 1:
            z = z.sign() * z.abs().pow(a)
        return torch.nn.functional.normalize(z, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return φ(x), (n, in_dim), of unit norm; zero where x has the very direction of the mean."""
        if can_look() and not holds(~torch.isnan(self.power)):
            raise NotFittedError("the centred kernel has no mean yet; call fit() on training features first")
        return torch.nn.functional.normalize(self._powered(unit_rows(self._check(x)) - self.mean) - self.centre, dim=1)

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ⟨φ(x), φ(y)⟩, between −1 and 1."""
        cosine: Tensor = self(x) @ self(y).T
        return cosine

    def describe(self) -> dict[str, Any]:
        """Return the configuration, with the power in use (None before the fit)."""
        power = float(self.power)
        described = {"kernel": self.name, "power": None if math.isnan(power) else power}
        return {**described, **({"power_rule": "auto"} if self.configured_power == "auto" else {})}
