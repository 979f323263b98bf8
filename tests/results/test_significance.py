from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.results.inference import Scores
from krossfuse.results.significance import MOST_SEEDS, as_scores, compare, difference_of, holm, judge


def correct(p: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < p).astype(float)


def test_one_run_each_takes_the_paired_t_test_over_items() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 80)) + np.array([[0.3], [0.0]])
    ours, theirs = compare(a, b), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert ours.test == "items"
    assert (ours.p_value, ours.low, ours.high) == pytest.approx((theirs.pvalue, interval.low, interval.high))


def test_values_without_items_take_welchs_test_over_seeds_and_the_paired_one_over_subsets() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 6)) + np.array([[1.0], [0.0]])
    ours, theirs = compare(a[:, None], b[:, None]), stats.ttest_ind(a, b, equal_var=False)
    assert (ours.test, ours.p_value) == ("seeds", pytest.approx(theirs.pvalue))
    names = tuple("123456")
    ours = compare(Scores(a[None, :, None], subsets=names), Scores(b[None, :, None], subsets=names))
    assert (ours.test, ours.p_value) == ("subsets", pytest.approx(stats.ttest_rel(a, b).pvalue))


def test_a_random_method_against_a_fixed_one_takes_the_one_sample_test() -> None:
    a = np.random.default_rng(4).normal(size=5) + 1
    ours = compare(a[:, None], Scores(np.zeros((1, 1, 1)), deterministic=True))
    assert ours.p_value == pytest.approx(stats.ttest_1samp(a, 0).pvalue)
    assert ours.n_seeds == (5, 1)


def test_hits_of_one_run_are_judged_nearly_as_by_mcnemars_test() -> None:
    for only_a, only_b in ((30, 12), (12, 30), (25, 12), (9, 2)):
        a = np.r_[np.ones(only_a), np.zeros(only_b), np.ones(200)]
        b = np.r_[np.zeros(only_a), np.ones(only_b), np.ones(200)]
        exact = stats.binomtest(only_a, only_a + only_b).pvalue
        score = 2 * stats.norm.sf(abs(only_a - only_b) / np.sqrt(only_a + only_b))
        assert compare(a, b).p_value == pytest.approx((exact + score) / 2, abs=0.03)


def test_verdicts() -> None:
    high, low = correct(0.9, (5, 400), 0), correct(0.6, (5, 400), 1)
    assert compare(high, low).verdict == "better"
    assert compare(low, high).verdict == "worse"
    forth, back = compare(high, low), compare(low, high)
    assert (forth.difference, forth.low, forth.p_value) == pytest.approx((-back.difference, -back.high, back.p_value))
    same = compare(high, high)
    assert (same.verdict, same.difference, same.p_value) == ("no difference shown", 0, 1)
    assert same.low < 0 < same.high
    assert compare(high, correct(0.9, (5, 400), 2)).verdict == "no difference shown"


def test_any_numbers_of_seeds_are_compared() -> None:
    many, few = correct(0.8, (7, 300), 0), correct(0.7, (2, 300), 1)
    comparison = compare(many, few)
    assert comparison.n_seeds == (7, 2)
    assert comparison.test == "seeds+items"
    assert comparison.n_items == 300


def test_one_seed_of_a_random_method_is_said_to_be_one() -> None:
    many, one = correct(0.8, (3, 300), 0), correct(0.7, (1, 300), 1)
    assert compare(many, one).spread_unknown
    assert not compare(many, Scores(one[:, None, :], deterministic=True)).spread_unknown


def test_common_subsets_are_compared_and_none_is_an_error() -> None:
    a = Scores(correct(0.8, (1, 3, 40), 0), subsets=("1", "2", "3"))
    b = Scores(correct(0.7, (1, 2, 40), 1), subsets=("3", "1"))
    comparison = compare(a, b)
    assert comparison.n_subsets == 2
    assert comparison.difference == pytest.approx(a.on(["1", "3"]).values.mean() - b.values.mean())
    with pytest.raises(DataError, match="share no subset"):
        compare(a, Scores(correct(0.7, (1, 1, 40), 1), subsets=("9",)))


def test_seeds_needed_are_the_fewest_that_show_the_difference() -> None:
    generator = np.random.default_rng(0)
    items = generator.normal(size=2000)

    def method(seeds: int, shift: float, seed: int) -> np.ndarray:
        own = np.random.default_rng(seed)
        return items + shift + 0.05 * own.normal(size=(seeds, 1)) + 0.01 * own.normal(size=(seeds, 2000))

    comparison = compare(method(3, 0.03, 4), method(3, 0.0, 14))
    assert comparison.verdict == "no difference shown"
    needed = comparison.seeds_needed
    assert needed is not None
    assert 3 < needed < 60
    # Where the items alone hide the difference, no number of seeds shows it.
    noise = compare(correct(0.5, (3, 50), 1), correct(0.49, (1, 50), 2))
    assert noise.seeds_needed is None or noise.seeds_needed <= MOST_SEEDS
    assert compare(correct(0.5, (50,), 1), correct(0.49, (50,), 2)).seeds_needed is None
    assert compare(correct(0.9, (3, 500), 1), correct(0.5, (3, 500), 2)).seeds_needed == 0


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
    flipped[np.flatnonzero(base == 0)[:5]] = 1
    differences = [difference_of(as_scores(flipped), as_scores(base)) for _ in range(4)]
    alone, together = judge(differences, correction="none"), judge(differences)
    assert {c.verdict for c in alone} == {"better"}
    assert {c.verdict for c in together} == {"no difference shown"}
    assert together[0].p_value == pytest.approx(min(1, 4 * alone[0].p_value))


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"\(1, 1, 3\) and \(1, 1, 4\)"):
        compare([1, 0, 1], [1, 0, 1, 1])
    with pytest.raises(DataError, match="finite"):
        compare([1.0, np.nan], [0.0, 1.0])
    with pytest.raises(ConfigError, match="level"):
        compare([1, 0], [0, 1], level=95)
    with pytest.raises(ConfigError, match="did you mean 'holm'"):
        judge([difference_of(as_scores([1, 0]), as_scores([0, 1]))], correction="holmes")  # type: ignore[arg-type]
