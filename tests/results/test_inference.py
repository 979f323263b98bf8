from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.results.inference import Scores, Spread, interval_of_mean, spread_of_difference, spread_of_mean


def table(seeds: int, items: int, seed: int = 0, spread: float = 0.5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    effects = spread * generator.normal(size=(seeds, 1)) + generator.normal(size=items)
    return effects + 0.7 * generator.normal(size=(seeds, items))


def scores(values: np.ndarray, **options: bool) -> Scores:
    return Scores(values[:, None, :], **options)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 40), st.integers(0, 99))
def test_variance_of_a_mean_is_that_of_the_two_way_analysis_of_variance(seeds: int, items: int, seed: int) -> None:
    y = table(seeds, items, seed)
    by_seed, by_item = y.mean(axis=1, keepdims=True), y.mean(axis=0, keepdims=True)
    ms_seed = items * ((by_seed - y.mean()) ** 2).sum() / (seeds - 1)
    ms_item = seeds * ((by_item - y.mean()) ** 2).sum() / (items - 1)
    ms_error = ((y - by_seed - by_item + y.mean()) ** 2).sum() / ((seeds - 1) * (items - 1))
    spread = spread_of_mean(scores(y))
    assert spread.parts["seeds"].variance == pytest.approx(ms_seed / (seeds * items))
    assert spread.parts["seeds"].residual == pytest.approx(ms_error / (seeds * items))
    assert spread.items == pytest.approx(ms_item / (seeds * items))
    assert spread.variance == pytest.approx((ms_seed + max(0, ms_item - ms_error)) / (seeds * items))


def test_variance_is_unbiased_for_the_variance_of_means() -> None:
    draws = [table(3, 20, seed) for seed in range(4000)]
    expected = np.var([y.mean() for y in draws])
    estimated = np.mean([spread_of_mean(scores(y)).variance for y in draws])
    assert estimated == pytest.approx(expected, rel=0.05)


def test_one_run_has_students_interval_over_items_and_hits_have_wilsons() -> None:
    y = np.random.default_rng(0).gamma(2, size=60)
    low, high, _ = interval_of_mean(scores(y[None]))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 59, loc=y.mean(), scale=stats.sem(y)))
    for right, n in ((120, 400), (2, 50), (0, 50), (50, 50)):
        hits = (np.arange(n) < right).astype(float)
        low, high, _ = interval_of_mean(scores(hits[None], deterministic=True))
        wilson = stats.binomtest(right, n).proportion_ci(method="wilson")
        np.testing.assert_allclose([low, high], [wilson.low, wilson.high], atol=0.004)
        assert low >= 0
        assert high <= 1


def test_values_without_items_have_students_interval_over_seeds_or_subsets() -> None:
    y = np.random.default_rng(1).normal(size=5)
    expected = stats.t.interval(0.95, 4, loc=y.mean(), scale=stats.sem(y))
    for values, subsets in ((y[:, None, None], ("",)), (y[None, :, None], tuple("abcde"))):
        low, high, _ = interval_of_mean(Scores(values, subsets=subsets))
        assert (low, high) == pytest.approx(expected)


def test_one_value_has_no_interval() -> None:
    low, high, spread = interval_of_mean(Scores(np.full((1, 1, 1), 0.5)))
    assert np.isnan([low, high]).all()
    assert not spread.known


def test_seeds_that_disagree_widen_the_interval_and_leave_few_degrees_of_freedom() -> None:
    steady, shaky = (spread_of_mean(scores(table(3, 500, 1, spread))) for spread in (0.0, 3.0))
    assert steady.freedom > 3 * shaky.freedom
    assert shaky.freedom == pytest.approx(2, rel=0.05)
    assert shaky.half_width(0.95) > 5 * steady.half_width(0.95)


def test_degrees_of_freedom_lie_between_those_of_the_parts() -> None:
    for seed in range(50):
        spread = spread_of_mean(scores(table(2, 30, seed, spread=0.1 * (seed % 7))))
        assert spread.freedom >= 1 / (1 / 1 + 1 / 29)
    assert Spread(0.0, 30).freedom == np.inf


def test_subsets_are_a_paired_factor_and_seeds_are_not() -> None:
    generator = np.random.default_rng(3)
    shift = 5 * generator.normal(size=(1, 4, 1))  # what a subset does to both methods
    x, y = (shift + generator.normal(size=(3, 4, 25)) for _ in range(2))
    names = ("1", "2", "3", "4")
    _, spread = spread_of_difference(Scores(x, subsets=names), Scores(y, subsets=names))
    assert set(spread.parts) == {"seeds a", "seeds b", "subsets"}
    assert spread.parts["subsets"].variance < 0.1
    seeds_of_x = spread_of_mean(Scores(x, subsets=names)).parts["seeds"]
    assert spread.parts["seeds a"] == seeds_of_x


def test_one_seed_of_a_random_method_says_that_its_spread_is_unknown() -> None:
    y = table(1, 30)
    assert scores(y).spread_unknown
    assert not scores(y, deterministic=True).spread_unknown
    assert not scores(table(2, 30)).spread_unknown


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="seeds, subsets, items"):
        Scores(np.ones((2, 3)))
    with pytest.raises(DataError, match="finite"):
        Scores(np.full((1, 1, 2), np.nan))
    with pytest.raises(DataError, match="2 subsets have 1 names"):
        Scores(np.ones((1, 2, 3)))
    with pytest.raises(ConfigError, match="level"):
        interval_of_mean(scores(table(2, 3)), level=95)
