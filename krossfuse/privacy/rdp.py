"""Rényi differential privacy: a bound for every order, added over rounds (Mironov, arXiv 1702.07476)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from scipy.special import gammaln

from krossfuse.privacy.pairs import Floats, GaussianPair, Round, gaussian_points

ORDERS: Floats = np.unique(
    np.concatenate([1 + np.geomspace(1e-3, 15, 240), np.arange(2.0, 65), 2.0 ** np.arange(6.5, 10, 0.5)])
)
MOST_REPLACE_ORDER = 128
"""Largest order of sampled rounds with a replaced contribution, whose bound costs the square of it."""
_DENSE: Floats = 1 + np.geomspace(1e-5, 1e5, 4001)


def rdp_epsilon(rounds: Mapping[Round, int], delta: float) -> float:
    """Return ε at δ of composed rounds.

    The conversion is that of Balle et al., Hypothesis testing interpretations and Rényi differential privacy, arXiv
    1905.09982 (theorem 21), minimised over the orders; and a pure ε where every round has one, if it is less.

    Args:
        rounds: how often each round was played.
        delta: in (0, 1).
    """
    if not rounds:
        return 0.0
    orders = _DENSE if all(r.law == "gaussian" and r.rate == 1 for r in rounds) else ORDERS
    if any(r.relation == "replace" and r.rate < 1 for r in rounds):
        orders = orders[orders <= MOST_REPLACE_ORDER]
    total = np.zeros(len(orders))
    for r, count in rounds.items():
        total += count * np.asarray(rdp(r, tuple(orders)))
    epsilon = total + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    pure = sum(count * pure_epsilon(r) for r, count in rounds.items())
    return max(0.0, min(float(epsilon.min()), pure))


def pure_epsilon(r: Round) -> float:
    """Return the ε at δ = 0 of a round: infinite for Gaussian noise."""
    if r.law == "gaussian":
        return math.inf
    return math.log1p(r.rate * math.expm1(1 / r.multiplier)) if 1 / r.multiplier < 700 else 1 / r.multiplier


@lru_cache(maxsize=256)
def rdp(r: Round, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Return the Rényi divergence bound of one round at each order."""
    alphas = np.asarray(orders)
    if r.rate == 1:
        return tuple(r.pair.log_moments(alphas, 1.0) / (alphas - 1))
    if r.relation == "replace":
        return tuple(replace_log_moments(r, alphas) / (alphas - 1))
    moments = r.pair.log_moments(alphas, r.rate)  # of the mixture against Q
    if r.law != "gaussian":  # Q against the mixture: never the larger for Gaussian noise (arXiv 1908.10530, theorem 5)
        moments = np.maximum(moments, r.pair.log_moments(1 - alphas, r.rate))
    return tuple(np.maximum(moments, 0) / (alphas - 1))


def replace_log_moments(r: Round, orders: Floats) -> Floats:
    """Return the bound on ln of the α-moment of a sampled round whose neighbours differ in one replaced contribution.

    Wang, Balle and Kasiviswanathan, Subsampled Rényi differential privacy and analytical moments accountant, arXiv
    1808.00087, theorem 27, with the moments of |dP/dQ − 1| by the trapezium rule; between integers the logarithm is
    interpolated (corollary 10).
    """
    top = math.ceil(float(orders.max()))
    integers = np.arange(2, top + 1)
    pair = r.pair
    log_plain = np.concatenate([[0.0, 0.0], pair.log_moments(integers.astype(float), 1.0)])  # ln E_Q[(dP/dQ)^j]
    log_even = _log_even_moments(r, top + 1)
    j = integers.astype(float)
    log_terms = math.log(4) + 0.5 * (log_even[2 * (integers // 2)] + log_even[2 * ((integers + 1) // 2)])
    log_terms = np.minimum(log_terms, math.log(2) + log_plain[integers])
    log_terms[0] = min(math.log(4) + log_even[2], math.log(2) + log_plain[2])
    log_terms += j * math.log(r.rate)
    values = np.zeros(top + 1)
    for alpha in integers:
        binomials = gammaln(alpha + 1) - gammaln(j[: alpha - 1] + 1) - gammaln(alpha - j[: alpha - 1] + 1)
        values[alpha] = np.logaddexp.reduce(np.concatenate([[0.0], binomials + log_terms[: alpha - 1]]))
    floors = np.floor(orders).astype(int)
    share = orders - floors
    interpolated: Floats = (1 - share) * values[floors] + share * values[np.minimum(floors + 1, top)]
    return interpolated


def _log_even_moments(r: Round, top: int) -> Floats:
    """Return ln E_Q[(dP/dQ − 1)^j] at the even j up to ``top``, NaN elsewhere."""
    out = np.full(top + 2, np.nan)
    out[0] = 0.0
    if isinstance(r.pair, GaussianPair):
        z = r.multiplier
        for j in range(2, top + 2, 2):
            step = min(z, 1.0) / 32 * min(1.0, 4 / math.sqrt(j))
            x = gaussian_points(z, float(j), step)
            terms = j * _log_distance((2 * x - 1) / (2 * z * z)) - x * x / (2 * z * z)
            out[j] = np.logaddexp.reduce(terms) + math.log(step / (z * math.sqrt(2 * math.pi)))
        return out
    most = r.pair.largest_loss
    nodes, weights = np.polynomial.legendre.leggauss(256)
    log_distance = _log_distance(np.concatenate([nodes * most, [most, -most]]))
    log_q = np.concatenate(
        [np.log(weights * most / 4) - (most + nodes * most) / 2, [-most - math.log(2), -math.log(2)]]
    )
    for j in range(2, top + 2, 2):
        terms = j * log_distance + log_q
        out[j] = np.logaddexp.reduce(terms)
    return out


def _log_distance(loss: Floats) -> Floats:
    """Return ln |e^loss − 1|."""
    with np.errstate(divide="ignore"):
        small = np.log(np.abs(np.expm1(np.minimum(loss, 30.0))))
    return np.where(loss > 30, loss, small)
