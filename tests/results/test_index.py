"""The index knows nothing that the run folders do not, and is made again from them whatever happens to it."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import Sweep

from krossfuse.results.aggregate import aggregate, cells
from krossfuse.results.configs import parse_config, sections
from krossfuse.results.errors import ResultsError
from krossfuse.results.index import NAME, RunIndex, folder_digest, open_runs
from krossfuse.results.runs import Run, read_runs


def opened(folder: Path) -> tuple[list[Run], int]:
    """Return what the index says of a folder with all items' scores, and how many runs it had to read."""
    with RunIndex(folder) as index:
        runs = index.runs()
        for run in runs:
            assert {name: scores.tolist() for name, scores in run.per_item.items()} == {
                name: scores.tolist() for name, scores in plain(folder, run.name).per_item.items()
            }
        return runs, index.read_again


def plain(folder: Path, name: str) -> Run:
    (run,) = (run for run in read_runs(folder) if run.name == name)
    return run


def same(indexed: list[Run], folder: Path) -> None:
    for one, other in zip(indexed, read_runs(folder), strict=True):
        assert (one.folder, one.name, one.records, one.state, one.error, one.config) == (
            other.folder, other.name, other.records, other.state, other.error, other.config
        )  # fmt: skip


def test_the_second_time_no_run_is_read_and_all_is_the_same(quickstart: Path) -> None:
    runs, read = opened(quickstart)
    assert read == len(runs) == 15
    same(runs, quickstart)
    again, read = opened(quickstart)
    assert read == 0
    same(again, quickstart)


def test_only_runs_that_changed_are_read_again(quickstart: Path, sweep: Any) -> None:
    opened(quickstart)
    before = folder_digest(quickstart)
    (quickstart / "3" / "status.json").write_text('{"state": "failed", "records": 4, "error": "killed"}')
    sweep.run("cca", {"group": 0.5})
    for path in (quickstart / "5").iterdir():
        path.unlink()
    assert folder_digest(quickstart) != before
    runs, read = opened(quickstart)
    assert read == 2
    same(runs, quickstart)
    assert (plain(quickstart, "3").state, "5" in {run.name for run in runs}) == ("failed", False)
    assert opened(quickstart)[1] == 0


def damage(path: Path, kind: str) -> None:
    if kind == "no database":
        path.write_bytes(b"no database " * 500)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "pages":
        content = bytearray(path.read_bytes())
        content[4096 : len(content)] = os.urandom(len(content) - 4096)
        path.write_bytes(bytes(content))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        with sqlite3.connect(path) as connection:
            if kind == "older":
                connection.execute("PRAGMA user_version = 0")
            elif kind == "other tables":
                connection.execute("DROP TABLE scores")
            elif kind == "a record":
                connection.execute("UPDATE runs SET records = replace(records, '0.', '9.') WHERE name = '2'")
            elif kind == "scores":
                connection.execute("UPDATE scores SET data = zeroblob(length(data))")
        connection.close()


KINDS = ("no database", "cut", "pages", "empty", "older", "other tables", "a record", "scores")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_or_older_index_is_made_again(quickstart: Path, kind: str) -> None:
    opened(quickstart)
    damage(quickstart / NAME, kind)
    runs, _ = opened(quickstart)
    same(runs, quickstart)
    runs, read = opened(quickstart)
    same(runs, quickstart)
    assert read == 0, "it is kept again"


def test_an_index_that_breaks_while_it_is_used_loses_nothing(quickstart: Path) -> None:
    with RunIndex(quickstart) as index:
        runs = index.runs()
        damage(quickstart / NAME, "pages")
        index._connection.execute("PRAGMA cache_size = 0")
        expected = aggregate(read_runs(quickstart))[0]
        made, _ = cells(runs, index)
        assert [cell["low"] for cell in made] == expected["low"].tolist()


def test_a_folder_that_cannot_be_written_to_works_without(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def refuse(path: Any, **options: Any) -> Any:
        if path != ":memory:":
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, **options)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    runs, read = opened(quickstart)
    assert read == 15
    same(runs, quickstart)
    assert not (quickstart / NAME).exists()


def test_another_process_that_writes_is_not_waited_for_run_by_run(quickstart: Path) -> None:
    opened(quickstart)
    for name in ("1", "2", "3"):
        os.utime(quickstart / name / "results.jsonl", (1, 1))
    other = sqlite3.connect(quickstart / NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with RunIndex(quickstart) as index:
        index._connection.execute("PRAGMA busy_timeout = 200")
        runs = index.runs()
    other.execute("ROLLBACK")
    other.close()
    same(runs, quickstart)


def test_a_damaged_run_is_still_an_error(quickstart: Path) -> None:
    opened(quickstart)
    (quickstart / "4" / "results.jsonl").write_text("{\n")
    with pytest.raises(ResultsError, match=r"4/results.jsonl, line 1"):
        opened(quickstart)


def test_intervals_that_are_remembered_are_those_that_are_computed(quickstart: Path) -> None:
    expected = aggregate(read_runs(quickstart))[0]
    for _ in range(2):
        with open_runs([quickstart]) as (runs, index):
            made, _ = cells(runs, index)
        for name in ("mean", "low", "high", "half_width", "interval", "n", "n_items", "spread_unknown", "draws"):
            assert [cell[name] for cell in made] == expected[name].tolist(), name
        assert [cell["spread"] for cell in made] == expected["spread"].tolist()
        np.testing.assert_array_equal(made[0]["scores"].values, expected["scores"][0].values)


def test_statistics_follow_the_scores_and_not_the_names(quickstart: Path) -> None:
    with open_runs([quickstart]) as (runs, index):
        cells(runs, index)
    run = quickstart / "0"
    line = (run / "results.jsonl").read_text().splitlines()[0]
    value = json.loads(line)["value"]
    with np.load(run / "per_item.npz") as file:
        arrays = dict(file)
    arrays["f00000"] = 1 - arrays["f00000"]
    np.savez_compressed(run / "per_item.npz", **arrays)
    text = (run / "results.jsonl").read_text()
    (run / "results.jsonl").write_text(text.replace(f'"value": {value}', f'"value": {1 - value}', 1))
    with open_runs([quickstart]) as (runs, index):
        made, _ = cells(runs, index)
    expected = aggregate(read_runs(quickstart))[0]
    assert [cell["low"] for cell in made] == expected["low"].tolist()


def test_several_folders_are_one_and_a_run_in_two_of_them_counts_once(tmp_path: Path) -> None:
    for folder in ("a/x", "b/x", "b/y"):
        Sweep(tmp_path / folder).run("cca", {"group": 0.5})
    with open_runs([tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b"]) as (runs, _):
        assert [run.folder.relative_to(tmp_path).as_posix() for run in runs] == ["a/x/0", "b/x/0", "b/y/0"]
        assert len({run.name for run in runs}) == 3
    with open_runs([tmp_path / "a" / "x", tmp_path / "b" / "x"]) as (runs, _):
        assert [run.name for run in runs] == ["a/x/0", "b/x/0"]


def test_a_run_alone_gets_no_index(quickstart: Path) -> None:
    with RunIndex(quickstart / "0") as index:
        assert len(index.runs()) == 1
    assert not (quickstart / "0" / NAME).exists()


def test_configurations_are_read_as_omegaconf_reads_them(repository: Path) -> None:
    from omegaconf import OmegaConf

    texts = [path.read_text() for path in (repository / "conf").rglob("*.yaml")]
    texts += ["a: 1e-3\nb: 2024-01-01\nc: [1, 2]\nd: 1_000\n", "a: &x [1]\nb: *x\n", "a: |\n  k: v\n  w\nb: yes\n", ""]
    assert len(texts) > 50
    for text in texts:
        expected = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
        assert parse_config(text) == (expected or {}), text
        assert "".join(sections(text)) == text
    for bad in ("a: [", "- 1\n", "a: 1\na: 2\n", "a:\n  b: 1\n  b: 2\n"):
        with pytest.raises(ValueError, match=r"."):
            parse_config(bad)
