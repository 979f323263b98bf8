"""GATE, ATTN and COMM: they learn what needs both parents, repeat to the bit, and say what they cannot do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError
from krossfuse.core.parts import Part
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.methods import Attention, Comm, Gate, TrainedFusion
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
    other = kind(inputs=inputs, seed=4, **FAST)
    assert not torch.equal(next(other.parameters()), next(kind(inputs=inputs, seed=3, **FAST).parameters()))


def test_gate_is_a_convex_combination_of_the_projections() -> None:
    x = {"a": torch.randn(5, 4), "b": torch.randn(5, 3), "c": torch.randn(5, 2)}
    for roles in (("a", "b"), ("a", "b", "c")):
        dims = {role: x[role].shape[1] for role in roles}
        gate = Gate(inputs=InputSpec(image_experts=dims), dim=6)
        hidden = torch.stack([torch.tanh(p(x[r])) for p, r in zip(gate.project, roles, strict=True)])
        fused = gate.fuse({role: x[role] for role in roles})
        assert bool((fused <= hidden.amax(0) + 1e-6).all() and (fused >= hidden.amin(0) - 1e-6).all())


def test_comm_keeps_the_cross_modal_space(toy_bundle: FeatureBundle) -> None:
    method = fit_method(Comm(inputs=IMAGE, missing="zeros", epochs=1), toy_bundle, label_set="animal")
    assert method.out_dim == 24
    assert method.modalities == ("image", "text")
    fused = fuse_bundle(method, toy_bundle)
    image, text = Part("test", "image"), Part("test", "text")
    unit = {p: torch.nn.functional.normalize(toy_bundle[p]["cross_modal"], dim=1) for p in (image, text)}
    assert torch.allclose(fused[image] @ fused[text].T, unit[image] @ unit[text].T, atol=1e-6)


def test_held_out_samples_choose_the_epoch(toy_bundle: FeatureBundle) -> None:
    method = Gate(inputs=IMAGE, val_fraction=0.25, seed=1, **FAST)
    assert "best_epoch" not in method.describe()
    fit_method(method, toy_bundle, label_set="animal")
    assert 0 <= method.describe()["best_epoch"] < 10


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (partial(Gate, inputs=InputSpec(cross_modal=12)), ConfigError, "needs an expert"),
        (partial(Gate, inputs=InputSpec(12, {"a": 2}, {"b": 2})), ConfigError, "one side"),
        (partial(Gate, inputs=InputSpec(image_experts={"a": 2})), ConfigError, "two parents"),
        (partial(Gate, inputs=IMAGE, epochs=0), ConfigError, "epochs=0"),
        (partial(Gate, inputs=IMAGE, dropout=1.0), ConfigError, "dropout=1.0"),
        (partial(Gate, inputs=IMAGE, lr=-1.0), ConfigError, "lr=-1.0"),
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
