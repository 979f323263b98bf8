from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from krossfuse.results.digest import config_digest
from krossfuse.results.errors import ResultsError
from krossfuse.results.records import Record
from krossfuse.results.runs import read_run, read_runs
from krossfuse.results.versions import versions
from krossfuse.results.writer import RunWriter

RECORD = Record("openmoji", "pair", "rp_krossfuse", 64, "zero_shot", "accuracy", "image", 3, 0.625)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    full = dataclasses.replace(RECORD, protocol={"grid": [0.1, 1], "n": 3}, versions={"torch": "2"}, label_set="géant")
    with RunWriter(tmp_path / "run") as writer:
        writer.write_config({"seed": 3, "fusion": {"dim": 64}})
        first = writer.append(full, per_item=torch.tensor([True, False, True]))
        second = writer.append(RECORD, per_item=[0.25, 0.5])
    run = read_run(tmp_path / "run")
    assert run.records == (first, second)
    assert dataclasses.replace(first, figure_id="", declared={}) == full
    assert first.figure_id != second.figure_id
    assert run.state == "finished"
    assert run.config == {"seed": 3, "fusion": {"dim": 64}}
    np.testing.assert_array_equal(run.per_item[first.figure_id], [1, 0, 1])
    np.testing.assert_array_equal(run.per_item[second.figure_id], np.float32([0.25, 0.5]))
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == 2


def test_config_is_written_resolved(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write_config(OmegaConf.create({"seed": 3, "fusion": {"seed": "${seed}"}}))
    assert read_run(tmp_path).config["fusion"]["seed"] == 3


def test_a_failed_run_keeps_what_it_measured_and_its_error(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.append(RECORD, per_item=[1, 0])
    with pytest.raises(ZeroDivisionError), writer:
        raise ZeroDivisionError("no")
    run = read_run(tmp_path)
    assert (run.state, run.error, len(run.records), len(run.per_item)) == ("failed", "ZeroDivisionError: no", 1, 1)


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from krossfuse.results.records import Record\n"
        "from krossfuse.results.writer import RunWriter\n"
        "w = RunWriter(sys.argv[1])\n"
        "for i in range(5):\n"
        "    w.append(Record('d', 'p', 'f', 1, 'probe', 'accuracy', 'image', i, 0.5))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    run = read_run(tmp_path)
    assert run.state == "unfinished"
    assert [record.seed for record in run.records] == [0, 1, 2, 3, 4]


def test_a_line_cut_off_at_the_end_is_an_unfinished_run(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append(RECORD)
        writer.append(RECORD)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    run = read_run(tmp_path)
    assert (run.state, len(run.records)) == ("unfinished", 1)


def line(**changes: object) -> str:
    return json.dumps(dataclasses.asdict(RECORD) | changes)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("{not json", "line 2: not a line of JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        (line(valeu=1), r"line 2: unknown field 'valeu' \(did you mean 'value'\?\)"),
        (line(value="0.5"), "line 2: field 'value' must be float"),
        (line(value=float("nan")), "line 2: field 'value' must be float"),
        (line(dim=True), "line 2: field 'dim' must be int"),
        (line(C=[1]), "line 2: field 'C' must be"),
        (line(protocol=None), "line 2: field 'protocol' must be"),
        ('{"data": "d"}', r"line 2: fields \['dim', .*\] are missing"),
    ],
)
def test_a_damaged_line_is_named_by_file_and_number(tmp_path: Path, damaged: str, message: str) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append(RECORD)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(damaged + "\n")
    with pytest.raises(ResultsError, match=r"results\.jsonl, " + message):
        read_run(tmp_path)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append(RECORD, per_item=np.arange(100) / 7)
    path = tmp_path / "per_item.npz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ResultsError, match=r"per_item\.npz is damaged"):
        _ = read_run(tmp_path).per_item


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    with pytest.raises(ResultsError, match="rp_krossfuse/zero_shot/accuracy/image"), RunWriter(tmp_path) as writer:
        writer.append(dataclasses.replace(RECORD, value=value))


@pytest.mark.parametrize("scores", [[], [[1.0]], [float("nan")]])
def test_scores_that_are_no_axis_of_numbers_are_refused(tmp_path: Path, scores: list[float]) -> None:
    with pytest.raises(ResultsError, match="one axis of finite numbers"), RunWriter(tmp_path) as writer:
        writer.append(RECORD, per_item=scores)


def test_an_id_is_taken_once(tmp_path: Path) -> None:
    named = dataclasses.replace(RECORD, figure_id="x")
    writer = RunWriter(tmp_path)
    writer.append(named)
    with pytest.raises(ResultsError, match="'x' is already taken"):
        writer.append(named)


def test_results_are_not_overwritten_unless_asked(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append(RECORD)
    with pytest.raises(ResultsError, match="already holds results"):
        RunWriter(tmp_path)
    RunWriter(tmp_path, overwrite=True)
    assert read_run(tmp_path).records == ()


def test_a_sweep_is_read_with_its_unfinished_runs_by_name(tmp_path: Path) -> None:
    for name in ("0", "1"):
        with RunWriter(tmp_path / "sweep" / name) as writer:
            writer.append(RECORD)
    RunWriter(tmp_path / "sweep" / "2").append(RECORD)
    (tmp_path / "sweep" / ".hydra").mkdir()
    runs = read_runs(tmp_path)
    assert [(run.name, run.state) for run in runs] == [
        ("sweep/0", "finished"),
        ("sweep/1", "finished"),
        ("sweep/2", "unfinished"),
    ]
    assert read_runs(tmp_path / "sweep" / "0")[0].name == "0"


def test_missing_and_empty_folders_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such folder"):
        read_runs(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match=r"no results in .* give the folder of a run or of a sweep"):
        read_runs(tmp_path)
    with pytest.raises(ResultsError, match="is not a run folder"):
        read_run(tmp_path)


def test_digest_ignores_seed_paths_and_logger_and_nothing_else() -> None:
    config = {
        "seed": 0,
        "paths": {"root": "a"},
        "logger": {"mode": "offline"},
        "data": {"name": "openmoji", "seed": 5, "folder": "${paths.root}/x"},
        "fusion": {"dim": 64, "seed": "${seed}", "sketch": {"seed": "${seed}"}},
        "probe": {"linear_probe": {"grid": [1, 10]}},
    }

    def digest(**changes: object) -> str:
        return config_digest(OmegaConf.merge(config, OmegaConf.create(changes)))

    same = digest()
    assert digest(seed=7, paths={"root": "elsewhere"}, logger={"mode": "online"}) == same
    assert digest(data={"seed": 6}) != same
    assert digest(fusion={"dim": 65}) != same
    assert digest(probe={"linear_probe": {"grid": [1]}}) != same
    assert digest(unknown_section={"key": 1}) != same


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert config_digest({"a": 1, "b": {"c": 2, "d": 3}}) == config_digest({"b": {"d": 3, "c": 2}, "a": 1})


def test_versions_names_what_is_installed() -> None:
    found = versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "krossfuse", "numpy"} <= found.keys()
    assert "nothing-of-this-name" not in versions(["nothing-of-this-name"])
