"""MLflow and TensorBoard, read back by their own readers; what they need is an extra."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from krossfuse.core.errors import ConfigError
from krossfuse.results.records import Record
from krossfuse.results.trackers import Artifact, MlflowTracker, TensorBoardTracker, Tracker, metric_key

RECORD = Record("openmoji", "pair", "rp_krossfuse", 64, "few_shot", "accuracy", "image", 3, 0.625, label_set="group")
FOUR = dataclasses.replace(RECORD, value=0.75, protocol={"shots": 4, "form": "I+T", "split": "test"})
BOARD = pd.DataFrame({"method": ["x|y", "z"], "value": [0.1, 0.2]})


def fill(tracker: Tracker, folder: Path, **about: Any) -> None:
    """Log one of everything."""
    Image.new("RGB", (8, 6), "red").save(folder / "heat.png")
    config = {"seed": 3, "fusion": {"dim": 64}, "probe": ["knn"], "long": "x" * 10_000}
    with tracker.run(folder, config, name="job 0", group="sweep", job_type="run", tags=["a"], **about) as run:
        run.log_records([RECORD])
        run.log_records([FOUR])
        run.log_table("board", BOARD)
        run.log_pictures([folder / "heat.png"])
        assert getattr(run, "failed", None) is None


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store in a SQLite file; its tables take seconds to make, so the tests share it."""
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/nested/mlflow.db"


def test_mlflow_holds_config_metrics_tables_and_pictures(tmp_path: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    fill(MlflowTracker(tracking_uri=uri, experiment="exp"), tmp_path)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
    assert (run.info.run_name, run.info.status) == ("job 0", "FINISHED")
    assert (run.data.tags["group"], run.data.tags["job_type"], run.data.tags["tag.a"]) == ("sweep", "run", "true")
    assert (run.data.params["seed"], run.data.params["fusion.dim"]) == ("3", "64")
    assert run.data.metrics == {
        "few_shot/accuracy/image/group": 0.625,
        "few_shot/accuracy/image/group/shots:4/form:I_T": 0.75,
        "best/few_shot/accuracy/image/group": 0.75,
    }

    def artifact(name: str) -> Any:
        return json.loads(Path(client.download_artifacts(run.info.run_id, name)).read_text())

    assert len(artifact("config.json")["long"]) == 10_000
    assert artifact("board.json")["data"] == [["x|y", 0.1], ["z", 0.2]]
    records = artifact("records.json")
    rows = [dict(zip(records["columns"], row, strict=True)) for row in records["data"]]
    assert [(row["measurement"], row["value"]) for row in rows] == [
        (metric_key(RECORD), 0.625),
        (metric_key(FOUR), 0.75),
    ]
    assert Image.open(client.download_artifacts(run.info.run_id, "heat.png")).size == (8, 6)
    assert (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts").is_dir()


def test_mlflow_keeps_files_and_folders_with_what_they_were_made_from(tmp_path: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    (tmp_path / "model").mkdir()
    for path in (tmp_path / "fusion.safetensors", tmp_path / "model" / "config.json"):
        path.write_text(path.name)
    features = {"test/image": {"cross_modal": "0123abcd"}}
    with MlflowTracker(tracking_uri=uri, experiment="kept", keep=["fusion"]).run(tmp_path / "run", {}, name="x") as run:
        assert run.keep == ("fusion",)
        run.log_artifact(Artifact("a", "fusion", tmp_path / "fusion.safetensors", {"dim": 3}, features))
        run.log_artifact(Artifact("b", "model", tmp_path / "model"))
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("kept").experiment_id])
    read = {
        name: Path(client.download_artifacts(found.info.run_id, name)).read_text()
        for name in ("fusion/fusion.safetensors", "model/config.json", "fusion/a.json")
    }
    assert (read["fusion/fusion.safetensors"], read["model/config.json"]) == ("fusion.safetensors", "config.json")
    assert json.loads(read["fusion/a.json"]) == {"name": "a", "dim": 3, "features": features}


def test_mlflow_goes_on_with_the_run_of_its_folder_and_says_how_it_ended(tmp_path: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    tracker = MlflowTracker(tracking_uri=uri, experiment="resumed")
    with pytest.raises(RuntimeError, match="boom"), tracker.run(tmp_path, {"seed": 3}, name="job", group="s"):
        raise RuntimeError("boom")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("resumed").experiment_id
    (first,) = client.search_runs([experiment])
    assert first.info.status == "FAILED"
    with tracker.run(tmp_path, {"seed": 3}, name="job", group="s") as run:
        run.log_records([RECORD])
    (second,) = client.search_runs([experiment])
    assert (second.info.run_id, second.info.status) == (first.info.run_id, "FINISHED")
    assert second.data.metrics[metric_key(RECORD)] == 0.625


def test_lightning_logs_into_the_same_mlflow_run(tmp_path: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    with MlflowTracker(tracking_uri=uri, experiment="training").run(tmp_path, {}, name="job") as run:
        logger = run.lightning_logger()
        assert logger
        logger.log_metrics({"loss": 0.5}, step=7)
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    assert [(m.value, m.step) for m in client.get_metric_history(found.info.run_id, "loss")] == [(0.5, 7)]


def test_mlflow_says_that_its_store_cannot_be_used(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "file.db").write_text("no database at all, " * 100)
    with (
        pytest.raises(ConfigError, match="logger.tracking_uri"),
        MlflowTracker(tracking_uri=f"sqlite:///{tmp_path}/file.db").run(tmp_path, {}, name="x"),
    ):
        pass
    with pytest.raises(ConfigError, match="tracking_uri=''"):
        MlflowTracker(tracking_uri="")


def test_tensorboard_holds_measurements_texts_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(TensorBoardTracker(), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
    assert scalars == {
        metric_key(RECORD): 0.625,
        metric_key(FOUR): 0.75,
        "best/few_shot/accuracy/image/group": 0.75,
        "exit_code": 0.0,
    }
    assert events.Tags()["images"] == ["heat"]

    def text(name: str) -> str:
        return str(events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode())

    assert "group: sweep" in text("run")
    assert '"dim": 64' in text("config")
    assert r"| x\|y | 0.1 |" in text("table/board")
    assert metric_key(FOUR) in text("table/records")


def test_tensorboard_takes_lightnings_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardTracker().run(tmp_path, {}, name="job") as run:
        logger = run.lightning_logger()
        assert logger
        logger.log_metrics({"loss": 0.5}, step=7)
        logger.save()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "lightning"))
    events.Reload()
    assert [(e.value, e.step) for e in events.Scalars("loss")] == [(0.5, 7)]


@pytest.mark.parametrize(
    ("name", "make"),
    [("mlflow", lambda: MlflowTracker(tracking_uri="sqlite:///x.db")), ("tensorboard", TensorBoardTracker)],
)
def test_a_tracker_whose_package_is_missing_names_the_extra(
    name: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"pip install 'krossfuse\[{name}\]' \(logger=csv needs nothing more\)"):
        make()


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_the_logger_config_builds_its_tracker(name: str, repository: Path) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    pytest.importorskip(name)
    assert isinstance(instantiate(OmegaConf.load(repository / "conf" / "logger" / f"{name}.yaml")), Tracker)
