"""Lattices to quantise on: Z^n, A2, D_n and E8, as unions of shifted grids.

Every lattice here is a base grid and its translates by *glue* vectors: Z^n is a grid of cubes, D_n its points of even
sum, A2 two shifted rectangular grids, E8 = D8 ∪ (D8 + ½). Nearest points after Conway and Sloane, Fast quantizing and
decoding algorithms for lattice quantizers and codes, IEEE Trans. IT 28 (1982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.errors import ConfigError, did_you_mean

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]
Cosets = NDArray[np.uint8]


def ball_volume(n: int) -> float:
    """Return the volume of the unit ball in n dimensions."""
    return float(math.pi ** (n / 2) / math.gamma(n / 2 + 1))


@dataclass(frozen=True)
class Lattice:
    """A lattice, its geometry and its coordinates as integers.

    A point is ``glue + widths·index`` with an integer index a coordinate; where ``even``, the indices of a coset have
    an even sum and the last one counts by its parity class. Arrays are (coordinates, blocks): a row is a coordinate.

    Attributes:
        name: as in configurations and messages.
        widths: spacing of the base grid a coordinate.
        glue: the translates of the base grid, the zero vector first.
        even: whether the base grid keeps only the points of even sum (widths 1).
        packing_radius: half the distance of nearest neighbours.
        code: number in the messages.
    """

    name: str
    widths: tuple[float, ...]
    glue: tuple[tuple[float, ...], ...]
    even: bool
    packing_radius: float
    code: int

    @property
    def dim(self) -> int:
        """Coordinates of a block."""
        return len(self.widths)

    @property
    def cell_volume(self) -> float:
        """Volume of a fundamental cell: one point's share of space."""
        return math.prod(self.widths) * (2 if self.even else 1) / len(self.glue)

    @property
    def density(self) -> float:
        """Packing density: the part of space within the packing radius of a point, the chance to accept a try."""
        return ball_volume(self.dim) * self.packing_radius**self.dim / self.cell_volume

    @property
    def period(self) -> tuple[float, ...]:
        """Sides of a box that tiles space by translates in the lattice: what a dither is uniform on."""
        return tuple(2.0 for _ in self.widths) if self.even else self.widths

    def nearest(self, y: Floats) -> tuple[Floats, Cosets]:
        """Return the nearest point of each column, and the number of its coset.

        Args:
            y: (dim, m) float64.

        Returns:
            (dim, m) float64 points, and (m,) uint8 rows of ``glue``.
        """
        best = self.nearest_in_coset(y, 0)
        cosets = np.zeros(y.shape[1], np.uint8)
        if len(self.glue) > 1:
            distance = squared_norm(best - y)
            for coset in range(1, len(self.glue)):
                point = self.nearest_in_coset(y, coset)
                other = squared_norm(point - y)
                nearer = other < distance
                np.copyto(best, point, where=nearer)
                cosets[nearer] = coset
                np.minimum(distance, other, out=distance)
        return best, cosets

    def nearest_in_coset(self, y: Floats, coset: int) -> Floats:
        """Return the nearest point of one translate of the base grid to each column."""
        target = y
        if coset:
            target = target - self._column(self.glue[coset])
        if not self._unit:
            target = target / self._column(self.widths)
        point = np.rint(target)
        if self.even:
            _make_even(target, point)
        if not self._unit:
            point *= self._column(self.widths)
        if coset:
            point += self._column(self.glue[coset])
        return point

    @property
    def _unit(self) -> bool:
        return all(width == 1.0 for width in self.widths)

    @property
    def index_rows(self) -> int:
        """Integers of a point: its coordinates, after the number of its coset where there are several."""
        return self.dim + (len(self.glue) > 1)

    def index(self, points: Floats, cosets: Cosets) -> Integers:
        """Return the (index_rows, m) int32 of the points of :meth:`nearest`.

        Raises:
            ConfigError: an integer is beyond 2^30.
        """
        first = int(len(self.glue) > 1)
        steps = points - np.asarray(self.glue).T[:, cosets] if first else points
        if not self._unit:
            steps = np.rint(steps / self._column(self.widths))
        if steps.size and max(-steps.min(), steps.max()) >= 2**30:
            raise ConfigError(
                "a coordinate is over 2^30 quantiser steps: the update is too large for this noise; clip it, raise "
                "sigma, or send it by mechanism 'none'"
            )
        index = np.empty((self.dim + first, steps.shape[1]), np.int32)
        if first:
            index[0] = cosets
        index[first:] = steps
        if self.even:
            index[-1] = (index[-1] - self._parity(index)) >> 1
        return index

    def _parity(self, index: Integers) -> Integers:
        """Return the parity of the last coordinate, which makes the sum even."""
        first = int(len(self.glue) > 1)
        parity: Integers = index[first : first + self.dim - 1].sum(axis=0, dtype=np.int64).astype(np.int32) & 1
        return parity

    def points(self, index: Integers) -> Floats:
        """Return the (dim, m) points of (index_rows, m) integers, the inverse of :meth:`index`."""
        first = int(len(self.glue) > 1)
        out = index[first:].astype(np.float64)
        if self.even:
            out[-1] *= 2
            out[-1] += self._parity(index)
        if not self._unit:
            out *= self._column(self.widths)
        if first:
            out += np.asarray(self.glue).T[:, index[0]]
        return out

    def grid_line(self, index: Integers, coordinate: int) -> tuple[float, float | Floats]:
        """Return how coordinate ``coordinate`` follows from its integer: value = width·integer + offset.

        Args:
            index: (index_rows, m) int32 of which the coset and the coordinates before this one are read.
            coordinate: 0, ..., dim − 1.

        Returns:
            the width and the offset, a number or (m,).
        """
        first = int(len(self.glue) > 1)
        offset: float | Floats = np.asarray(self.glue)[:, coordinate][index[0]] if first else 0.0
        if self.even and coordinate == self.dim - 1:
            return 2.0, self._parity(index).astype(np.float64) + offset
        return self.widths[coordinate], offset

    @staticmethod
    def _column(vector: tuple[float, ...]) -> Floats:
        return np.asarray(vector)[:, None]


def _make_even(target: Floats, rounded: Floats) -> None:
    """Where the sum of a column of ``rounded`` is odd, round its worst coordinate the other way, in place."""
    half = rounded.sum(axis=0) * 0.5
    odd = np.flatnonzero(half != np.floor(half))
    error = target[:, odd] - rounded[:, odd]
    worst = np.abs(error).argmax(axis=0)
    rounded[worst, odd] += np.where(error[worst, np.arange(odd.size)] < 0, -1.0, 1.0)


def squared_norm(x: Floats) -> Floats:
    """Return the (m,) squared norms of (n, m) columns, added in order, so that the bits do not depend on m."""
    total: Floats = x[0] * x[0]
    for row in x[1:]:
        total += row * row
    return total


def integer_lattice(n: int) -> Lattice:
    """Return Z^n: the grid of unit cubes."""
    return Lattice(f"Z{n}", (1.0,) * n, ((0.0,) * n,), False, 0.5, n)


def checkerboard_lattice(n: int) -> Lattice:
    """Return D_n, n ≥ 3: the integer points of even sum."""
    return Lattice(f"D{n}", (1.0,) * n, ((0.0,) * n,), True, math.sqrt(0.5), 32 + n)


def hexagonal_lattice() -> Lattice:
    """Return A2 with nearest neighbours at distance 1."""
    root = math.sqrt(3.0)
    return Lattice("A2", (1.0, root), ((0.0, 0.0), (0.5, root / 2)), False, 0.5, 64)


def e8_lattice() -> Lattice:
    """Return E8 = D8 ∪ (D8 + ½), the densest lattice of 8 dimensions."""
    return Lattice("E8", (1.0,) * 8, ((0.0,) * 8, (0.5,) * 8), True, math.sqrt(0.5), 72)


@lru_cache(maxsize=1)
def lattices() -> dict[str, Lattice]:
    """Return every lattice that a message may name, by name."""
    known = [integer_lattice(n) for n in range(1, 9)] + [hexagonal_lattice()]
    known += [checkerboard_lattice(n) for n in range(3, 9)] + [e8_lattice()]
    return {lattice.name: lattice for lattice in known}


def find_lattice(name: str) -> Lattice:
    """Return the lattice called ``name``.

    Raises:
        ConfigError: there is none; the message lists them.
    """
    try:
        return lattices()[name]
    except KeyError:
        raise ConfigError(
            f"lattice={name!r} is not one of {list(lattices())}{did_you_mean(name, lattices())}"
        ) from None


def lattice_of_code(code: int) -> Lattice | None:
    """Return the lattice with a message's number, or None."""
    return next((lattice for lattice in lattices().values() if lattice.code == code), None)


E8_FROM = 0.85
"""s/σ from which E8 needs fewer bits than Z1 with this coder, for normal and for Laplace updates (measured)."""


def choose_lattice(rms: float, sigma: float) -> Lattice:
    """Return the lattice that sends coordinates of root mean square ``rms`` in the fewest bits at noise ``sigma``."""
    return find_lattice("E8" if rms > E8_FROM * sigma else "Z1")
