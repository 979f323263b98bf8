"""Dominating pairs: the one-dimensional question that a round of a mechanism amounts to.

A pair (P, Q) of distributions dominates a mechanism if no pair of neighbouring data sets is easier to tell apart. All
accounting here is of the privacy loss ℓ = ln dP/dQ of such a pair, in units of the sensitivity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from krossfuse.core.errors import ConfigError, check_choice, check_positive

Floats = NDArray[np.float64]
Relation = Literal["zero_out", "replace"]
RELATIONS: tuple[Relation, ...] = ("zero_out", "replace")


class Pair(Protocol):
    """A symmetric dominating pair: the loss of (P, Q) under P is minus that under Q."""

    @property
    def largest_loss(self) -> float:
        """A loss that is exceeded with probability below 1e-17."""

    def masses(self, edges: Floats) -> tuple[Floats, Floats]:
        """Return P and Q of the loss in each of the intervals (edges[i], edges[i+1]]; edges may be infinite."""

    def log_moments(self, orders: Floats, rate: float) -> Floats:
        """Return ln E_Q[(1 − rate + rate·dP/dQ)^α] for (m,) orders α."""


@dataclass(frozen=True)
class GaussianPair:
    """N(1, z²) against N(0, z²): one round of a Gaussian mechanism of noise multiplier z.

    For vectors too: only the distance of the means counts.

    Attributes:
        multiplier: z, the noise's standard deviation over the sensitivity.
    """

    multiplier: float

    @property
    def _mean(self) -> float:
        return 0.5 / self.multiplier**2

    @property
    def largest_loss(self) -> float:
        """The mean and 8.6 standard deviations."""
        return self._mean + 8.6 / self.multiplier

    def masses(self, edges: Floats) -> tuple[Floats, Floats]:
        """The loss is N(±1/2z², 1/z²)."""
        return (
            _normal_masses((edges - self._mean) * self.multiplier),
            _normal_masses((edges + self._mean) * self.multiplier),
        )

    def log_moments(self, orders: Floats, rate: float) -> Floats:
        """By the trapezium rule, which converges geometrically for analytic functions on the line.

        The integral of Mironov, Talwar and Zhang, Rényi differential privacy of the sampled Gaussian mechanism, arXiv
        1908.10530, equation 4, at any order.
        """
        z = self.multiplier
        if rate == 1.0:
            return orders * (orders - 1) * self._mean
        out = np.empty(len(orders))
        for i, order in enumerate(orders):
            step = z / 32
            x = gaussian_points(z, float(order), step)
            log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) * self._mean)
            log_terms = order * log_ratio - x * x * self._mean
            peak = log_terms.max()
            out[i] = peak + math.log(np.exp(log_terms - peak).sum() * step / (z * math.sqrt(2 * math.pi)))
        return out


def gaussian_points(z: float, order: float, step: float) -> Floats:
    """Return a grid over all that counts of an integral against N(0, z²) of what grows as e^(order·loss).

    Its integrand has its maxima near 0 and near ``order``; for small z nothing counts between them.
    """
    if z >= 1 or order <= 24 * z:
        return np.arange(-12 * z, order + 12 * z + step, step)
    window = np.arange(-12 * z, 12 * z + step, step)
    return np.concatenate([window, order + window])


@dataclass(frozen=True)
class LaplacePair:
    """Laplace(0, b) against Laplace(C₁, b): one round of a Laplace mechanism with L1 sensitivity C₁.

    For vectors too: the whole distance in one coordinate is the worst case (a test compares with splits of it).

    Attributes:
        multiplier: b/C₁.
    """

    multiplier: float

    @property
    def largest_loss(self) -> float:
        """C₁/b: the pure ε of a round."""
        return 1 / self.multiplier

    def masses(self, edges: Floats) -> tuple[Floats, Floats]:
        """Atoms of P at ±C₁/b of mass ½ and ½·exp(−C₁/b); between them P[ℓ ≤ t] = ½·exp(−(C₁/b − t)/2)."""
        most = self.largest_loss
        inner = np.clip(edges, -most, most)
        p = np.where(edges >= most, 1.0, np.where(edges < -most, 0.0, 0.5 * np.exp(-(most - inner) / 2)))
        q = np.where(edges >= most, 1.0, np.where(edges < -most, 0.0, 1 - 0.5 * np.exp(-(most + inner) / 2)))
        return np.diff(p), np.diff(q)

    def log_moments(self, orders: Floats, rate: float) -> Floats:
        """The atoms, and Gauss-Legendre quadrature between them."""
        most = self.largest_loss
        nodes, weights = np.polynomial.legendre.leggauss(256)
        loss = np.concatenate([nodes * most, [most, -most]])
        # under Q: density ¼·exp(−(most + ℓ)/2) between the atoms, which have masses ½·exp(−most) and ½
        log_q = np.concatenate(
            [np.log(weights * most / 4) - (most + nodes * most) / 2, [-most - math.log(2), -math.log(2)]]
        )
        log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + loss) if rate < 1 else loss
        terms = orders[:, None] * log_ratio + log_q
        peak = terms.max(axis=1)
        moments: Floats = peak + np.log(np.exp(terms - peak[:, None]).sum(axis=1))
        return moments


@dataclass(frozen=True)
class Round:
    """One round, as the accountant sees it.

    Attributes:
        law: ``gaussian`` or ``laplace``.
        multiplier: noise over sensitivity: standard deviation over L2, or scale b over L1.
        rate: chance to take part, for Poisson or without-replacement sampling that nobody sees; 1 for none.
        relation: ``zero_out`` (a contribution is there or is zero) or ``replace`` (it is another one; the multiplier
            already has the doubled sensitivity).

    Raises:
        ConfigError: a multiplier that is not positive, a rate outside (0, 1], an unknown law or relation.
    """

    law: str
    multiplier: float
    rate: float = 1.0
    relation: Relation = "zero_out"

    def __post_init__(self) -> None:
        check_choice("law", self.law, ("gaussian", "laplace"))
        check_choice("relation", self.relation, RELATIONS)
        check_positive("noise multiplier", self.multiplier)
        if not 0 < self.rate <= 1:
            raise ConfigError(f"sampling rate {self.rate!r} must be above 0 and at most 1")

    @property
    def largest_loss(self) -> float:
        """A loss of the sampled round, of either sign, that is exceeded with probability below 1e-17."""
        most = self.pair.largest_loss
        return most if self.rate == 1 or most > 700 else math.log1p(self.rate * math.expm1(most))

    @property
    def pair(self) -> Pair:
        """The pair of the round without sampling."""
        return GaussianPair(self.multiplier) if self.law == "gaussian" else LaplacePair(self.multiplier)


def _normal_masses(edges: Floats) -> Floats:
    """Return the masses of N(0, 1) between edges, accurate in both tails."""
    low, high = edges[:-1], edges[1:]
    upper = low > 0
    masses: Floats = np.where(upper, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return masses
