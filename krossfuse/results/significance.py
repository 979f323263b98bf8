"""Is one method better than another? A verdict that a table can print, on the same subsets and test items.

The statistics are those of :mod:`krossfuse.results.inference`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from krossfuse.core.errors import DataError, check_choice
from krossfuse.results.inference import LEVEL, Part, Scores, Spread, check_level, spread_of_difference, t_tail

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


@dataclass(frozen=True)
class Difference:
    """The difference of two methods with where it varies: what a comparison is judged by, and what is worth keeping.

    Attributes:
        difference: mean score of the first minus that of the second.
        centre: of its interval (of hits and misses drawn a little to 0).
        spread: its variance.
        n_seeds: of the first and of the second.
        n_subsets: that both have.
        spread_unknown: whether one of them is a single seed of a random method.
    """

    difference: float
    centre: float
    spread: Spread
    n_seeds: tuple[int, int]
    n_subsets: int
    spread_unknown: bool

    def __neg__(self) -> Difference:
        return replace(self, difference=-self.difference, centre=-self.centre)

    def described(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping, which :meth:`from_description` reads."""
        spread = self.spread
        parts = {name: vars(part) for name, part in spread.parts.items()}
        return {**vars(self), "spread": {"items": spread.items, "n_items": spread.n_items, "parts": parts}}

    @staticmethod
    def from_description(described: Mapping[str, Any]) -> Difference:
        """Return the difference of :meth:`described`.

        Raises:
            TypeError, KeyError: it is none.
        """
        spread = described["spread"]
        parts = {name: Part(**part) for name, part in spread["parts"].items()}
        seeds = tuple(described["n_seeds"])
        return Difference(**{**described, "spread": Spread(**{**spread, "parts": parts}), "n_seeds": seeds})


def difference_of(a: Scores, b: Scores) -> Difference:
    """Return the difference of two methods on the subsets that both have.

    Raises:
        DataError: they share no subset, or their items differ in number.
    """
    subsets = [name for name in a.subsets if name in b.subsets]
    if not subsets:
        raise DataError(f"the methods share no subset: {list(a.subsets)} and {list(b.subsets)}")
    a, b = a.on(subsets), b.on(subsets)
    centre, spread = spread_of_difference(a, b)
    return Difference(
        difference=float(a.values.mean() - b.values.mean()),
        centre=centre,
        spread=spread,
        n_seeds=(len(a.values), len(b.values)),
        n_subsets=len(subsets),
        spread_unknown=a.spread_unknown or b.spread_unknown,
    )


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
    return judge([difference_of(as_scores(a), as_scores(b))], level=level)[0]


def judge(
    differences: Sequence[Difference], *, correction: Literal["holm", "none"] = "holm", level: float = LEVEL
) -> list[Comparison]:
    """Return the comparisons of some differences; p-values and verdicts hold for all of them together.

    Args:
        differences: a family: Holm's correction is over all of them.
        correction: ``"holm"`` (Holm 1979), or ``"none"``. Intervals stay those of the single comparison.
        level: of the intervals, and of the family of verdicts.
    """
    check_level(level)
    check_choice("correction", correction, ["holm", "none"])
    single = [_p_value(one.centre, one.spread) for one in differences]
    together = holm(single) if correction == "holm" else single
    made = []
    for one, alone, p in zip(differences, single, together, strict=True):
        spread = one.spread
        half = spread.half_width(level)
        sources = [name for name in ("seeds", "subsets") if any(part.startswith(name) for part in spread.parts)]
        sources += ["items"] if spread.n_items > 1 else []
        # What the correction asks of this comparison, so that seeds_needed is about the verdict that is printed.
        family = min(p / alone, len(single)) if alone > 0 else 1.0
        made.append(
            Comparison(
                difference=one.difference,
                low=one.centre - half,
                high=one.centre + half,
                p_value=p,
                verdict=_verdict(one.centre, p, level),
                test="+".join(sources) or "none",
                n_seeds=one.n_seeds,
                n_subsets=one.n_subsets,
                n_items=spread.n_items,
                spread_unknown=one.spread_unknown,
                freedom=spread.freedom,
                seeds_needed=_seeds_needed(one.centre, spread, (1 - level) / family),
                level=level,
            )
        )
    return made


def _p_value(difference: float, spread: Spread) -> float:
    if not spread.known or difference == 0:
        return 1.0
    if spread.variance == 0:
        return 0.0
    return t_tail(difference / math.sqrt(spread.variance), spread.freedom)


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
