"""GATE, ATTN and COMM: they learn what needs both parents, repeat to the bit, and say what they cannot do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, StoreError
from krossfuse.core.parts import Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.io import load_fusion
from krossfuse.fusion.methods import Attention, Comm, Gate, TrainedFusion, training
from krossfuse.fusion.plain import fuse_bundle

IMAGE = InputSpec(cross_modal=12, image_experts={"dino": 16})
TEXT = InputSpec(cross_modal=12, text_experts={"minilm": 10})
FAST: dict[str, Any] = {"dim": 24, "epochs": 10, "batch_size": 40, "lr": 2e-2}


def nearest_mean(method: TrainedFusion, bundle: FeatureBundle, modality: str) -> float:
    """Accuracy of the nearest class mean in the fused space."""
    train, test = Part("train", modality), Part("test", modality)  # type: ignore[arg-type]
    fused = fuse_bundle(method, bundle, parts=[train, test])
    y, y_test = (bundle.info.labels("animal", p) for p in (train, test))
    means = torch.stack([fused[train][y == c].mean(0) for c in range(8)])
    return float((torch.cdist(fused[test], means).argmin(1) == y_test).float().mean())


@pytest.mark.parametrize("kind", [Gate, Attention, Comm])
@pytest.mark.parametrize(("inputs", "modality"), [(IMAGE, "image"), (TEXT, "text")])
def test_they_learn_and_repeat(
    kind: type[TrainedFusion], inputs: InputSpec, modality: str, toy_bundle: FeatureBundle
) -> None:
    before = torch.get_rng_state()
    first, second = (fit_method(kind(inputs=inputs, seed=3, **FAST), toy_bundle, label_set="animal") for _ in "12")
    assert torch.equal(before, torch.get_rng_state()), "the global generator must be left as it was"
    assert isinstance(first, TrainedFusion)
    a, b = first.state_dict(), second.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert nearest_mean(first, toy_bundle, modality) > 0.8  # either parent alone tells pairs, or members, only
    assert first.modalities == (modality,)
    assert not first.training
    other, same = (dict(kind(inputs=inputs, seed=seed, **FAST).named_parameters()) for seed in (4, 3))
    assert any(not torch.equal(other[name], same[name]) for name in other)


def test_gate_is_a_convex_combination_of_the_projections() -> None:
    x = {"a": torch.randn(5, 4), "b": torch.randn(5, 3), "c": torch.randn(5, 2)}
    for roles in (("a", "b"), ("a", "b", "c")):
        dims = {role: x[role].shape[1] for role in roles}
        gate = Gate(inputs=InputSpec(image_experts=dims), dim=6)
        units = {role: torch.nn.functional.normalize(x[role], dim=1) for role in roles}
        hidden = torch.stack([p(units[r]) for p, r in zip(gate.project, roles, strict=True)])
        fused = gate.fuse(units)
        assert torch.allclose(fused.norm(dim=1), torch.ones(5))
        # Up to the length: some positive multiple lies between the least and the greatest in every coordinate.
        low, high = hidden.amin(0) / fused, hidden.amax(0) / fused
        low, high = torch.minimum(low, high).amax(1), torch.maximum(low, high).amin(1)
        assert bool((low <= high + 1e-5).all() and (high > 0).all())


def parents(bundle: FeatureBundle) -> dict[str, torch.Tensor]:
    """The training images' features, unit, centred, and unit again, in float64."""
    unit = torch.nn.functional.normalize
    x = {role: unit(v.double(), dim=1) for role, v in bundle[Part("train", "image")].items()}
    return {role: unit(v - v.mean(0), dim=1) for role, v in x.items()}


def started(kind: type[TrainedFusion], bundle: FeatureBundle, dim: int) -> torch.Tensor:
    """The embeddings of the training images where training starts."""
    method = kind(inputs=IMAGE, dim=dim, epochs=1, lr=1e-30, weight_decay=0.0, val_fraction=0.0)
    fit_method(method, bundle, label_set="animal")
    return method.encode("image", bundle[Part("train", "image")]).detach().double()


@pytest.mark.parametrize("kind", [Gate, Attention])
@pytest.mark.parametrize("dim", [4, 12, 28])
def test_gate_and_attn_start_at_the_principal_components_of_the_concatenation(
    kind: type[TrainedFusion], dim: int, toy_bundle: FeatureBundle
) -> None:
    stacked = torch.cat(list(parents(toy_bundle).values()), 1)
    right = torch.linalg.svd(stacked, full_matrices=False)[2][:dim]
    expected = torch.nn.functional.normalize(stacked @ right.T, dim=1)
    fused = started(kind, toy_bundle, dim)
    assert torch.allclose(fused @ fused.T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize("dim", [17, 28, 40])
def test_comm_starts_at_the_concatenation(dim: int, toy_bundle: FeatureBundle) -> None:
    expert = parents(toy_bundle)["dino"]
    right = torch.linalg.svd(expert, full_matrices=False)[2][: dim - 12]
    kept = torch.nn.functional.normalize(expert @ right.T, dim=1)
    psi = torch.nn.functional.normalize(toy_bundle[Part("train", "image")]["cross_modal"].double(), dim=1)
    fused = started(Comm, toy_bundle, dim)
    # Coordinates beyond the rank start near zero, so that they can learn.
    assert torch.allclose(fused @ fused.T, psi @ psi.T + kept @ kept.T, atol=1e-5 if dim <= 28 else 1e-3)


@pytest.mark.parametrize("kind", [Gate, Attention, Comm])
def test_the_start_leaves_room_to_learn(kind: type[TrainedFusion], toy_bundle: FeatureBundle) -> None:
    """Every layer moves, those that start at zero and coordinates beyond the rank (28 of 40) too."""
    method = kind(inputs=IMAGE, dim=40, epochs=3, batch_size=40, dropout=0.0, weight_decay=0.0)
    fit_method(method, toy_bundle, label_set="animal")
    beginning = {name: x.clone() for name, x in started_state(kind, toy_bundle).items()}
    # A bias of keys shifts all of a query's scores alike, which the softmax does not see.
    moved = {n: bool((p != beginning[n]).any(-1).all()) for n, p in method.named_parameters() if "in_proj" not in n}
    assert all(moved.values()), moved


def started_state(kind: type[TrainedFusion], bundle: FeatureBundle) -> dict[str, torch.Tensor]:
    method = kind(inputs=IMAGE, dim=40, epochs=1, batch_size=40, lr=1e-30, weight_decay=0.0)
    return fit_method(method, bundle, label_set="animal").state_dict()


@pytest.mark.parametrize("kind", [Gate, Attention, Comm])
def test_half_precision_features_train_as_well(kind: type[TrainedFusion], toy_bundle: FeatureBundle) -> None:
    halves = {part: {r: x.half() for r, x in roles.items()} for part, roles in toy_bundle.features.items()}
    bundle = FeatureBundle(toy_bundle.info, "toy", halves)
    method = fit_method(kind(inputs=IMAGE, seed=3, **FAST), bundle, label_set="animal")
    assert isinstance(method, TrainedFusion)
    assert nearest_mean(method, bundle, "image") > 0.8


def test_files_from_before_the_start_at_components_are_refused_with_the_reason() -> None:
    with pytest.raises(StoreError, match=r"(?s)gate\.safetensors.*trained before gate centred.*train it again"):
        load_fusion(Path(__file__).parent / "saved" / "gate.safetensors")


def test_comm_keeps_the_cross_modal_space(toy_bundle: FeatureBundle) -> None:
    method = fit_method(Comm(inputs=IMAGE, missing="zeros", epochs=1), toy_bundle, label_set="animal")
    assert method.out_dim == 24
    assert method.modalities == ("image", "text")
    fused = fuse_bundle(method, toy_bundle)
    image, text = Part("test", "image"), Part("test", "text")
    unit = {p: torch.nn.functional.normalize(toy_bundle[p]["cross_modal"], dim=1) for p in (image, text)}
    assert torch.allclose(fused[image] @ fused[text].T, unit[image] @ unit[text].T, atol=1e-6)


def test_held_out_samples_choose_the_epoch(
    toy_bundle: FeatureBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Gate(inputs=IMAGE, val_fraction=0.25, seed=1, **FAST)
    assert "best_epoch" not in method.describe()
    method.trainers = TrainerFactory(
        {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
        logger=lambda: CSVLogger(tmp_path, name="run", version=""),
    )
    fit_method(method, toy_bundle, label_set="animal")
    curve = pd.read_csv(tmp_path / "run" / "metrics.csv")["gate/val_accuracy"].dropna()
    assert len(curve) == 10
    best = method.describe()["best_epoch"]
    assert curve.iloc[best] == curve.max()
    # Then all samples are trained on, up to that epoch of the same schedule.
    again = Gate(inputs=IMAGE, val_fraction=0.0, seed=1, **FAST)
    run = training._run
    monkeypatch.setattr(training, "_run", lambda *args, until, **options: run(*args, until=best + 1, **options))
    fit_method(again, toy_bundle, label_set="animal")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), method.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (partial(Gate, inputs=InputSpec(cross_modal=12)), ConfigError, "needs an expert"),
        (partial(Gate, inputs=InputSpec(12, {"a": 2}, {"b": 2})), ConfigError, "one side"),
        (partial(Gate, inputs=InputSpec(image_experts={"a": 2})), ConfigError, "two parents"),
        (partial(Gate, inputs=IMAGE, epochs=0), ConfigError, "epochs=0"),
        (partial(Gate, inputs=IMAGE, dropout=1.0), ConfigError, "dropout=1.0"),
        (partial(Gate, inputs=IMAGE, lr=-1.0), ConfigError, "lr=-1.0"),
        (partial(Gate, inputs=IMAGE, logit_scale=0.0), ConfigError, "logit_scale=0.0"),
        (partial(Attention, inputs=IMAGE, dim=10, heads=4), ConfigError, "divisible"),
        (partial(Comm, inputs=IMAGE, dim=12), DimensionError, "leaves nothing"),
        (partial(Comm, inputs=InputSpec(image_experts={"a": 2, "b": 2})), ConfigError, "cross-modal encoder"),
        (partial(Comm, inputs=IMAGE, missing="nothing"), ConfigError, "missing='nothing'"),
    ],
)
def test_bad_configurations(make: partial[TrainedFusion], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_they_cannot_do(toy_bundle: FeatureBundle) -> None:
    image = toy_bundle[Part("train", "image")]
    gate = Gate(inputs=IMAGE, **FAST)
    with pytest.raises(NotFittedError, match="not trained"):
        gate.encode("image", image)
    with pytest.raises(ConfigError, match="modality='text'"):
        gate.encode("text", toy_bundle[Part("train", "text")])
    with pytest.raises(DataError, match="needs labels"):
        gate.fit(image=image)
    with pytest.raises(DataError, match="two classes"):
        gate.fit(image=image, labels=torch.zeros(160, dtype=torch.int64))
    with pytest.raises(DataError, match="one label a sample"):
        gate.fit(image=image, labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="val_fraction"):
        Gate(inputs=IMAGE, val_fraction=0.001).fit(image=image, labels=torch.arange(160) % 8)
