from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.results.significance import bootstrap_differences, compare, compare_all, holm, mcnemar


def correct(p: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < p).astype(float)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=10))
def test_mcnemar_against_every_sign_flip(pairs: list[tuple[bool, bool]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    discordant = int(np.abs(a - b).sum())
    observed = abs((a - b).sum())
    flips = [abs(sum(s)) for s in itertools.product((-1, 1), repeat=discordant)]
    assert mcnemar(a, b) == pytest.approx(np.mean([f >= observed for f in flips]))


def test_bootstrap_against_every_resample() -> None:
    a, b = np.array([[1.0, 0.2, 0.5], [0.4, 0.9, 0.0]]), np.array([[0.3, 0.3, 0.1], [0.8, 0.0, 0.6]])
    delta = a - b
    centre = delta.mean(0)
    wide = centre + (delta - centre) * np.sqrt(2)
    every = [
        wide[np.ix_(seeds, items)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for items in itertools.product(range(3), repeat=3)
    ]
    draws = bootstrap_differences(a, b, resamples=200_000)
    assert draws.mean() == pytest.approx(np.mean(every), abs=2e-3)
    assert draws.std() == pytest.approx(np.std(every), rel=1e-2)
    np.testing.assert_allclose(np.quantile(draws, [0.1, 0.5, 0.9]), np.quantile(every, [0.1, 0.5, 0.9]), atol=0.02)


def test_one_seed_against_scipy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 80))
    ours = compare(a, b)
    theirs = stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1))
    assert ours.test == "bootstrap"
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_figures_without_items_take_the_paired_t_test() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 6, 1)) + np.array([1.0, 0.0]).reshape(2, 1, 1)
    ours = compare(a, b)
    theirs = stats.ttest_rel(a[:, 0], b[:, 0])
    interval = theirs.confidence_interval(0.95)
    assert ours.test == "t"
    assert (ours.p_value, ours.low, ours.high) == pytest.approx((theirs.pvalue, interval.low, interval.high))


def test_verdicts() -> None:
    high, low = correct(0.9, (5, 400), 0), correct(0.6, (5, 400), 1)
    assert compare(high, low).verdict == "better"
    assert compare(low, high).verdict == "worse"
    assert compare(high[0], low[0]).test == "mcnemar"
    same = compare(high, high)
    assert (same.verdict, same.difference, same.low, same.high, same.p_value) == ("no difference shown", 0, 0, 0, 1)
    assert compare(high, correct(0.9, (5, 400), 2)).verdict == "no difference shown"


def test_seeds_that_disagree_widen_the_interval() -> None:
    base = correct(0.5, (1, 2000), 0)
    steady = np.clip(np.repeat(base, 4, axis=0), 0, 1)
    shaky = np.stack([base[0], 1 - base[0], base[0], 1 - base[0]])
    zero = np.zeros_like(base)
    assert np.ptp([compare(steady, zero).low, compare(steady, zero).high]) < 0.06
    wide = compare(shaky + np.array([[0.4], [-0.4], [0.4], [-0.4]]), zero)
    assert wide.high - wide.low > 0.4


def test_a_deterministic_method_stands_against_every_seed() -> None:
    many, one = correct(0.8, (3, 300), 0), correct(0.7, (300,), 1)
    repeated = compare(many, np.tile(one, (3, 1)))
    assert compare(many, one) == repeated
    assert repeated.n_seeds == 3
    assert repeated.n_items == 300


def test_false_alarms_keep_to_the_level() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        skill = rng.random(150)
        a, b = ((rng.random((3, 150)) < skill).astype(float) for _ in range(2))
        alarms += compare(a, b, resamples=999).verdict != "no difference shown"
    assert alarms / 200 <= 0.09


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_against_its_definition(p: list[float]) -> None:
    order = np.argsort(p, kind="stable")
    for i, adjusted in enumerate(holm(p)):
        rank = int(np.flatnonzero(order == i)[0])
        expected = min(1.0, max((len(p) - j) * p[order[j]] for j in range(rank + 1)))
        assert adjusted == pytest.approx(expected)


def test_several_methods_share_one_level() -> None:
    base = correct(0.6, (300,), 0)
    flipped = base.copy()
    flipped[np.flatnonzero(base == 0)[:7]] = 1
    scores = {"base": base, **{f"m{i}": flipped for i in range(4)}}
    alone = compare_all(scores, "base", correction="none")
    together = compare_all(scores, "base")
    assert {c.verdict for c in alone.values()} == {"better"}
    assert {c.verdict for c in together.values()} == {"no difference shown"}
    assert together["m0"].p_value == pytest.approx(min(1, 4 * alone["m0"].p_value))
    assert "base" not in together


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"\(1, 3\) and \(1, 4\)"):
        compare([1, 0, 1], [1, 0, 1, 1])
    with pytest.raises(DataError, match="2 and 3"):
        compare(np.ones((2, 4)), np.ones((3, 4)))
    with pytest.raises(DataError, match="finite"):
        compare([1.0, np.nan], [0.0, 1.0])
    with pytest.raises(ConfigError, match="level"):
        compare([1, 0], [0, 1], level=95)
    with pytest.raises(ConfigError, match="did you mean 'clip'"):
        compare_all({"clip": [1, 0], "rp": [0, 1]}, "clipp")
