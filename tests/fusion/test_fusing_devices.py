"""Fusing on another device: nothing stays behind on the CPU, values are looked at once a batch, bad rows are named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pretend_device import NAME, PretendDevice

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import DataError, KrossFuseError
from krossfuse.core.parts import Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.fusion import rows
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.kernels import GaussianKernel
from krossfuse.fusion.methods import (
    CCA,
    Attention,
    AverageKernel,
    Comm,
    Gate,
    PCAConcatenation,
    PostProcess,
    RFFConcatenation,
    RPKrossFuse,
    TrainedFusion,
)
from krossfuse.fusion.named import SKETCHES

INPUTS = InputSpec(cross_modal=12, image_experts={"dino": 16})
METHODS: dict[str, Callable[..., FusionMethod]] = {
    **{name: partial(RPKrossFuse, dim=40, sketch=cls) for name, cls in SKETCHES.items()},
    "exact": partial(RPKrossFuse, dim=40, alignment="exact"),
    "gaussian": partial(RPKrossFuse, dim=30, kernel=partial(GaussianKernel, features=32)),
    "post-processed": partial(PostProcess, method=partial(RPKrossFuse, dim=40), pca_dim=5, normalise=True),
    "average": partial(AverageKernel, missing="zeros"),
    "pca": partial(PCAConcatenation, dim=6),
    "cca": partial(CCA, dim=6),
    "rff": partial(RFFConcatenation, dim=20),
    "attention": partial(Attention, dim=16, epochs=1),
}


def fitted(name: str, bundle: FeatureBundle) -> FusionMethod:
    try:
        return fit_method(METHODS[name](inputs=INPUTS), bundle, label_set="animal")
    except KrossFuseError as error:
        pytest.skip(f"not for these features: {error}")


@pytest.mark.parametrize("device", [NAME, pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_moves_whole(name: str, device: str, toy_bundle: FeatureBundle) -> None:
    method = fitted(name, toy_bundle)
    for modality in method.modalities:
        x = toy_bundle[Part("test", modality)]
        here = method.encode(modality, x)
        with PretendDevice() as pretended:
            moved = FusionMethod.to(method, device)
            there = moved.encode(modality, {role: of.to(device) for role, of in x.items()})
            assert there.device.type == device
            assert torch.allclose(there.cpu(), here, atol=1e-5 if device == NAME else 2e-4)
            method.to("cpu")
        assert device != NAME or pretended.operations["cpu"] == 0, pretended.largest


def test_values_are_looked_at_once_a_batch(toy_bundle: FeatureBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    method = fitted("uniform", toy_bundle)
    x = toy_bundle[Part("test", "image")]
    with PretendDevice() as device:
        method.to(NAME)
        given = {role: of.to(NAME) for role, of in x.items()}
        monkeypatch.setattr("krossfuse.fusion.methods.kernel_method.DEVICE_ROWS", 8)
        method.encode("image", given)
        assert device.looks == 1, "of eight chunks"
        given["dino"][13] = torch.nan
        with pytest.raises(DataError, match=r"'dino': NaN .* in 1 of 8 rows"):
            method.encode("image", given)
        given["dino"][13] = 1e-30  # its square underflows, and it has a direction all the same
        small = method.encode("image", given)
        given["dino"][13] = 1.0
        assert torch.allclose(small.cpu(), method.encode("image", given).cpu(), atol=1e-6)
        method.to("cpu")


def test_on_a_cpu_they_are_looked_at_as_they_come() -> None:
    assert rows.holds(torch.tensor(True))
    assert not rows.holds(torch.tensor(False))
    assert (
        rows.looked_at_once(lambda: torch.tensor(rows.holds(torch.tensor(False))), torch.device("cpu")).item() is False
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Gate, Attention, Comm])
def test_layers_are_trained_on_the_gpu(
    kind: type[TrainedFusion], toy_bundle: FeatureBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krossfuse.fusion.methods import training

    seen: set[str] = set()
    original = training.FusionTraining.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        seen.add(loss.device.type)
        return loss

    monkeypatch.setattr(training.FusionTraining, "training_step", step)
    method = kind(inputs=INPUTS, dim=24, epochs=2, batch_size=40)
    method.trainers = TrainerFactory({"accelerator": "gpu", "devices": 1})
    fit_method(method, toy_bundle, label_set="animal")
    assert seen == {"cuda"}
    x = toy_bundle[Part("test", "image")]
    here = method.encode("image", x)
    there = method.cuda().encode("image", {role: of.cuda() for role, of in x.items()})
    assert torch.allclose(there.cpu(), here, atol=1e-4)
