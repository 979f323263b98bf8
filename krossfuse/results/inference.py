"""Means and differences over seeds, few-shot subsets and test items, with intervals that cover what they say.

The score of a test item depends on the seed s of a random method, on the few-shot subset t, and on the item i, and all
three are draws from more of their kind. They are crossed: every item is scored under every seed. With the random
effects model (Searle, Casella and McCulloch 1992, chapter 4; seeds and items alone, for short)

    y[s, i] = μ + a[s] + b[i] + e[s, i],      var(mean) = σ_a²/S + σ_b²/n + σ_e²/(S·n),

the variance between the seeds' means over S estimates σ_a²/S + σ_e²/(S·n), and that between the items' means over n
estimates σ_b²/n + σ_e²/(S·n). Their sum counts the interaction twice; what the residuals of the two-way table estimate
is taken off the items' part, which has many degrees of freedom, so that the seeds' part stays a χ² of S − 1:

    V = max(0, items' part − residual part) + Σ seeds' and subsets' parts.

**Degrees of freedom.** With 2 or 3 seeds, Satterthwaite's (Welch's) ν = V²/Σ(V_k²/ν_k) makes intervals too short: where
the seeds matter and their few means happen to lie close together, V is small and ν large at once. Computed by
quadrature for a seeds' part of one degree of freedom beside items without end, it covers as little as 87.2 %. Instead

    1/ν = min(1, (1 + 3/f³)·r^1.5)/f + (1 − r)²/(n − 1),

with r the share of the seeds' and subsets' parts in V, and f Satterthwaite's degrees of freedom of those parts alone.
This covers from 93 to 97 % at any share (``experiments.benchmarks.calibration``).

**Differences of two methods** are paired on items and on subsets: the items' part is the variance of the items' own
differences. Seeds of two methods are independent draws, so each method has a seeds' part of its own. A deterministic
method has none. One seed of a random method tells nothing of its spread over seeds: then there is no such part either,
and ``spread_unknown`` says so.

**Hits and misses.** Of few items, with an accuracy near 0 or 1, the items' part is uncertain itself. Means take
Wilson's score interval for it (Wilson 1927), with as many items as give it its size; differences take a quarter of an
item more of each sign, of the size that the differences have. (Bonett and Price 2012, "adjusted Wald", take one, which
of two equal methods on 50 items covers more than 97 %; a quarter is what the calibration allows.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.errors import ConfigError, DataError

LEVEL = 0.95

MORE_ITEMS = 0.25
"""Items of each sign that are added to differences of hits and misses."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of one method on one measurement.

    Attributes:
        values: (seeds, subsets, items) scores. A method without randomness has one seed, a measurement that is not
            few-shot one subset; a measurement that is no mean over items has one item, its value.
        deterministic: whether the seed cannot change them.
        subsets: names of the subsets, by which two methods are paired.

    Raises:
        DataError: not three axes, or a score is not finite.
    """

    values: Array
    deterministic: bool = False
    subsets: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or not self.values.size:
            raise DataError(f"scores must be (seeds, subsets, items), but they are {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise DataError("scores must be finite, but some are NaN or infinite")
        if len(self.subsets) != self.values.shape[1]:
            raise DataError(f"{self.values.shape[1]} subsets have {len(self.subsets)} names")

    @property
    def spread_unknown(self) -> bool:
        """Whether they are one seed of a random method."""
        return not self.deterministic and len(self.values) == 1

    @functools.cached_property
    def binary(self) -> bool:
        """Whether they are hits and misses (or those negated)."""
        size = np.abs(self.values)
        return bool((size * size == size).all())

    @property
    def hits(self) -> bool:
        """Whether they are hits and misses, and not negated."""
        return self.binary and bool((self.values >= 0).all())

    def on(self, subsets: Sequence[str]) -> Scores:
        """Return the scores on some of the subsets, in the order given."""
        if tuple(subsets) == self.subsets:
            return self
        rows = [self.subsets.index(name) for name in subsets]
        return Scores(self.values[:, rows], self.deterministic, tuple(subsets))


@dataclass(frozen=True)
class Part:
    """What the draws of one factor (the seeds of one method, or the subsets) add to the variance of a mean.

    Attributes:
        variance: variance of the draws' means over their number.
        residual: the share of it that is interaction with the items, which the items' part holds too.
        draws: how many there are.
    """

    variance: float
    residual: float
    draws: int

    @property
    def freedom(self) -> int:
        """Degrees of freedom."""
        return self.draws - 1

    def with_draws(self, draws: float) -> Part:
        """Return what as many draws would add, if they varied as these do."""
        return Part(self.variance * self.draws / draws, self.residual * self.draws / draws, int(draws))


@dataclass(frozen=True)
class Spread:
    """The variance of a mean, by where it comes from.

    Attributes:
        items: the items' part, interactions included; 0 for one item.
        n_items: number of items.
        parts: of the other factors, by name (``seeds``, ``subsets``; of a difference ``seeds a``, ``seeds b``).
    """

    items: float
    n_items: int
    parts: Mapping[str, Part] = field(default_factory=dict)

    @property
    def items_alone(self) -> float:
        """The items' part without the interactions that the other parts hold too."""
        return max(0.0, self.items - sum(part.residual for part in self.parts.values()))

    @property
    def variance(self) -> float:
        """Of the mean, all together."""
        return self.items_alone + sum(part.variance for part in self.parts.values())

    @property
    def freedom(self) -> float:
        """Degrees of freedom of :attr:`variance`; infinite where it is 0."""
        drawn = sum(part.variance for part in self.parts.values())
        total = self.variance
        if total <= 0:
            return float("inf")
        share = drawn / total
        inverse = 0.0 if self.n_items < 2 else (1 - share) ** 2 / (self.n_items - 1)
        if drawn > 0:
            f = drawn**2 / sum(p.variance**2 / p.freedom for p in self.parts.values() if p.variance > 0)
            inverse += min(1.0, (1 + 3 / f**3) * share**1.5) / f
        return 1 / inverse if inverse > 0 else float("inf")

    @property
    def known(self) -> bool:
        """Whether anything was drawn more than once, so that there is a variance at all."""
        return self.n_items > 1 or bool(self.parts)

    def half_width(self, level: float) -> float:
        """Return half the width of the interval of the mean; NaN where nothing was drawn twice."""
        if not self.known:
            return float("nan")
        return t_quantile(level, self.freedom) * math.sqrt(self.variance)


def spread_of_mean(scores: Scores) -> Spread:
    """Return the variance of the mean of one method's scores."""
    y = scores.values
    parts = {}
    if y.shape[0] > 1:
        parts["seeds"] = _part(y.mean(axis=1))
    if y.shape[1] > 1:
        parts["subsets"] = _part(y.mean(axis=0))
    return Spread(_item_variance(y.mean(axis=(0, 1))), y.shape[2], parts)


def spread_of_difference(a: Scores, b: Scores) -> tuple[float, Spread]:
    """Return the mean difference of two methods on the same subsets and items, and its variance.

    Of hits and misses, the difference and the items' part are those with :data:`MORE_ITEMS` of each sign.
    """
    x, y = a.values, b.values
    if x.shape[1:] != y.shape[1:]:
        raise DataError(
            f"paired scores must be (seeds, subsets, items) on the same items, but they are {x.shape} and {y.shape}"
        )
    parts = {f"seeds {name}": _part(z.mean(axis=1)) for name, z in (("a", x), ("b", y)) if z.shape[0] > 1}
    by_subset = x.mean(axis=0) - y.mean(axis=0)
    if x.shape[1] > 1:
        parts["subsets"] = _part(by_subset)
    by_item = by_subset.mean(axis=0)
    n = len(by_item)
    mean, variance = float(by_item.mean()), _item_variance(by_item)
    if n > 1 and a.binary and b.binary:
        size = _event(by_item) or 1 / (x.shape[0] * x.shape[1])
        total = n + 2 * MORE_ITEMS
        mean *= n / total
        squares = float((by_item**2).sum()) + 2 * MORE_ITEMS * size**2
        variance = max(0.0, squares / total - mean**2) / total
    return mean, Spread(variance, n, parts)


def interval_of_mean(scores: Scores, level: float = LEVEL) -> tuple[float, float, Spread]:
    """Return the interval of the mean of one method's scores, and its variance; NaN where nothing was drawn twice.

    >>> hits = np.zeros((1, 1, 400)); hits[..., :120] = 1
    >>> low, high, _ = interval_of_mean(Scores(hits, deterministic=True))
    >>> round(low, 3), round(high, 3)
    (0.257, 0.347)
    """
    check_level(level)
    spread = spread_of_mean(scores)
    mean = float(scores.values.mean())
    half = spread.half_width(level)
    if not scores.binary or spread.n_items < 2 or not 0 <= mean <= 1:
        return mean - half, mean + half, spread
    from scipy import special  # imported where it is used: a job that measures needs no interval

    # Wilson's interval for what the items alone leave open, and the rest of the width added in squares.
    quantile = float(special.ndtri((1 + level) / 2))
    items = spread.items if not spread.parts else spread.items_alone
    n = mean * (1 - mean) / max(items, _few_events(mean, items, spread.n_items), 1e-12)
    n = n if n > 0 else float(spread.n_items)
    centre = (mean + quantile**2 / (2 * n)) / (1 + quantile**2 / n)
    reach = quantile / (1 + quantile**2 / n) * np.sqrt(mean * (1 - mean) / n + quantile**2 / (4 * n**2))
    rest = max(0.0, half**2 - quantile**2 * items)
    below, above = mean - (centre - reach), centre + reach - mean
    return (
        max(0.0, mean - float(np.sqrt(max(0.0, below) ** 2 + rest))),
        min(1.0, mean + float(np.sqrt(max(0.0, above) ** 2 + rest))),
        spread,
    )


def t_quantile(level: float, freedom: float) -> float:
    """Return how many standard errors of a mean its two-sided interval reaches; ``freedom`` may be infinite."""
    from scipy import special

    if math.isinf(freedom):
        return float(special.ndtri((1 + level) / 2))
    return float(special.stdtrit(freedom, (1 + level) / 2))


def t_tail(t: float, freedom: float) -> float:
    """Return the two-sided p-value of a t statistic; ``freedom`` may be infinite."""
    from scipy import special

    return float(2 * (special.ndtr(-abs(t)) if math.isinf(freedom) else special.stdtr(freedom, -abs(t))))


def check_level(level: float) -> None:
    """Check the level of an interval.

    Raises:
        ConfigError: it does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level!r} must lie between 0 and 1")


def _item_variance(by_item: Array) -> float:
    return float(by_item.var(ddof=1) / len(by_item)) if len(by_item) > 1 else 0.0


def _few_events(mean: float, items: float, n: int) -> float:
    """Return the items' part, drawn to that of one run where few items are hits, or few are misses.

    Over many seeds an item's score is nearly its own probability, and of a few hard items none may have been drawn, so
    that the items' part is estimated too small; one run's binomial variance bounds it. Of m hits or misses, .4/(1 + m)
    is taken from the bound.
    """
    share = 0.4 / (1 + n * min(mean, 1 - mean))
    return (1 - share) * items + share * mean * (1 - mean) / n


def _event(by_item: Array) -> float:
    """Return the size of a typical difference that is not 0 (their squares weighted by themselves); 0 if all are."""
    squares = by_item**2
    total = float(squares.sum())
    return float(np.sqrt((squares**2).sum() / total)) if total > 0 else 0.0


def _part(by_draw: Array) -> Part:
    """Return the part of a factor whose draws have scores (draws, items)."""
    draws, items = by_draw.shape
    means = by_draw.mean(axis=1)
    variance = float(means.var(ddof=1) / draws)
    if items == 1:
        return Part(variance, 0.0, draws)
    residuals = by_draw - means[:, None] - by_draw.mean(axis=0) + by_draw.mean()
    mean_square = float((residuals**2).sum()) / ((draws - 1) * (items - 1))
    return Part(variance, mean_square / (draws * items), draws)
