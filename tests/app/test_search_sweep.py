"""Search in place of a grid: the space in Hydra's words, objectives by name, studies gone on with and shared."""

from __future__ import annotations

import csv
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from krossfuse.__main__ import main
from krossfuse.app.objectives import Objective, parse_objectives
from krossfuse.app.search_sweep import SearchSweep
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.results.records import Record
from krossfuse.results.runs import read_runs

ACCURACY = "linear_probe/accuracy/image/class"
Search = Callable[..., Path]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Two parents, of which the second knows more: what an expert's weight decides can be found."""
    rng = np.random.default_rng(0)
    clip, expert = rng.normal(size=(4, 8)), rng.normal(size=(4, 12))
    arrays: dict[str, np.ndarray] = {
        "classes": np.array(["cat", "dog", "owl", "bee"]),
        "prompts/text/clip": clip.astype(np.float32),
    }
    for split, n in {"train": 48, "val": 24, "test": 40}.items():
        arrays[f"{split}/labels"] = labels = np.arange(n) % 4
        arrays[f"{split}/image/clip"] = (clip[labels] + 3 * rng.normal(size=(n, 8))).astype(np.float32)
        arrays[f"{split}/image/dinov2"] = (expert[labels] + rng.normal(size=(n, 12))).astype(np.float32)
    np.savez(tmp_path / "features.npz", **arrays)
    return tmp_path / "features.npz"


@pytest.fixture
def search(tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Run a search in this process; returns its folder."""
    pytest.importorskip("optuna")
    folder = tmp_path / "search"

    def run(*arguments: str, space: tuple[str, ...] = ("fusion.dim=choice(8,16)", "fusion.C=interval(.1,1)")) -> Path:
        monkeypatch.chdir(tmp_path)
        fixed = ["-m", "hydra/sweeper=search", "data=embeddings", "pair=none", f"data.path={features}", "logger=none"]
        fixed += ["fusion=rp_krossfuse", "probe=[linear_probe]", f"hydra.sweep.dir={folder}"]
        monkeypatch.setattr(sys, "argv", ["krossfuse", *fixed, *space, *arguments])
        GlobalHydra.instance().clear()
        main()
        return folder

    return run


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "search.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_trial_is_a_run_and_the_table_says_what_was_measured(search: Search) -> None:
    folder = search(f"hydra.sweeper.objectives=[{ACCURACY},dim]", "hydra.sweeper.trials=4", "hydra.sweeper.seeds=[0,1]")
    by_name = {run.folder.name: run for run in read_runs(folder)}
    rows = trials(folder)
    assert [row["state"] for row in rows] == ["complete"] * 4
    for row in rows:
        runs = [by_name[name] for name in row["runs"].split()]
        assert [run.config["seed"] for run in runs] == [0, 1]
        assert (
            {str(run.config["fusion"]["dim"]) for run in runs} == {row["fusion.dim"]} == {str(int(float(row["dim"])))}
        )
        assert {run.config["fusion"]["C"] for run in runs} == {float(row["fusion.C"])}
        accuracies = [r.value for run in runs for r in run.records if r.metric == "accuracy"]
        assert float(row[ACCURACY]) == pytest.approx(np.mean(accuracies))
    front = [row for row in rows if row["best"] == "True"]
    assert front
    for row in rows:  # brute force: what is not on the front is beaten by something on it
        beaten = [
            other
            for other in rows
            if float(other[ACCURACY]) >= float(row[ACCURACY])
            and float(other["dim"]) <= float(row["dim"])
            and (float(other[ACCURACY]), -float(other["dim"])) != (float(row[ACCURACY]), -float(row["dim"]))
        ]
        assert (row in front) == (not beaten)
    assert (folder / "report" / "report.html").is_file()


def test_a_search_goes_on_to_more_trials_and_computes_no_point_twice(search: Search) -> None:
    first = search(f"hydra.sweeper.objectives=[{ACCURACY}]", "hydra.sweeper.trials=2")
    before = {path: path.stat().st_mtime_ns for path in first.glob("*/results.jsonl")}
    assert len(before) == 2
    search(f"hydra.sweeper.objectives=[{ACCURACY}]", "hydra.sweeper.trials=4", f"hydra.sweeper.resume={first}")
    assert len(trials(first)) == 4
    after = {path: path.stat().st_mtime_ns for path in first.glob("*/results.jsonl")}
    assert before.items() <= after.items()
    search(f"hydra.sweeper.objectives=[{ACCURACY}]", "hydra.sweeper.trials=4", f"hydra.sweeper.resume={first}")
    assert {path: path.stat().st_mtime_ns for path in first.glob("*/results.jsonl")} == after


def test_a_trial_that_was_killed_is_proposed_again(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = SearchSweep._compute

    def killed(self: SearchSweep, batch: Any, seed: int | None) -> None:
        if seed == 1:
            raise KeyboardInterrupt
        compute(self, batch, seed)

    objective = f"hydra.sweeper.objectives=[{ACCURACY}]"
    monkeypatch.setattr(SearchSweep, "_compute", killed)
    with pytest.raises(SystemExit):
        search(objective, "hydra.sweeper.trials=1", "hydra.sweeper.seeds=[0,1]")
    monkeypatch.setattr(SearchSweep, "_compute", compute)
    folder = search(objective, "hydra.sweeper.trials=1", "hydra.sweeper.seeds=[0,1]")
    (row,) = trials(folder)
    assert (row["state"], row["runs"]) == ("complete", "0 1")
    assert len(read_runs(folder)) == 2


def test_a_pruned_trial_spares_its_further_seeds(search: Search) -> None:
    folder = search(
        f"hydra.sweeper.objectives=[{ACCURACY}]",
        "hydra.sweeper.trials=4",
        "hydra.sweeper.seeds=[0,1]",
        "hydra.sweeper.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 0.4}",
    )
    measured = {
        run.folder.name: next(r.value for r in run.records if r.metric == "accuracy") for run in read_runs(folder)
    }
    rows = trials(folder)
    for row in rows:
        runs = row["runs"].split()
        assert (row["state"], len(runs)) == (("pruned", 1) if measured[runs[0]] < 0.4 else ("complete", 2))
    assert {row["state"] for row in rows} == {"pruned", "complete"}


def test_an_impossible_combination_fails_its_trial_alone(search: Search, caplog: pytest.LogCaptureFixture) -> None:
    # A spectral sketch of 8 × 12 features cannot have 300 dimensions, a uniform one can.
    space = ("fusion.dim=choice(16,300)", "fusion/sketch=choice(uniform,spectral)")
    with caplog.at_level(logging.INFO):
        folder = search(
            f"hydra.sweeper.objectives=[{ACCURACY}]",
            "hydra.sweeper.trials=8",
            "hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler",
            "~hydra.sweeper.sampler.constant_liar",
            "fusion.alignment=exact",
            space=space,
        )
    states = {(row["fusion.dim"], row["fusion/sketch"]): row["state"] for row in trials(folder)}
    assert states[("300", "spectral")] == "fail"
    assert {state for key, state in states.items() if key != ("300", "spectral")} == {"complete"}


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path, features: Path) -> None:
    pytest.importorskip("optuna")
    common = [sys.executable, "-m", "krossfuse", "-m", "hydra/sweeper=search", "data=embeddings", "pair=none"]
    common += [f"data.path={features}", "logger=none", "fusion=rp_krossfuse", "probe=[linear_probe]"]
    common += ["fusion.dim=choice(8,16)", "fusion.C=interval(.1,1)", f"hydra.sweeper.objectives=[{ACCURACY}]"]
    common += ["hydra.sweeper.trials=8", f"hydra.sweeper.storage=journal:{tmp_path}/shared.journal"]
    common += ["hydra.sweeper.study=both"]
    folders = [tmp_path / name for name in ("a", "b")]
    processes = [
        subprocess.Popen([*common, f"hydra.sweep.dir={folder}", f"hydra.sweeper.sampler.seed={seed}"], cwd=tmp_path)
        for seed, folder in enumerate(folders)
    ]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    counts = [len(read_runs(folder)) for folder in folders]
    assert min(counts) >= 1
    assert 8 <= sum(counts) <= 9  # both may ask for the last one at once
    assert len(trials(folders[0])) >= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.sweeper.objectives=null"], "must be a list such as"),
        (["hydra.sweeper.objectives=[knn/accuracy/image]"], r"'knn/accuracy/image' is of no probe of this job"),
        (["hydra.sweeper.objectives=[linear_probe/speed/image]"], "is not declared; say it"),
        (["hydra.sweeper.objectives={dim: up}"], "'up' is not one of"),
        (["hydra.sweeper.objectives=[dim]", "hydra.sweeper.trials=0"], r"hydra\.sweeper\.trials=0"),
        (["hydra.sweeper.objectives=[dim]", "hydra.sweeper.parallel=-1"], r"hydra\.sweeper\.parallel=-1"),
        (["hydra.sweeper.objectives=[dim]", "fusion.dims=choice(1,2)"], "fusion.dims"),
        (["hydra.sweeper.objectives=[dim]", "fusion.expert_weight=interval(2,1)"], "must go up"),
        (["hydra.sweeper.objectives=[dim]", "fusion.expert_weight=tag(log,interval(0,1))"], "must begin above 0"),
        (["hydra.sweeper.objectives=[dim]", "fusion/sketch=choice(uniform,unifrom)"], "unifrom"),
        (["hydra.sweeper.objectives=[dim]", "hydra.sweeper.storage=sqlite:////no/such/folder/x.db"], "cannot be used"),
        (["hydra.sweeper.objectives=[dim]", "hydra.sweeper.storage=nosql://x"], "journal:FILE needs no database"),
        (["hydra.sweeper.objectives=[dim]", "hydra.sweeper.seeds=[0,1]", "seed=3"], "both name the seed"),
        (
            ["hydra.sweeper.objectives=[dim]", "hydra.sweeper.pruner={_target_: optuna.pruners.MedianPruner}"],
            "needs one objective and several seeds",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_trial(
    search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        search(*arguments)
    import re

    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("search/*/results.jsonl"))


def test_a_study_of_other_objectives_or_another_space_is_refused(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    search("hydra.sweeper.objectives=[dim]", "hydra.sweeper.trials=1")
    with pytest.raises(SystemExit):
        search("hydra.sweeper.objectives=[seconds]", "hydra.sweeper.trials=2")
    assert "has the objectives ['dim'], and this search has ['seconds']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search("hydra.sweeper.objectives=[dim]", "hydra.sweeper.trials=2", space=("fusion.dim=choice(8,16)",))
    assert "has the keys" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_searched(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    folder = search("hydra.sweeper.objectives=[dim]", "hydra.sweeper.trials=6", "hydra.sweeper.dry_run=true")
    said = capsys.readouterr().out
    assert "6 trials" in said
    assert "fusion.C" in said
    assert not folder.exists()


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"pip install 'krossfuse\[optuna\]'"):
        SearchSweep(trials=1, objectives=["dim"], sampler={})


def test_spaces_are_hydras_words() -> None:
    optuna = pytest.importorskip("optuna")
    from krossfuse.app.search_space import corners, split

    given = ["a=1", "b=choice(x,[1,2])", "c=range(1,9,2)", "d=range(0,1,.25)", "e=interval(1,10)"]
    given += ["f=int(interval(1,10))", "g=tag(log,interval(.1,10))"]
    fixed, space = split(OverridesParser.create().parse_overrides(given))
    of = optuna.distributions
    assert fixed == ["a=1"]
    assert space == {
        "b": of.CategoricalDistribution(["x", "[1,2]"]),
        "c": of.IntDistribution(1, 7, step=2),
        "d": of.FloatDistribution(0, 0.75, step=0.25),
        "e": of.FloatDistribution(1, 10),
        "f": of.IntDistribution(1, 10),
        "g": of.FloatDistribution(0.1, 10, log=True),
    }
    every = list(corners(space))
    assert len(every) == 1 + len(space)
    assert {params["b"] for params in every} == {"x", "[1,2]"}


def test_objectives_are_measurements_by_name() -> None:
    record = Record("d", "p", "f", 64, "knn", "accuracy", "image", 0, 0.5, label_set="group", seconds=2.0)
    records = [record, Record("d", "p", "f", 64, "ridge", "accuracy", "image", 0, 0.75, seconds=3.0)]
    assert [o.value(records) for o in parse_objectives(["knn/accuracy/image/group", "dim", "seconds"])] == [0.5, 64, 5]
    assert [o.directed() for o in parse_objectives(["knn/accuracy/image/group", "dim"])] == ["maximize", "minimize"]
    assert parse_objectives({"x/y": "minimize"}) == [Objective("x/y", "minimize")]
    with pytest.raises(DataError, match="did you mean 'knn/accuracy/image/group'"):
        Objective("knn/accuracy/image/groups").value(records)
