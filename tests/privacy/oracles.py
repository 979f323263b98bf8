"""The identities that a noise-shaping quantiser must satisfy, as a list of those that it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEAST_P = 1e-6
D = 60_000

Send = Callable[[NDArray, int, int, int], NDArray]
"""(update, seed, client, round) to the decoded update."""


def updates(sigma: float) -> dict[str, NDArray]:
    """Return the updates that the error must not depend on."""
    rng = np.random.default_rng(11)
    return {
        "0": np.zeros(D),
        "1e-4": rng.normal(size=D) * 1e-4,
        "sigma": rng.normal(size=D) * sigma,
        "1": rng.normal(size=D),
        "constant": np.full(D, 0.37 * sigma),
    }


def failures(send: Send, law: str, sigma: float) -> list[str]:
    """Return the names of the identities that ``send`` breaks."""
    return [name for name, holds in identities(send, law, sigma) if not holds]


def identities(send: Send, law: str, sigma: float) -> Iterator[tuple[str, bool]]:
    """Yield every identity of a law, and whether it holds."""
    cdf = stats.norm.cdf if law == "gaussian" else stats.laplace(scale=math.sqrt(0.5)).cdf
    for name, u in updates(sigma).items():
        error = (send(u, 0, 0, 0) - u) / sigma
        yield f"law at {name}", stats.kstest(error, cdf, method="asymp").pvalue > LEAST_P
        if law == "gaussian":
            for length in (2, 3, 8):
                for shift in (0, 1):
                    squares = np.square(error[shift : shift + (D - 8) // length * length]).reshape(-1, length).sum(1)
                    holds = stats.kstest(squares, stats.chi2(length).cdf, method="asymp").pvalue > LEAST_P
                    yield f"norm of {length} from {shift} at {name}", holds
        else:
            yield f"deviation at {name}", abs(error.std() - 1) < 4.5 * math.sqrt(5 / 4 / D)
            yield f"kurtosis at {name}", abs(stats.kurtosis(error, fisher=False) - 6) < 4.5 * math.sqrt(2400 / D)
        limit = 4.5 / math.sqrt(D)
        for lag in (1, 2, 8):
            yield f"lag {lag} at {name}", correlation(error[lag:], error[:-lag]) < limit
        if np.ptp(u):
            yield f"u, e at {name}", abs(stats.spearmanr(u, error).statistic) < limit
            yield f"|u|, |e| at {name}", abs(stats.spearmanr(np.abs(u), np.abs(error)).statistic) < limit
            fraction = u / sigma - np.floor(u / sigma)
            yield f"frac, e at {name}", abs(stats.spearmanr(fraction, error).statistic) < limit
        for other, arguments in {"seed": (1, 0, 0), "client": (0, 1, 0), "round": (0, 0, 1)}.items():
            second = (send(u, *arguments) - u) / sigma
            yield f"other {other} at {name}", correlation(error, second) < limit


def correlation(a: NDArray, b: NDArray) -> float:
    """Return the absolute correlation; that of a constant counts as 1."""
    return abs(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 1.0
