from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf
from wandb_files import wandb_records, wandb_tables

from krossfuse.core.errors import ConfigError
from krossfuse.results.records import Record
from krossfuse.results.runs import read_run
from krossfuse.results.trackers import CsvTracker, NoTracker, Tracker, WandbTracker, metric_key
from krossfuse.results.trackers.base import GuardedTracker

RECORD = Record("openmoji", "pair", "rp_krossfuse", 64, "few_shot", "accuracy", "image", 3, 0.625, label_set="group")
SHOT = {"shots": 4, "form": "I+T", "subset_seed": 1, "split": "test"}


def picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(folder / "heat.png")
    return folder / "heat.png"


def test_a_figures_name_holds_what_sets_it_apart() -> None:
    shot = Record(**{**RECORD.__dict__, "protocol": SHOT})
    assert metric_key(RECORD) == "few_shot/accuracy/image/group"
    assert metric_key(shot) == "few_shot/accuracy/image/group/shots=4/form=I+T/subset_seed=1"


def test_wandb_holds_config_summary_table_and_picture(tmp_path: Path) -> None:
    tracker = WandbTracker(project="proj", tags=["a"])
    with tracker.run(tmp_path, {"seed": 3, "fusion": {"dim": 64}}, name="job 0", group="sweep", tags=["b"]) as run:
        run.log_records([RECORD])
        run.log_table("board", pd.DataFrame({"method": ["x", "y"], "value": [0.1, 0.2]}))
        run.log_pictures([picture(tmp_path)])
    records = wandb_records(tmp_path)
    (started,) = [r.run for r in records if r.HasField("run")][:1]
    assert (started.project, started.run_group, started.display_name) == ("proj", "sweep", "job 0")
    assert set(started.tags) == {"a", "b"}
    config = {u.key: u.value_json for r in records if r.HasField("config") for u in r.config.update}
    assert config["seed"] == "3"
    summary = {
        "/".join(u.nested_key) or u.key: u.value_json
        for r in records
        if r.HasField("summary")
        for u in r.summary.update
    }
    assert summary["few_shot/accuracy/image/group"] == "0.625"
    logged = {i.key or "/".join(i.nested_key) for r in records if r.HasField("history") for i in r.history.item}
    assert {"records", "board", "heat"} <= {name.split("/")[0] for name in logged}
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def test_wandb_holds_the_records_of_every_probe_in_one_table(tmp_path: Path) -> None:
    with WandbTracker().run(tmp_path, {}, name="job") as run:
        run.log_records([RECORD])
        run.log_records([dataclasses.replace(RECORD, probe="knn", fusion_config={"C": 0.1, "sketch": "srht"})])
    records = wandb_records(tmp_path)
    rows_of_history = [{i.key or i.nested_key[0] for i in r.history.item} for r in records if r.HasField("history")]
    assert sum("records" in row for row in rows_of_history) == 1
    (table,) = wandb_tables(tmp_path, "records")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["measurement"] for row in rows] == ["few_shot/accuracy/image/group", "knn/accuracy/image/group"]
    assert [(row["C"], row["sketch"]) for row in rows] == [("", ""), ("0.1", "srht")]


def test_wandb_begins_a_run_without_importing_launch_unless_that_has_staged_inputs(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import wandb
from krossfuse.results.trackers import WandbTracker

before = "wandb.sdk.launch" in sys.modules  # W&B itself imports it in old versions
with WandbTracker().run(Path("plain"), {}, name="job"):
    print("imported by the run", ("wandb.sdk.launch" in sys.modules) > before)
from wandb.sdk import launch
from wandb.sdk.launch.inputs.internal import StagedLaunchInputs
launch.manage_wandb_config(include=["lr"])
StagedLaunchInputs.apply = lambda self, run: print("staged", [one.include for one in self._staged_inputs])
with WandbTracker().run(Path("staged"), {}, name="job"):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "imported by the run False\nstaged [['lr']]\n"), done.stderr


def test_wandb_s_service_is_there_when_the_first_run_was_foreseen(tmp_path: Path) -> None:
    code = """
import threading
from pathlib import Path
import wandb
from krossfuse.results.trackers import CsvTracker, WandbTracker

CsvTracker().foresee()
WandbTracker(mode="disabled").foresee()
assert not wandb.sdk.wandb_setup.singleton()._connection
thread = threading.Thread(target=WandbTracker().foresee)
thread.start()
with WandbTracker().run(Path("run"), {}, name="job"):  # meanwhile
    first = wandb.sdk.wandb_setup.singleton()._connection
thread.join()
print("one service", wandb.sdk.wandb_setup.singleton()._connection is first is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "one service True\n"), done.stderr
    assert [r.exit.exit_code for r in wandb_records(tmp_path / "run") if r.HasField("exit")] == [0]


def test_wandb_knows_the_kind_of_job_and_tags_once(tmp_path: Path) -> None:
    tracker = WandbTracker(tags=["a"])
    with tracker.run(tmp_path, {}, name="job", group="sweep 1", job_type="report", tags=["a", "b"]):
        pass
    started = next(r.run for r in wandb_records(tmp_path) if r.HasField("run"))
    assert (started.job_type, started.run_group, list(started.tags)) == ("report", "sweep 1", ["a", "b"])


def test_wandb_closes_a_failed_job_with_exit_code_1_and_the_next_starts_afresh(tmp_path: Path) -> None:
    tracker = WandbTracker()
    with pytest.raises(RuntimeError, match="boom"), tracker.run(tmp_path / "0", {}, name="0", group="s"):
        raise RuntimeError("boom")
    with tracker.run(tmp_path / "1", {}, name="1", group="s") as run:
        run.log_records([RECORD])
    first, second = wandb_records(tmp_path / "0"), wandb_records(tmp_path / "1")
    assert [r.exit.exit_code for r in first if r.HasField("exit")] == [1]
    assert [r.exit.exit_code for r in second if r.HasField("exit")] == [0]
    ids = [next(r.run.run_id for r in records if r.HasField("run")) for records in (first, second)]
    assert ids[0] != ids[1]


def test_wandb_goes_on_with_the_run_of_its_folder_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(folder: Path) -> list[str]:
        files = sorted(folder.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime)
        return [path.name.rpartition("-")[2] for path in files]

    for _ in range(2):
        with WandbTracker().run(tmp_path / "a", {}, name="job"):
            time.sleep(1)  # W&B names a file by the second
    first, second = started(tmp_path / "a")
    assert first == second
    with WandbTracker(id="abc123").run(tmp_path / "b", {}, name="job"):
        pass
    assert started(tmp_path / "b") == ["abc123"]
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")  # as `wandb agent` says which run of its sweep this is
    with WandbTracker().run(tmp_path / "c", {}, name="job"):
        pass
    assert started(tmp_path / "c") == ["agents1"]


def test_wandbs_summary_holds_the_best_of_every_measurement(tmp_path: Path) -> None:
    shot = dataclasses.replace(RECORD, value=0.75, protocol=SHOT)
    val = dataclasses.replace(RECORD, value=0.9, protocol={"split": "val"})
    bits = dataclasses.replace(RECORD, probe="federated_probe", metric="median_rank", value=3.0)
    less = dataclasses.replace(bits, value=2.0, protocol=SHOT)
    with WandbTracker().run(tmp_path, {}, name="job") as run:
        run.log_records([RECORD, shot, val, bits, less])
    summary = {
        "/".join(u.nested_key) or u.key: json.loads(u.value_json)
        for r in wandb_records(tmp_path)
        if r.HasField("summary")
        for u in r.summary.update
    }
    assert {k: v for k, v in summary.items() if k.startswith("best/")} == {
        "best/few_shot/accuracy/image/group": 0.75,
        "best/federated_probe/median_rank/image/group": 2.0,
    }


def kill_wandb_service() -> None:
    """Kill the one process that writes the runs of this one."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"], capture_output=True, text=True, check=True
    )
    for process in found.stdout.split():
        os.kill(int(process), signal.SIGKILL)


def test_a_job_outlives_the_wandb_service_and_the_next_run_gets_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = WandbTracker()
    with tracker.run(tmp_path / "0", {}, name="0") as run:
        run.log_records([RECORD])
        kill_wandb_service()
        for _ in range(20):  # the loss is noticed when something is sent, at the latest a moment later
            run.log_table("t", pd.DataFrame({"a": [1]}))
            time.sleep(0.05)
        run.log_pictures([picture(tmp_path)])
        reached = True
    assert reached
    said = [r.getMessage() for r in caplog.records if "WandbTracker failed" in r.getMessage()]
    assert len(said) == 1
    assert "the run folder holds everything" in said[0]
    with tracker.run(tmp_path / "1", {}, name="1") as run:
        run.log_records([RECORD])
    (end,) = [r.exit.exit_code for r in wandb_records(tmp_path / "1") if r.HasField("exit")]
    assert end == 0


def test_a_failed_job_keeps_its_own_error_when_the_tracker_fails_too(tmp_path: Path) -> None:
    class Broken(NoTracker):
        def finish(self, exit_code: int = 0) -> None:
            raise ConnectionResetError("lost")

    with pytest.raises(RuntimeError, match="boom"), Broken().run(tmp_path, {}, name="x"):
        raise RuntimeError("boom")


def test_training_goes_on_when_its_logger_fails(tmp_path: Path) -> None:
    with WandbTracker().run(tmp_path, {}, name="job") as run:
        logger = run.lightning_logger()
        assert logger
        kill_wandb_service()
        for step in range(20):
            logger.log_metrics({"loss": 1.0}, step=step)
            time.sleep(0.05)
    assert isinstance(run, GuardedTracker)
    assert isinstance(run.failed, OSError)


def test_wandb_disabled_writes_nothing(tmp_path: Path) -> None:
    with WandbTracker(mode="disabled").run(tmp_path, {"seed": 0}, name="job") as run:
        run.log_records([RECORD])
    assert not list(tmp_path.rglob("*.wandb"))


def test_wandb_online_without_an_account_says_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = WandbTracker(mode="online")
    with (
        pytest.raises(ConfigError, match=r"logger\.mode=offline needs no account"),
        tracker.run(tmp_path, {}, name="x"),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "offlin"}, "did you mean 'offline'"),
        ({"project": ""}, "project"),
        ({"tags": "a"}, "must be a list"),
        ({"id": "a/b"}, "logger.id='a/b'"),
        ({"keep": "fusion"}, "logger.keep='fusion' must be a list"),
        ({"keep": ["modle"]}, "did you mean 'model'"),
    ],
)
def test_wandb_refuses_bad_values_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WandbTracker(**options)


def test_csv_writes_every_figure_and_the_exit_code(tmp_path: Path) -> None:
    with CsvTracker().run(tmp_path, {"fusion": {"dim": 64}}, name="job", group="sweep") as run:
        run.log_records([RECORD])
        run.log_table("board", pd.DataFrame({"a": [1]}))
        run.log_pictures([picture(tmp_path)])
    rows = dict(csv.reader((tmp_path / "tracker" / "metrics.csv").open()))
    assert rows["few_shot/accuracy/image/group"] == "0.625"
    assert rows["config/fusion.dim"] == "64"
    assert rows["exit_code"] == "0"
    assert (tmp_path / "tracker" / "board.csv").read_text() == "a\n1\n"
    assert (tmp_path / "tracker" / "heat.png").is_file()


def test_csv_closes_a_failed_job_with_exit_code_1(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), CsvTracker().run(tmp_path, {}, name="job"):
        raise KeyboardInterrupt
    assert (tmp_path / "tracker" / "metrics.csv").read_text().endswith("exit_code,1\n")


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    with NoTracker().run(tmp_path, {}, name="job") as run:
        run.log_records([RECORD])
        assert run.lightning_logger() is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "csv", "none"])
def test_every_logger_config_builds_a_tracker(name: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.utils import instantiate

    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = instantiate(OmegaConf.load(repository / "conf" / "logger" / f"{name}.yaml"))
    assert isinstance(tracker, Tracker)
    assert getattr(tracker, "mode", "offline") == "offline"


@pytest.mark.slow
def test_lightning_logs_into_the_same_run(tmp_path: Path) -> None:
    for tracker in (WandbTracker(), CsvTracker()):
        with tracker.run(tmp_path / type(tracker).__name__, {}, name="job") as run:
            logger = run.lightning_logger()
            assert logger
            logger.log_metrics({"loss": 0.5}, step=1)
            logger.save()
    history = [r.history for r in wandb_records(tmp_path / "WandbTracker") if r.HasField("history")]
    assert any((i.key or i.nested_key[0]) == "loss" for h in history for i in h.item)
    assert "0.5" in next((tmp_path / "CsvTracker").rglob("lightning/**/metrics.csv")).read_text()


def test_wandb_folders_are_no_run_folders(tmp_path: Path, quickstart: Path) -> None:
    with WandbTracker().run(quickstart / "0", {"a": 1}, name="job"):
        pass
    assert len(read_run(quickstart / "0").records) == 4
