"""Is one method better than another? A verdict that a table can print, on the same subsets and test items.

The statistics are those of :mod:`krossfuse.results.inference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from krossfuse.core.errors import DataError, check_choice
from krossfuse.results.inference import LEVEL, Scores, Spread, check_level, spread_of_difference

Verdict = Literal["better", "worse", "different", "no difference shown"]
"""``different`` is for a metric of which neither more nor less is better."""

MOST_SEEDS = 1000
"""More seeds than this are not worth naming."""


@dataclass(frozen=True)
class Comparison:
    """Method ``a`` against method ``b`` on the same items.

    Attributes:
        difference: mean score of ``a`` minus mean score of ``b``.
        low: lower end of the interval of the difference.
        high: upper end.
        p_value: two-sided, adjusted where several comparisons were made together; the verdict follows it.
        verdict: of ``a``.
        test: over what the difference was taken to vary, e.g. ``"seeds+items"``; ``"none"`` where nothing was drawn
            twice, so that there is no interval and no verdict.
        n_seeds: number of seeds of ``a`` and of ``b``.
        n_subsets: number of few-shot subsets (1 where there are none).
        n_items: number of test items.
        spread_unknown: whether one of them is a single seed of a random method, so that what the seed does is not in
            the interval.
        freedom: degrees of freedom of the t distribution.
        seeds_needed: how many seeds of the random methods would show the difference, if it and the spreads stay as
            they are: 0 where it is shown, None where no number of seeds would (the items decide), or more than
            :data:`MOST_SEEDS`.
        level: of the interval; the verdict's threshold is ``1 - level``.
    """

    difference: float
    low: float
    high: float
    p_value: float
    verdict: Verdict
    test: str
    n_seeds: tuple[int, int]
    n_subsets: int
    n_items: int
    spread_unknown: bool = False
    freedom: float = float("inf")
    seeds_needed: int | None = 0
    level: float = LEVEL


def as_scores(values: Scores | ArrayLike, *, deterministic: bool = False) -> Scores:
    """Return scores from an array: (seeds, items), or (items,) for one run."""
    if isinstance(values, Scores):
        return values
    y = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if y.ndim != 2:
        raise DataError(f"scores must be (seeds, items) or (items,), but they are {y.shape}")
    return Scores(y[:, None, :], deterministic)


def compare(a: Scores | ArrayLike, b: Scores | ArrayLike, *, level: float = LEVEL) -> Comparison:
    """Compare two methods on the same test items, whatever the numbers of their seeds.

    Args:
        a: of the first method, :class:`Scores`, or (seeds, items) or (items,) scores.
        b: the same of the second.
        level: of the interval.

    Raises:
        DataError: they share no subset, their items differ in number, or a score is not finite.

    >>> compare([1, 1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1]).verdict
    'better'
    """
    return _compare(as_scores(a), as_scores(b), level, 1.0)


def compare_all(
    scores: Mapping[str, Scores | ArrayLike],
    baseline: str,
    *,
    correction: Literal["holm", "none"] = "holm",
    level: float = LEVEL,
) -> dict[str, Comparison]:
    """Compare every other method with ``baseline``; p-values and verdicts hold for all of them together.

    Args:
        scores: by method, as in :func:`compare`.
        baseline: one of them.
        correction: ``"holm"`` (Holm 1979), or ``"none"``. Intervals stay those of the single comparison.
        level: of the intervals, and of the family of verdicts.
    """
    check_choice("baseline", baseline, scores)
    check_choice("correction", correction, ["holm", "none"])
    base = as_scores(scores[baseline])
    single = {name: compare(own, base, level=level) for name, own in scores.items() if name != baseline}
    if correction == "none":
        return single
    adjusted = holm([comparison.p_value for comparison in single.values()])
    together = {}
    for (name, comparison), p in zip(single.items(), adjusted, strict=True):
        if p == comparison.p_value:
            together[name] = comparison
            continue
        # What the correction asks of this comparison, so that seeds_needed is about the verdict that is printed.
        factor = min(p / comparison.p_value, len(single)) if comparison.p_value > 0 else 1.0
        again = _compare(as_scores(scores[name]), base, level, factor)
        together[name] = replace(again, p_value=p, verdict=_verdict(again.difference, p, level))
    return together


def _compare(a: Scores, b: Scores, level: float, family: float) -> Comparison:
    check_level(level)
    subsets = [name for name in a.subsets if name in b.subsets]
    if not subsets:
        raise DataError(f"the methods share no subset: {list(a.subsets)} and {list(b.subsets)}")
    a, b = a.on(subsets), b.on(subsets)
    difference, spread = spread_of_difference(a, b)
    half = spread.half_width(level)
    p = _p_value(difference, spread)
    sources = [name for name in ("seeds", "subsets") if any(part.startswith(name) for part in spread.parts)]
    sources += ["items"] if spread.n_items > 1 else []
    return Comparison(
        difference=float(a.values.mean() - b.values.mean()),
        low=difference - half,
        high=difference + half,
        p_value=p,
        verdict=_verdict(difference, p, level),
        test="+".join(sources) or "none",
        n_seeds=(len(a.values), len(b.values)),
        n_subsets=len(subsets),
        n_items=a.values.shape[2],
        spread_unknown=a.spread_unknown or b.spread_unknown,
        freedom=spread.freedom,
        seeds_needed=_seeds_needed(difference, spread, (1 - level) / family),
        level=level,
    )


def _p_value(difference: float, spread: Spread) -> float:
    if not spread.known or difference == 0:
        return 1.0
    if spread.variance == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(difference) / np.sqrt(spread.variance), spread.freedom))


def _seeds_needed(difference: float, spread: Spread, threshold: float) -> int | None:
    """Return the smallest number of seeds at which the difference would be shown, see ``Comparison.seeds_needed``."""
    if _p_value(difference, spread) <= threshold:
        return 0
    seeds = {name: part for name, part in spread.parts.items() if name.startswith("seeds")}
    if not seeds or difference == 0:
        return None

    def shown(draws: int) -> bool:
        parts = {name: part.with_draws(max(draws, part.draws)) for name, part in seeds.items()}
        # What the items' part holds of the interaction shrinks with the seeds too.
        items = spread.items - sum(seeds[name].residual - parts[name].residual for name in seeds)
        return _p_value(difference, Spread(max(items, 0.0), spread.n_items, {**spread.parts, **parts})) <= threshold

    low, high = min(part.draws for part in seeds.values()), MOST_SEEDS
    if not shown(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _verdict(difference: float, p_value: float, level: float) -> Verdict:
    if p_value > 1 - level or difference == 0:
        return "no difference shown"
    return "better" if difference > 0 else "worse"
