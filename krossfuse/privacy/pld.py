"""Privacy loss distributions: the composition itself, on a grid, rounded so that ε is never too small.

Each round's loss is put on a grid by "connecting the dots" (Doroshenko et al., Connect the dots: tighter discrete
approximations of privacy loss distributions, arXiv 2207.04380): the mass of an interval goes to its two ends so that
both P and Q keep their masses, which dominates the round and errs in the second order. Rounds convolve by FFT. Gaussian
rounds without sampling compose to one Gaussian round, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import log_ndtr, ndtr

from krossfuse.core.errors import ConfigError
from krossfuse.privacy.pairs import Floats, Round
from krossfuse.privacy.rdp import rdp, rdp_epsilon

Direction = Literal["remove", "add", "replace"]
LEAST_DELTA = 1e-10
"""Below it the convolution's rounding would show."""
_STEPS = 4_000
"""Grid steps within ε."""
_MOST_HALF = 1 << 16
"""Grid steps within the largest loss of one round."""
_MOST_POINTS = 1 << 23
"""Of the composed loss."""


def gaussian_delta(epsilon: float, multiplier: float) -> float:
    """Return the exact δ at ε of one Gaussian round (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    a = 0.5 / multiplier
    log_second = epsilon + log_ndtr(-a - epsilon * multiplier)
    return float(max(0.0, ndtr(a - epsilon * multiplier) - math.exp(min(log_second, 0.0))))


def pld_epsilon(rounds: Mapping[Round, int], delta: float) -> float:
    """Return ε at δ of composed rounds.

    Args:
        rounds: how often each round was played.
        delta: in (0, 1); at least 1e-10 unless every round is Gaussian without sampling.

    Raises:
        ConfigError: a smaller δ.
    """
    if not rounds:
        return 0.0
    gaussian = sum(count / r.multiplier**2 for r, count in rounds.items() if r.law == "gaussian" and r.rate == 1)
    others = {r: count for r, count in rounds.items() if not (r.law == "gaussian" and r.rate == 1)}
    one = Round("gaussian", 1 / math.sqrt(gaussian)) if gaussian else None
    if not others:
        assert one is not None
        return _least(lambda epsilon: gaussian_delta(epsilon, one.multiplier), delta, rdp_epsilon({one: 1}, delta))
    if delta < LEAST_DELTA:
        raise ConfigError(
            f"delta={delta:g} is below {LEAST_DELTA:g}, which the PLD accountant cannot resolve; choose 'rdp'"
        )
    if one:
        others[one] = 1
    upper = rdp_epsilon(rounds, delta)
    step = max(_step(others, upper), *(r.largest_loss / _MOST_HALF for r in others), upper / _MOST_POINTS)
    directions: tuple[Direction, ...] = ("remove", "add")
    if all(r.relation == "replace" or r.rate == 1 for r in others):
        directions = ("replace",)
    elif any(r.relation == "replace" for r in others):
        raise ConfigError("sampled rounds of two relations (zero_out and replace) cannot be composed in one account")
    if upper == 0:
        return 0.0  # nothing is left to bound, and a grid as fine as nothing would have no end
    return min(upper, max(_composed_epsilon(others, delta, step, direction, upper) for direction in directions))


def _step(rounds: Mapping[Round, int], upper: float) -> float:
    """Return a grid step that is fine within ε, and adds less than 0.2 % to the variance of the composed loss.

    Connecting the dots adds about step²/6 a round; a round's loss has a variance of about its divergence of order 2.
    """
    variance = sum(count * max(rdp(r, (2.0,))[0], 0.0) for r, count in rounds.items()) / sum(rounds.values())
    return min(upper / _STEPS, 0.1 * math.sqrt(variance)) if variance > 0 else upper / _STEPS


@dataclass(frozen=True)
class GridLoss:
    """A loss on the grid ``step·integers``.

    Attributes:
        first: the integer of the first mass.
        masses: (m,) P-masses.
        infinite: P-mass of an infinite loss.
    """

    first: int
    masses: Floats
    infinite: float


def grid_loss(r: Round, step: float, direction: Direction) -> GridLoss:
    """Return the loss of a round on the grid, dominating it.

    Args:
        r: the round.
        step: of the grid.
        direction: ``remove`` (the sampled mixture against none), ``add`` (none against the mixture), or ``replace``:
            the larger of both at every ε, which dominates every pair of mixtures that differ in one component (Zhu,
            Dong and Wang, Optimal accounting of differential privacy via characteristic function, arXiv 2106.08567,
            proposition 30).
    """
    most = math.ceil(r.largest_loss / step) + 1
    integers = np.arange(-most, most + 1)
    edges: Floats = (integers * step).astype(np.float64)
    if direction == "replace" and r.rate < 1:
        up, down = _intervals(r, edges, "remove"), _intervals(r, edges, "add")
        positive = edges[1:] > step / 2
        p, q = np.where(positive, up[0], down[0]), np.where(positive, up[1], down[1])
        infinite = up[2]
    else:
        p, q, infinite = _intervals(r, edges, "remove" if direction == "replace" else direction)
    with np.errstate(over="ignore", invalid="ignore"):
        lower = (q * np.exp(edges[1:]) - p) / np.expm1(step)
    lower = np.clip(np.nan_to_num(lower, nan=0.0, posinf=0.0), 0.0, p)
    masses = np.zeros(len(edges))
    masses[:-1] += lower
    masses[1:] += p - lower
    # What is left: losses below the grid, lifted to its first point; for "replace" the kink at 0 where the curves meet.
    rest = max(0.0, 1 - masses.sum() - infinite)
    masses[most if direction == "replace" and r.rate < 1 else 0] += rest
    return GridLoss(-most, masses, infinite)


def _intervals(r: Round, edges: Floats, direction: Direction) -> tuple[Floats, Floats, float]:
    """Return the masses of the loss between edges, under both distributions, and the first's above all edges."""
    q = r.rate
    base_edges = edges if direction == "remove" else -edges[::-1]
    if q < 1:
        base_edges = _unsampled_loss(base_edges, q)
    p_base, q_base = r.pair.masses(np.concatenate([[-np.inf], base_edges, [np.inf]]))
    mixture = (1 - q) * q_base + q * p_base
    if direction == "remove":
        first, second = mixture, q_base
    else:
        first, second = q_base[::-1], mixture[::-1]
    return first[1:-1], second[1:-1], float(first[-1])


def _unsampled_loss(loss: Floats, q: float) -> Floats:
    """Return ℓ with ln(1 − q + q·e^ℓ) = loss; −∞ where there is none."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        small = np.log(np.maximum(np.expm1(np.minimum(loss, 30.0)) + q, 0.0) / q)
        large = loss + np.log1p(-(1 - q) * np.exp(-np.maximum(loss, 30.0))) - math.log(q)
    return np.where(loss > 30, large, small)


def _composed_epsilon(
    rounds: Mapping[Round, int], delta: float, step: float, direction: Direction, upper: float
) -> float:
    losses = [(grid_loss(r, step, direction), count) for r, count in rounds.items()]
    tail = delta * 1e-6
    low, high = _range(losses, step, tail, upper)
    size = next_fast_len(high - low + 1, real=True)
    if size > _MOST_POINTS:
        raise ConfigError("the composed loss is too wide for the PLD accountant; choose 'rdp'")
    spectrum = np.ones(size // 2 + 1, np.complex128)
    log_finite = 0.0
    for loss, count in losses:
        wrapped = np.zeros(size)
        np.add.at(wrapped, (loss.first + np.arange(len(loss.masses))) % size, loss.masses)
        spectrum *= rfft(wrapped) ** count
        log_finite += count * math.log1p(-loss.infinite)
    masses = np.maximum(np.roll(irfft(spectrum, size), -(low % size)), 0.0)
    at = (low + np.arange(size)) * step
    constant = -math.expm1(log_finite) + 2 * tail  # infinite losses, and what lies outside the window

    def delta_of(epsilon: float) -> float:
        above = at > epsilon
        return constant - float(np.dot(masses[above], np.expm1(epsilon - at[above])))

    return _least(delta_of, delta, max(upper, float(at[-1])))


def _range(losses: list[tuple[GridLoss, int]], step: float, tail: float, scale: float) -> tuple[int, int]:
    """Return grid integers that the composed loss leaves with probability below ``tail`` each, by Chernoff's bound."""
    bounds = []
    for sign in (1, -1):
        best = math.inf
        for slope in np.geomspace(1e-2, 1e3, 31) / max(scale, 1e-6):
            total = math.log(1 / tail)
            for loss, count in losses:
                exponent = sign * slope * (loss.first + np.arange(len(loss.masses))) * step
                positive = loss.masses > 0
                terms = np.log(loss.masses[positive]) + exponent[positive]
                peak = terms.max()
                total += count * (peak + math.log(np.exp(terms - peak).sum()))
            best = min(best, total / slope)
        bounds.append(sign * best)
    low_limit = sum(count * loss.first for loss, count in losses)
    high_limit = sum(count * (loss.first + len(loss.masses) - 1) for loss, count in losses)
    high = min(math.ceil(bounds[0] / step) + 1, high_limit)
    low = max(math.floor(bounds[1] / step) - 1, low_limit)
    return low, max(high, low + 1)


def _least(delta_of: Callable[[float], float], delta: float, upper: float) -> float:
    """Return the least ε ≥ 0 with delta_of(ε) ≤ delta, from above, by bisection."""
    if delta_of(0.0) <= delta:
        return 0.0
    low, high = 0.0, max(upper, 1e-9)
    while delta_of(high) > delta:
        high *= 2
        if high > 1e9:
            return math.inf
    while high - low > 1e-6 * high + 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if delta_of(middle) <= delta else (middle, high)
    return high
