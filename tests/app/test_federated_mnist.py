"""The kind of job that plays the published protocol on MNIST."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from krossfuse.__main__ import main
from krossfuse.app import CONFIG_DIR, job_config
from krossfuse.app.build import make_kind
from krossfuse.federated.mnist import VARIANTS, Study, correct_of
from krossfuse.report.boards import boards
from krossfuse.report.pictures.federated import trainings
from krossfuse.results.aggregate import aggregate
from krossfuse.results.runs import read_runs

N = 10_000


def played(folder: Path, variant: str, seed: int, *, rounds: int = 2, model: str = "mlp") -> None:
    """Write the file of a run that was played: 60 % right in the first round, 70 % (and a seed's share) in the last."""
    right = np.arange(N) < 7000 + 10 * seed
    last = float(right.mean())
    history = [
        {"round": 1, "bits": 5e5, "total_bits": 5e5, "accuracy": 0.6, "validation": 0.61, "epsilon": 9.0},
        {"round": 2, "bits": 5e5, "total_bits": 1e6, "accuracy": last, "validation": 0.71, "epsilon": 14.0},
    ]  # fmt: skip
    if variant.startswith(("fedavg", "sdq", "released")):
        for h in history:
            del h["epsilon"]
    record: dict[str, Any] = {"model": model, "variant": variant, "seed": seed, "rounds": rounds, "d": 25_818}
    record |= {"total_bits": 1_000_000, "bits_per_coordinate": 0.6, "cpu_seconds": 3.0, "history": history}
    record |= {"statement": f"what is claimed of {variant}", "correct": base64.b64encode(np.packbits(right)).decode()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{model}-{variant}-{seed}.json").write_text(json.dumps(record))


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["krossfuse", "-m", "experiment=cepam_mnist", "logger=csv", *arguments])
    GlobalHydra.instance().clear()
    main()
    return max((tmp_path / "runs" / "cepam_mnist").glob("20*"), key=lambda folder: folder.stat().st_mtime)


def test_a_study_that_was_played_is_recorded_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed anew: the records are the files', a row a model, a column a variant."""
    for raw in (f"{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")):
        path = tmp_path / "MNIST" / "raw" / raw
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (2, 28, 28) if "images" in raw else (2,)
        magic = 2051 if "images" in raw else 2049
        path.write_bytes(np.array([magic, *shape], ">i4").tobytes() + bytes(int(np.prod(shape))))
    for variant in ("fedavg", "cepam"):
        for seed in (3, 4):
            played(tmp_path / "there", variant, seed)
    folder = run(
        tmp_path, monkeypatch, f"data.root={tmp_path}", "job.played=there", "job.models=[mlp]", "seed=3", "job.seeds=2",
        "job.variants=[fedavg,cepam]", "job.rounds=2", "job.processes=1",
    )  # fmt: skip
    runs = read_runs(folder)
    assert {one.state for one in runs} == {"finished"}
    records = [record for one in runs for record in one.records]
    assert {(r.data, r.fusion, r.dim, r.probe) for r in records} == {("mnist", "mlp", 25_818, "federated_training")}
    assert {r.seed for r in records} == {3, 4}
    cepam = [r for r in records if r.protocol["federation"] == "cepam" and r.seed == 4]
    assert {r.metric: r.value for r in cepam} == {
        "accuracy": 0.704, "total_bits": 1e6, "bits_per_round": 5e5, "bits_per_coordinate": 0.6, "epsilon": 14.0
    }  # fmt: skip
    assert cepam[0].protocol["statement"] == "what is claimed of cepam"
    assert "epsilon" not in {r.metric for r in records if r.protocol["federation"] == "fedavg"}
    (board,) = boards(aggregate(runs)[0])
    (row,) = board.rows
    accuracy = [column for column in board.columns if column.metric == "accuracy"]
    assert [column.measure["federation"] for column in accuracy] == ["fedavg", "cepam"]
    assert row.label == "MLP 784-32-16-10"
    cell = row.cells[accuracy[1].key]
    assert (cell["mean"], cell["seeds"], cell["interval"]) == (pytest.approx(0.7035), [3, 4], "seeds+items")
    assert {one.name for one in trainings(board)[0]} == {"fedavg", "cepam"}
    curves = next(folder.rglob("tracker/lightning/metrics.csv")).read_text()
    for variant in ("fedavg", "cepam"):
        for seed in (3, 4):
            assert f"federated_training/mlp/{variant}/seed{seed}/accuracy" in curves
    pictures = {path.stem for path in (folder / "report").glob("*.png")}
    assert {"accuracy_against_round", "accuracy_against_bits", "privacy_bits_accuracy"} <= pictures


@pytest.mark.slow
def test_two_rounds_are_played_and_not_played_again(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        f"data.root={shared / 'data' / 'mnist'}", "job.models=[mlp]", "job.variants=[gaussian,cepam]", "job.seeds=1",
        "job.rounds=2", "job.processes=1",
    ]  # fmt: skip
    first = run(tmp_path, monkeypatch, *arguments)
    files = sorted((tmp_path / "runs" / "cepam_mnist" / "played").iterdir())
    assert [path.name for path in files] == ["mlp-cepam-0.json", "mlp-gaussian-0.json"]
    stamps = [path.stat().st_mtime_ns for path in files]
    values = {r.protocol["federation"]: r for one in read_runs(first) for r in one.records if r.metric == "accuracy"}
    assert values["cepam"].value == pytest.approx(values["gaussian"].value, abs=0.2)
    assert values["cepam"].protocol["epsilon"] == pytest.approx(values["gaussian"].protocol["epsilon"])
    assert values["cepam"].protocol["total_bits"] < values["gaussian"].protocol["total_bits"] / 50
    again = run(tmp_path, monkeypatch, *arguments, "name=cepam_mnist")
    assert [path.stat().st_mtime_ns for path in files] == stamps
    assert {r.value for one in read_runs(again) for r in one.records} == {
        r.value for one in read_runs(first) for r in one.records
    }


def test_every_option_has_its_place() -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = job_config(
            compose(
                "config", overrides=["experiment=cepam_mnist", "data.root=.", "seed=7", "job.seeds=2", "job.rounds=3"]
            )
        )
    built = make_kind(cfg).build(cfg, {})
    assert built.study == Study(["mlp", "cnn"], list(VARIANTS), (7, 8), 3)
    assert len(built.study.runs()) == 2 * 11 * 2


def test_runs_without_scores_of_their_items_are_read() -> None:
    assert correct_of({}, 4) is None
    packed = base64.b64encode(np.packbits([1, 0, 1, 1]).tobytes()).decode()
    scores = correct_of({"correct": packed}, 4)
    assert scores is not None
    assert scores.tolist() == [1, 0, 1, 1]
