from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from krossfuse.results.aggregate import aggregate, bootstrap_interval, t_half_width
from krossfuse.results.records import read_runs


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.sampled_from([0.8, 0.95, 0.99]))
def test_half_width_is_that_of_scipys_t_interval(values: list[float], level: float) -> None:
    half = t_half_width(values, level)
    scale = stats.sem(values)
    if scale == 0:
        assert half == 0
    else:
        low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=scale)
        assert half == pytest.approx((high - low) / 2)


def test_one_value_has_no_t_interval() -> None:
    assert np.isnan(t_half_width([0.5]))


def test_bootstrap_of_hits_is_the_binomials_interval() -> None:
    items = np.r_[np.ones(120), np.zeros(280)]
    low, high = bootstrap_interval(items, resamples=20_000)
    expected = stats.binom.ppf([0.025, 0.975], 400, 0.3) / 400
    np.testing.assert_allclose([low, high], expected, atol=0.003)


def test_bootstrap_of_scores_agrees_with_scipy_and_repeats_to_the_bit() -> None:
    items = np.random.default_rng(0).gamma(2, size=60)
    ours = bootstrap_interval(items, resamples=10_000, seed=3)
    assert ours == bootstrap_interval(items, resamples=10_000, seed=3)
    theirs = stats.bootstrap((items,), np.mean, method="percentile", n_resamples=10_000, rng=0).confidence_interval
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


def cell(table: Any, **wanted: Any) -> Any:
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_seeds_are_averaged_with_scipys_interval(quickstart: Path) -> None:
    runs = read_runs(quickstart)
    table, notes = aggregate(runs)
    assert notes == []
    row = cell(table, fusion="rp_krossfuse", alignment="exact", dim=768, probe="zero_shot", label_set="group")
    values = [
        record.value
        for run in runs
        for record in run.records
        if (record.alignment, record.dim, record.probe, record.label_set) == ("exact", 768, "zero_shot", "group")
    ]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (row["interval"], row["n"], row["seeds"], row["C"]) == ("seeds", 3, [0, 1, 2], 1.0)
    assert row["mean"] == pytest.approx(np.mean(values))
    np.testing.assert_allclose([row["low"], row["high"]], [low, high])


def test_a_deterministic_method_gets_an_interval_over_items(quickstart: Path) -> None:
    table, _ = aggregate(read_runs(quickstart))
    row = cell(table, fusion="cross_modal", probe="linear_probe", label_set="group")
    assert (row["interval"], row["n"]) == ("items", 240)
    assert row["low"] < row["mean"] < row["high"]


def test_copies_of_a_deterministic_figure_are_no_seeds(sweep: Any) -> None:
    for seed in (0, 1, 2):
        folder = sweep.run("cross_modal", {"group": 0.6}, deterministic=True)
        lines = (json.loads(line) | {"seed": seed} for line in (folder / "results.jsonl").read_text().splitlines())
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = cell(aggregate(read_runs(sweep.folder))[0], probe="linear_probe")
    assert row["interval"] == "items"


def test_a_deterministic_method_under_a_random_probe_has_an_interval_over_seeds(sweep: Any) -> None:
    for seed in (0, 1, 2):
        sweep.run("cross_modal", {"group": 0.6 + seed / 100}, seed=seed, deterministic=True)
    row = cell(aggregate(read_runs(sweep.folder))[0], probe="linear_probe")
    assert (row["interval"], row["n"]) == ("seeds", 3)


def test_without_items_one_run_has_no_interval(sweep: Any) -> None:
    sweep.run("rp_krossfuse", {"group": 0.6}, items=False)
    row = cell(aggregate(read_runs(sweep.folder))[0], probe="linear_probe")
    assert row["interval"] == "none"
    assert np.isnan(row["half_width"])


def test_few_shot_intervals_are_over_subsets_of_means_over_seeds(sweep: Any) -> None:
    protocols = [
        {"shots": shots, "form": form, "subset_seed": subset, "shift": 0.02 * shots + 0.03 * subset}
        for shots in (1, 4)
        for form in ("I", "I+T")
        for subset in (1, 2, 3)
    ]
    for seed in (0, 1):
        sweep.run("rp_krossfuse", {"group": 0.4}, seed=seed, protocols=protocols)
    runs = read_runs(sweep.folder)
    row = cell(aggregate(runs)[0], shots=4, form="I+T")
    means = [
        np.mean(
            [
                r.value
                for run in runs
                for r in run.records
                if (r.protocol["shots"], r.protocol["form"], r.protocol["subset_seed"]) == (4, "I+T", subset)
            ]
        )
        for subset in (1, 2, 3)
    ]
    assert (row["interval"], row["n"], row["seeds"]) == ("subsets", 3, [0, 1])
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["half_width"] == pytest.approx(t_half_width(means))


def test_figures_that_only_an_unknown_key_tells_apart_stay_apart(sweep: Any) -> None:
    sweep.run("rp_krossfuse", {"group": 0.4}, protocols=[{"blur": 1, "n_kept": 5}, {"blur": 2, "n_kept": 5}])
    table, _ = aggregate(read_runs(sweep.folder))
    assert sorted(table["other"]) == ["blur=1", "blur=2"]


def test_the_newer_of_two_equal_runs_stands_and_it_is_said(sweep: Any) -> None:
    old = sweep.run("rp_krossfuse", {"group": 0.4})
    sweep.run("rp_krossfuse", {"group": 0.7})
    os.utime(old / "results.jsonl", (1, 1))
    table, notes = aggregate(read_runs(sweep.folder))
    assert cell(table, probe="linear_probe")["mean"] == pytest.approx(0.7, abs=0.05)
    assert notes == ["2 figures of 0 were measured again by a newer run, whose figures stand"]


def test_a_constant_selected_run_by_run_is_one_method_with_a_range(sweep: Any) -> None:
    for seed, constant in ((0, 0.1), (1, 1.0)):
        folder = sweep.run("rp_krossfuse", {"group": 0.5}, seed=seed, C=constant)
        path = folder / "results.jsonl"
        lines = [json.loads(line) | {"config_digest": "same"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = cell(aggregate(read_runs(sweep.folder))[0], probe="linear_probe")
    assert (row["n"], row["C_low"], row["C_high"]) == (2, 0.1, 1.0)


def test_no_records_give_an_empty_table(tmp_path: Path) -> None:
    from krossfuse.results.records import RunWriter

    with RunWriter(tmp_path):
        pass
    table, notes = aggregate(read_runs(tmp_path))
    assert table.empty
    assert notes == []
