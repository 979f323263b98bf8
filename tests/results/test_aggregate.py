from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from krossfuse.results.aggregate import aggregate, scores_of
from krossfuse.results.inference import interval_of_mean
from krossfuse.results.records import Record
from krossfuse.results.runs import read_runs
from krossfuse.results.writer import RunWriter


def cell(table: Any, **wanted: Any) -> Any:
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_seeds_and_items_make_one_interval(quickstart: Path) -> None:
    runs = read_runs(quickstart)
    table, notes = aggregate(runs)
    assert notes == []
    wanted = ("exact", 768, "zero_shot", "group")
    row = cell(table, fusion="rp_krossfuse", dim=768, probe="zero_shot", label_set="group", method=digest(runs, wanted))
    values = [
        record.value
        for run in runs
        for record in run.records
        if (record.fusion_config.get("alignment"), record.dim, record.probe, record.label_set) == wanted
    ]
    assert (row["interval"], row["n"], row["seeds"], row["n_items"]) == ("seeds+items", 3, [0, 1, 2], 240)
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["scores"].values.shape == (3, 1, 240)
    assert (row["low"], row["high"]) == pytest.approx(interval_of_mean(scores_of(row["members"]))[:2])


def digest(runs: Any, wanted: tuple[Any, ...]) -> str:
    (found,) = {
        record.method_digest
        for run in runs
        for record in run.records
        if (record.fusion_config.get("alignment"), record.dim, record.probe, record.label_set) == wanted
    }
    return str(found)


def test_without_items_seeds_have_scipys_interval(sweep: Any) -> None:
    values = []
    for seed in range(4):
        folder = sweep.run("rp_krossfuse", {"group": 0.6 + seed / 50}, seed=seed, items=False)
        values.append(read_runs(folder)[0].records[0].value)
    row = cell(aggregate(read_runs(sweep.folder))[0], probe="linear_probe")
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert row["interval"] == "seeds"
    assert (row["low"], row["high"]) == pytest.approx(expected)


def test_one_seed_of_a_random_method_has_an_unknown_spread(sweep: Any) -> None:
    sweep.run("rp_krossfuse", {"group": 0.6})
    row = cell(aggregate(read_runs(sweep.folder))[0], probe="linear_probe")
    assert (row["interval"], row["spread_unknown"]) == ("items", True)


def test_items_of_which_the_value_is_no_mean_are_left_out(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append(Record("d", "p", "cca", 4, "retrieval", "median_rank", "image->text", 0, 3.0), [1, 2, 3, 4, 90])
    row = cell(aggregate(read_runs(tmp_path))[0], probe="retrieval")
    assert (row["interval"], row["n_items"]) == ("none", 0)


def test_intervals_keep_to_the_metrics_bounds(sweep: Any) -> None:
    for seed, accuracy in enumerate((1.0, 0.7)):
        sweep.run("rp_krossfuse", {"group": accuracy}, seed=seed, items=False)
    row = cell(aggregate(read_runs(sweep.folder))[0], probe="linear_probe")
    assert (row["low"], row["high"]) == (0.0, 1.0)


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
    assert (row["interval"], row["n"]) == ("seeds+items", 3)


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
    assert (row["interval"], row["n"], row["seeds"]) == ("seeds+subsets+items", 2, [0, 1])
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["scores"].subsets == ("1", "2", "3")
    assert row["scores"].values.shape == (2, 3, 240)


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
    assert notes == ["2 measurements of 0 were made again by a newer run, whose values stand"]


def test_options_of_a_probe_are_columns_of_one_method(sweep: Any) -> None:
    for number, classifier in enumerate(("logistic", "ridge")):
        folder = sweep.run("cca", {"group": 0.5 + number / 10}, protocols=[{"shots": 1, "classifier": classifier}])
        path = folder / "results.jsonl"
        lines = [json.loads(line) | {"config_digest": classifier} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table, notes = aggregate(read_runs(sweep.folder))
    assert notes == []
    assert sorted(table["other"]) == ["classifier=logistic", "classifier=ridge"]
    assert table["method"].nunique() == 1


def test_no_records_give_an_empty_table(tmp_path: Path) -> None:
    with RunWriter(tmp_path):
        pass
    table, notes = aggregate(read_runs(tmp_path))
    assert table.empty
    assert notes == []
