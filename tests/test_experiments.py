"""Every experiment file at toy size, and the road end to end on the bundled data and encoders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from wandb_files import wandb_records

from krossfuse.__main__ import main
from krossfuse.core.parts import Part
from krossfuse.data.openmoji import OpenMoji
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.features.stores import LocalStore
from krossfuse.model.encoder import FusedEncoder
from krossfuse.probes.subsets import FewShotSubset
from krossfuse.results.runs import read_runs

CONF = Path(__file__).resolve().parents[1] / "conf"
EXPERIMENTS = sorted(
    file.stem for file in (CONF / "experiment").glob("*.yaml") if not file.stem.startswith("paper_")
)  # the paper's studies: test_studies.py
FEDERATION = [f"probe.federated_probe.{option}" for option in ("label_sets=[class]", "clients=8", "rounds=2")]
TOY = {
    # What makes an experiment small: one seed, one small dimension, one value where it sweeps many.
    "quickstart": ["fusion.dim=48", "seed=0"],
    "sketches": ["fusion.dim=48", "seed=0"],
    "constant": ["fusion.dim=48", "seed=0", "fusion.C=0.1,1"],
    "few_shot": ["fusion.dim=48", "probe.few_shot.shots=[1,2]", "probe.few_shot.n_seeds=2"],
    "clustering": ["fusion.dim=48", "probe.clustering.n_seeds=2"],
    "text": ["fusion.dim=48", "seed=0"],
    "alignment": ["fusion.dim=48", "seed=0"],
    "baselines": ["fusion.dim=24", "seed=0"],
    "propagation": ["fusion.dim=48"],
    "defaults": ["fusion.dim=24", "seed=0", "probe.few_shot.shots=[1]", "probe.clustering.n_seeds=2"],
    "cepam": ["fusion.dim=48", "seed=0,1", *FEDERATION],
    "cepam_clients": ["fusion.dim=48", "seed=0", *FEDERATION],
}
SLOW = ("baselines", "cepam", "cepam_clients", "defaults")
Run = Callable[..., Path]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, in an empty folder; returns the newest sweep or run folder."""

    def run(*arguments: str) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["krossfuse", *arguments])
        GlobalHydra.instance().clear()
        main()
        return max((tmp_path / "runs").glob("*/*"), key=lambda folder: folder.stat().st_mtime)

    return run


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A small set of embeddings with both experts, two label sets' worth of structure, captions and class texts."""
    rng = np.random.default_rng(0)
    classes, clip, expert = 4, rng.normal(size=(4, 16)), rng.normal(size=(4, 20))
    arrays: dict[str, np.ndarray] = {
        "classes": np.array(["cat", "dog", "owl", "bee"]),
        "prompts/text/clip": (clip + 0.3 * rng.normal(size=clip.shape)).astype(np.float32),
        "prompts/text/minilm": (expert + 0.3 * rng.normal(size=expert.shape)).astype(np.float32),
    }
    for split, n in {"train": 64, "val": 32, "test": 40}.items():
        labels = np.arange(n) % classes
        arrays[f"{split}/labels"] = labels
        for key, means in (
            ("image/clip", clip),
            ("text/clip", clip),
            ("image/dinov2", expert),
            ("text/minilm", expert),
        ):
            noise = 1.5 * rng.normal(size=(n, means.shape[1]))
            arrays[f"{split}/{key}"] = (means[labels] + noise).astype(np.float32)
    path = tmp_path / "features.npz"
    np.savez(path, **arrays)
    return path


def finished(folder: Path) -> int:
    runs = read_runs(folder)
    assert {run.state for run in runs} == {"finished"}, [(run.name, run.error) for run in runs]
    assert all(run.records for run in runs)
    report = folder / "report"
    assert (report / "results.csv").is_file()
    assert (report / "report.html").is_file()
    return len(runs)


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in EXPERIMENTS
        if name not in ("senteval", "cepam_mnist")
    ],
)
def test_every_experiment_runs(experiment: str, command: Run, features: Path) -> None:
    sweep = command(
        "-m",
        f"experiment={experiment}",
        "data=embeddings",
        "pair=none",
        f"data.path={features}",
        "data.text_experts=[]" if experiment != "text" else "data.image_experts=[]",
        "logger=none",
        *(
            ["probe.linear_probe.grid=[1,100]"]
            if "linear_probe" in (CONF / f"experiment/{experiment}.yaml").read_text()
            else []
        ),
        *TOY[experiment],
    )
    assert finished(sweep) >= 3


def test_few_shot_subsets_are_written_down(command: Run, features: Path) -> None:
    arguments = ["data=embeddings", "pair=none", f"data.path={features}", "data.text_experts=[]", "fusion=cross_modal"]
    folder = command(*arguments, "probe=[few_shot]", *TOY["few_shot"][1:], "logger=none")
    drawn = json.loads((folder / "few_shot.drawn.json").read_text())
    written = {
        FewShotSubset(s["shots"], s["seed"], torch.tensor(s["train"]), torch.tensor(s["val"]), s["val_split"]).digest
        for s in drawn["class"]
    }
    (run,) = read_runs(folder)
    assert {record.protocol["subset_digest"] for record in run.records} == written
    assert len(written) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probe.linear_probe.split=tst", "split='tst' is not one of"),
        ("probe.linear_probe.label_sets=[clas]", "probe.linear_probe: label_sets='clas' is not one of"),
        ("figures.label_set=clas", "did you mean 'class'"),
        ("fuse.label_set=clas", "did you mean 'class'"),
    ],
)
def test_names_that_only_the_dataset_knows(
    override: str,
    message: str,
    command: Run,
    features: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["data=embeddings", "pair=none", f"data.path={features}", "data.text_experts=[]", "logger=none"]
    with pytest.raises(SystemExit):
        command(*arguments, "fusion.dim=48", override)
    assert message in capsys.readouterr().err


def test_a_text_dataset_runs(command: Run, tmp_path: Path) -> None:
    rows = [f"{i % 2} {'a fine and moving film' if i % 2 else 'a dull and empty story'} number {i}" for i in range(60)]
    (tmp_path / "rt-polarity.all").write_text("\n".join(rows) + "\n", encoding="latin-1")
    sweep = command(
        "-m", "experiment=senteval", f"data.root={tmp_path}", "data.task=MR", "fusion.dim=300", "seed=0", "logger=none",
        "extraction.progress=false", "probe.text_probe.n_folds=2",
    )  # fmt: skip
    assert finished(sweep) == 5


@pytest.mark.slow
def test_the_quickstart_on_real_images_and_texts(command: Run) -> None:
    arguments = [
        "-m",
        "experiment=quickstart",
        "data.limit=27",
        "seed=0",
        "fusion.dim=300",
        "extraction.progress=false",
    ]
    first = command(*arguments)
    assert finished(first) == 5
    exact = [
        r
        for run in read_runs(first)
        for r in run.records
        if r.fusion_config.get("alignment") == "exact" and r.probe == "zero_shot"
    ]
    # Exact alignment decides as the cross-modal encoder does, item by item; another seed changes no decision either.
    assert {r.value for r in exact if r.metric == "agreement"} == {1.0}
    for name in ("group", "subgroup"):
        assert {r.value for r in exact if (r.metric, r.label_set) == ("accuracy", name)} == {zero_shot(first, name)}
    lines = [json.loads(line) for line in (first / "0" / "results.jsonl").read_text().splitlines()]
    assert all(line["versions"]["torch"] and line["config_digest"] and line["protocol"] for line in lines)
    second = command(*arguments)
    same = [[(r.figure_id, r.value) for r in run.records] for run in read_runs(first)]
    assert [[(r.figure_id, r.value) for r in run.records] for run in read_runs(second)] == same


def test_folds_test_every_item_and_change_no_feature(command: Run, features: Path) -> None:
    arguments = ["data=embeddings", "pair=none", f"data.path={features}", "data.text_experts=[]", "logger=none"]
    arguments += ["fusion=rp_krossfuse", "fusion.dim=48", "probe=[linear_probe,knn,zero_shot,sgd_probe,agreement]"]
    arguments += ["probe.sgd_probe.epochs=2", "probe.sgd_probe.modalities=[image]"]
    plain = command(*arguments, "name=plain")
    folder = command(*arguments, "data.folds=4", "save_fusion=true", "name=folds")
    assert {path.name for path in folder.glob("*.safetensors")} == {
        f"fusion-fold-{i}.safetensors" for i in (1, 2, 3, 4)
    }
    (run,) = read_runs(folder)
    accuracies = [r for r in run.records if r.metric == "accuracy"]
    assert len(accuracies) >= 5
    for record in accuracies:
        assert (record.protocol["folds"], record.protocol["n_test"]) == (4, 64 + 32 + 40)
        assert len(run.per_item[record.figure_id]) == 136
        assert record.value == pytest.approx(float(run.per_item[record.figure_id].mean()))
    (before,) = read_runs(plain)
    assert {r.config_digest for r in run.records}.isdisjoint({r.config_digest for r in before.records})
    assert {r.method_digest for r in run.records}.isdisjoint({r.method_digest for r in before.records})
    # The fused embedding of a fold's turn may also be streamed into a probe that trains on batches.
    streamed = command(*arguments, "data.folds=4", "probe=[sgd_probe]", "fuse.stream=true", "name=streamed")
    assert measured(streamed, "sgd_probe") == pytest.approx(measured(folder, "sgd_probe"), abs=1e-9)


def test_a_fold_is_in_no_fit_that_it_is_tested_under(command: Run, features: Path, tmp_path: Path) -> None:
    """By hand: what a fit of a fusion learns is its training rows' alone, so other test items change nothing."""
    arguments = ["data=embeddings", "pair=none", "data.text_experts=[]", "logger=none", "data.folds=2"]
    arguments += ["fusion=pca_concatenation", "fusion.dim=8", "probe=[knn]", "save_fusion=true"]
    first = command(*arguments, f"data.path={features}", "name=first")
    arrays = dict(np.load(features))
    fold_of = EmbeddingsFile(path=str(features), text_experts=[], folds=2).info.fold_of
    for split, fold in fold_of.items():
        arrays[f"{split}/image/clip"][fold.numpy() == 0] *= -3
    other = tmp_path / "other.npz"
    np.savez(other, **arrays)
    second = command(*arguments, f"data.path={other}", "name=second")

    def unchanged(fold: int) -> bool:
        a, b = (load_file(folder / f"fusion-fold-{fold}.safetensors") for folder in (first, second))
        assert a.keys() == b.keys()
        assert any(x.is_floating_point() for x in a.values())
        return all(torch.equal(x, b[name]) for name, x in a.items())

    assert unchanged(1), "fold 1 was changed, and is not in its own fit"
    assert not unchanged(2), "it is in the fit of fold 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.limit=27", "data.folds=2", "store=none"], "data.folds=2 needs stored features"),
        (["data.folds=1"], "data.folds=1 must be a whole number, 2 or more, or null"),
        (["data.limit=27", "data.folds=2", "fusion=spectral_krossfuse", "report.baselines=cross_modal"],
         "report.baselines='cross_modal' must be a list of rows' names"),
    ],
)  # fmt: skip
def test_folds_that_cannot_be(
    arguments: list[str], message: str, command: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(*arguments, "logger=none", "extraction.progress=false")
    assert message in capsys.readouterr().err


def zero_shot(folder: Path, label_set: str) -> float:
    return next(
        r.value
        for run in read_runs(folder)
        for r in run.records
        if (r.fusion, r.probe, r.metric, r.label_set) == ("cross_modal", "zero_shot", "accuracy", label_set)
    )


def measured(folder: Path, probe: str) -> dict[tuple[str, str, str], float]:
    return {
        (r.metric, r.modality, r.label_set): r.value
        for run in read_runs(folder)
        for r in run.records
        if r.probe == probe and "agreement" not in r.metric
    }


@pytest.mark.slow
def test_raw_images_to_measurements_without_a_store(command: Run) -> None:
    """The whole road streamed: nothing stored, and for the SGD probe nothing fused is held either."""
    arguments = ["data.limit=18", "fusion.dim=96", "extraction.progress=false", "logger=none"]
    probes = ["probe=[zero_shot,sgd_probe]", "probe.sgd_probe.epochs=2", "probe.sgd_probe.modalities=[image]"]
    stored = command(*arguments, *probes, "name=stored")
    streamed = command(*arguments, *probes, "store=none", "name=streamed")
    assert measured(streamed, "zero_shot").keys() == measured(stored, "zero_shot").keys()
    for probe in ("zero_shot", "sgd_probe"):
        assert measured(streamed, probe) == pytest.approx(measured(stored, probe), abs=1e-9)
    never_held = command(
        *arguments, *probes[1:], "probe=[sgd_probe]", "store=none", "fuse.stream=true", "name=never_held"
    )
    assert measured(never_held, "sgd_probe") == pytest.approx(measured(stored, "sgd_probe"), abs=1e-9)


def test_a_run_leaves_what_its_tracker_keeps(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "store")
    monkeypatch.setenv("KROSSFUSE_STORE", store.where)
    toy = ("data=openmoji", "data.limit=10", "fusion.dim=280", "fusion.alignment=exact", "probe=[zero_shot]")
    folder = command("logger=wandb", "logger.keep=[fusion,embeddings,model]", *toy)

    logged = {r.artifact.type: r.artifact for r in wandb_records(folder) if r.HasField("artifact")}
    features = {kind: json.loads(logged[kind].metadata)["features"] for kind in ("fusion", "embeddings", "model")}
    assert features["fusion"] == features["embeddings"] == features["model"]
    assert {key for roles in features["fusion"].values() for key in roles.values()} == {e.name for e in store.entries()}
    assert {content.path for content in logged["model"].manifest.contents} >= {"config.json", "fusion.safetensors"}

    data, part = OpenMoji(limit=10), Part("test", "text")
    kept = EmbeddingsFile(path=folder / "artifacts" / "embeddings.safetensors").bundle()[part]["cross_modal"]
    model = FusedEncoder.from_pretrained(folder / "artifacts" / "model")
    assert torch.allclose(model.encode_text(list(data.items(part))), kept, atol=1e-6)
    tensors = load_file(folder / "artifacts" / "fusion.safetensors")
    assert tensors.keys() == model.fusion.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in model.fusion.state_dict().items())
