"""Is one method better than another? Paired tests over the same seeds and the same test items.

Pure functions of arrays (seeds, items): a method's scores of the test items (correct or not, hit or not), one row a
seed. They answer with a verdict that a table can print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive

Verdict = Literal["better", "worse", "no difference shown"]
Scores = NDArray[np.float64]

_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Comparison:
    """Method ``a`` against method ``b`` on the same items.

    Attributes:
        difference: mean score of ``a`` minus mean score of ``b``.
        low: lower end of the interval of the difference.
        high: upper end.
        p_value: two-sided, adjusted where several comparisons were made together; the verdict follows it.
        verdict: of ``a``.
        test: ``"mcnemar"``, ``"bootstrap"`` or ``"t"``, see :func:`compare`.
        n_seeds: number of seeds (rows).
        n_items: number of test items.
        level: of the interval; the verdict's threshold is ``1 - level``.
    """

    difference: float
    low: float
    high: float
    p_value: float
    verdict: Verdict
    test: str
    n_seeds: int
    n_items: int
    level: float = 0.95


def compare(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two methods on the same seeds and test items.

    Args:
        a: (seeds, items) or (items,) scores of the first method.
        b: the same of the second; a method with one row (deterministic) stands against every seed of the other.
        level: of the interval.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    One seed and scores of 0 and 1: exact McNemar test, with a bootstrap interval. One item, that is one figure a seed
    with no items behind it: paired t-test over the seeds and its interval. Otherwise: bootstrap
    (:func:`bootstrap_differences`).

    Raises:
        DataError: the shapes do not match, or a score is not finite.

    >>> compare([1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1]).verdict
    'better'
    """
    _check_level(level)
    x, y = _paired(a, b)
    delta = x - y
    seeds, items = delta.shape
    mean = float(delta.mean())
    if items == 1 and seeds > 1:
        low, high, p = _paired_t(delta[:, 0], level)
        test = "t"
    else:
        draws = bootstrap_differences(x, y, resamples=resamples, seed=seed)
        low, high = (float(q) for q in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
        binary = bool(np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all())
        if seeds == 1 and binary:
            p, test = mcnemar(x[0], y[0]), "mcnemar"
        else:
            tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
            p, test = min(1.0, 2 * (1 + tail) / (1 + resamples)), "bootstrap"
    return Comparison(mean, low, high, p, _verdict(mean, p, level), test, seeds, items, level)


def compare_all(
    scores: Mapping[str, ArrayLike],
    baseline: str,
    *,
    correction: Literal["holm", "none"] = "holm",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare every other method with ``baseline``; p-values and verdicts hold for all of them together.

    Args:
        scores: by method, (seeds, items).
        baseline: one of them.
        correction: ``"holm"`` (Holm 1979), or ``"none"``. Intervals stay those of the single comparison.
        level: of the intervals, and of the family of verdicts.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    check_choice("baseline", baseline, scores)
    check_choice("correction", correction, ["holm", "none"])
    others = [name for name in scores if name != baseline]
    single = {
        name: compare(scores[name], scores[baseline], level=level, resamples=resamples, seed=seed) for name in others
    }
    if correction == "none":
        return single
    adjusted = holm([single[name].p_value for name in others])
    return {
        name: replace(single[name], p_value=p, verdict=_verdict(single[name].difference, p, level))
        for name, p in zip(others, adjusted, strict=True)
    }


def bootstrap_differences(a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> Scores:
    """Return (resamples,) bootstrap means of ``a - b``: items and seeds are both drawn with replacement.

    Seeds and items are crossed factors, so they are resampled separately (the pigeonhole bootstrap, Owen 2007, which
    errs on the wide side). The seeds' deviations are scaled by √(S/(S−1)) first, for a resample of S values has only
    (S−1)/S of their variance, and S is small here.
    """
    check_positive("resamples", resamples, integer=True)
    x, y = _paired(a, b)
    delta = x - y
    seeds, items = delta.shape
    if seeds > 1:
        centre = delta.mean(axis=0)
        delta = centre + (delta - centre) * np.sqrt(seeds / (seeds - 1))
    # Items with the same differences are one outcome of the draw: a few columns with counts in place of all items.
    delta, counts = np.unique(delta, axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    out = np.empty(resamples)
    size = max(1, _BLOCK_BYTES // (8 * len(counts) * 3))
    for start in range(0, resamples, size):
        n = min(size, resamples - start)
        by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=n) @ delta / seeds
        by_item = generator.multinomial(items, counts / items, size=n)
        out[start : start + n] = np.einsum("ri,ri->r", by_seed, by_item) / items
    return out


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Return the exact two-sided McNemar p-value of two (items,) arrays of 0 and 1.

    Of the items that one method has right and the other wrong, the number that ``a`` has right is binomial with
    probability ½ if the methods are equally good.
    """
    x, y = _paired(a, b)
    only_a, only_b = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = largest
    return out


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[Scores, Scores]:
    x, y = (np.atleast_2d(np.asarray(v, dtype=np.float64)) for v in (a, b))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.size or not y.size:
        raise DataError(f"paired scores must be (seeds, items) on the same items, but they are {x.shape} and {y.shape}")
    if x.shape[0] != y.shape[0] and 1 not in (x.shape[0], y.shape[0]):
        raise DataError(f"paired scores need the same seeds, but there are {x.shape[0]} and {y.shape[0]}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("paired scores must be finite, but some are NaN or infinite")
    x, y = np.broadcast_arrays(x, y)
    return x, y


def _paired_t(delta: Scores, level: float) -> tuple[float, float, float]:
    mean, error = float(delta.mean()), float(delta.std(ddof=1) / np.sqrt(len(delta)))
    if error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    half = float(stats.t.ppf((1 + level) / 2, len(delta) - 1)) * error
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean / error), len(delta) - 1))


def _verdict(difference: float, p_value: float, level: float) -> Verdict:
    if p_value > 1 - level or difference == 0:
        return "no difference shown"
    return "better" if difference > 0 else "worse"


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level={level!r} must lie between 0 and 1")
