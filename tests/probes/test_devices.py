"""Probes compute on the device that they are given: no two devices meet, and the measurements are those of the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pretend_device import NAME, PretendDevice
from torch import Tensor

from krossfuse import probes
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.probes.base import Probe
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 160, "val": 80, "test": 80, "test_far": 40}
DIM = 48


def made(kernel: bool = True) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(7, DIM, generator=g)
    labels = {split: torch.arange(n) % 7 for split, n in SIZES.items()}
    parts: dict[Part, Tensor] = {
        Part(split, modality): centres[y] + 0.9 * torch.randn(len(y), DIM, generator=g)  # type: ignore[arg-type]
        for split, y in labels.items()
        for modality in ("image", "text")
    }
    parts[Part.prompts("kind", "plain")] = centres + 0.1 * torch.randn(7, DIM, generator=g)
    several = {split: torch.randn(n, 3, generator=g) > 0 for split, n in SIZES.items()}
    sets = {
        "kind": LabelSet(tuple("abcdefg"), labels, {"plain": Prompts(tuple("abcdefg"), torch.arange(7))}),
        "several": LabelSet(tuple("xyz"), several, multilabel=True),
    }
    info = DatasetInfo("toy", {}, sets, {split: torch.arange(n) for split, n in SIZES.items()})
    parents = {part: {"cross_modal": x, "expert": x.flip(1)} for part, x in parts.items() if part.modality == "image"}
    space = EmbeddingSpace(info, parts, reference=dict(parts), parents=parents)

    def exact(a: Part, rows_a: Tensor, b: Part, rows_b: Tensor) -> Tensor:
        return space[a][rows_a] @ space[b][rows_b].T

    return replace(space, kernel=exact) if kernel else space


KIND: dict[str, Any] = {"grid": [0.1, 10.0], "modalities": ["image"], "label_sets": ["kind"]}

PROBES: dict[str, tuple[type[Probe], dict[str, Any]]] = {
    "linear": (probes.LinearProbe, {"grid": [0.1, 10.0], "modalities": ["image"]}),
    "linear, folds": (probes.LinearProbe, {"selection": "k-fold", "n_folds": 2, "normalise": True, **KIND}),
    "linear, few rows": (probes.LinearProbe, {"path": False, "block_rows": 100, **KIND}),
    "ridge": (probes.RidgeProbe, {}),
    "ridge, folds": (probes.RidgeProbe, {"selection": "k-fold"}),
    "kernel": (probes.KernelProbe, {"modalities": ["image"], "label_sets": ["kind"]}),
    "knn": (probes.KNN, {"ks": [1, 5], "block_rows": 32}),
    "knn, euclidean": (probes.KNN, {"ks": [1, 5], "metric": "euclidean"}),
    "zero-shot": (probes.ZeroShot, {"block_rows": 32}),
    "zero-shot, cosine": (probes.ZeroShot, {"average": "similarities", "similarity": "cosine"}),
    "retrieval": (probes.Retrieval, {"block_rows": 32}),
    "retrieval, cosine": (probes.Retrieval, {"similarity": "cosine"}),
    "agreement": (probes.Agreement, {}),
    "ood": (probes.OutOfDistribution, {"grid": [0.1, 10.0]}),
    "text": (probes.TextProbe, {"grid": [1.0, 10.0], "protocol": "splits", "label_sets": ["kind"]}),
    "federated": (probes.FederatedProbe, {"clients": 6, "rounds": 2, "epsilon": 8.0, "label_sets": ["kind"]}),
    "propagation": (probes.Propagation, {"kernel": "fused"}),
    "propagation, parents": (probes.Propagation, {"kernel": "product"}),
}


def values(probe: Probe, space: EmbeddingSpace) -> dict[tuple[Any, ...], float]:
    result = probe.evaluate(space, seed=0)
    assert all(x.device.type == "cpu" for m in result.measurements if (x := m.per_item) is not None)
    assert all(x.device.type == "cpu" for head in result.heads.values() for x in head.state_dict().values())
    return {(i, m.metric, m.modality, m.label_set): m.value for i, m in enumerate(result.measurements)}


@pytest.mark.parametrize("name", PROBES)
def test_on_another_device_the_measurements_are_the_same(name: str) -> None:
    """On one that is the CPU by another name, and so to the bit but for the order of sums in a fast product."""
    kind, options = PROBES[name]
    space = made()
    here = values(kind(**options), space)
    with PretendDevice() as there:
        moved = values(kind(**options, device=NAME), space)
    assert moved == pytest.approx(here, abs=0.03)
    kernels = 2 * (SIZES["train"] + SIZES["val"]) ** 2 * DIM if name == "kernel" else 0  # where the caller has them
    assert there.operations[NAME] > 0
    assert there.operations["cpu"] <= 0.02 * there.operations[NAME] + 3 * kernels, there.largest


@pytest.mark.gpu
@pytest.mark.parametrize("name", PROBES)
def test_on_a_gpu_the_measurements_are_those_of_the_cpu(name: str) -> None:
    kind, options = PROBES[name]
    space = made()
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    there = values(kind(**options, device="auto"), space)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] > before, "nothing was allocated on the GPU"
    assert there == pytest.approx(values(kind(**options), space), abs=0.05, rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("trained", ["sgd", "few-shot"])
def test_what_lightning_trains_is_on_its_trainer_s_gpu(trained: str) -> None:
    space = replace(made(), trainers=TrainerFactory({"accelerator": "gpu", "devices": 1}))
    probe: Probe = (
        probes.SGDProbe(epochs=3, batch_size=32)
        if trained == "sgd"
        else probes.FewShot(shots=[4], n_seeds=2, forms=["Tip-Adapter-F", "CLIP-Adapter"])
    )
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    values(probe, space)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] > before
