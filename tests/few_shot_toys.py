"""A toy space for the forms of few-shot classification: four classes with two texts each, and captions."""

from __future__ import annotations

import numpy as np
import torch

from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.space import EmbeddingSpace

CLASSES = ("ant", "bee", "cat", "dog")
TRAIN, VAL, TEST = (Part(split, "image") for split in ("train", "val", "test"))
PROMPTS = Part.prompts("class", "plain")


def make_space(seed: int = 0, dim: int = 20, noise: float = 1.0) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, dim, generator=g)
    labels, parts = {}, {}
    for split, n in (("train", 80), ("val", 24), ("test", 120)):
        labels[split] = torch.arange(n) % 4
        parts[Part(split, "image")] = 3 * (centres[labels[split]] + noise * torch.randn(n, dim, generator=g))
    parts[Part("train", "text")] = centres[labels["train"]] + noise * torch.randn(80, dim, generator=g)
    parts[PROMPTS] = centres.repeat_interleave(2, 0) + 0.3 * torch.randn(8, dim, generator=g)
    prompts = Prompts(tuple("abcdefgh"), torch.arange(4).repeat_interleave(2))
    info = DatasetInfo(
        "toy",
        {},
        {
            "class": LabelSet(CLASSES, labels, {"plain": prompts}),
            "rare": LabelSet(CLASSES, {s: torch.where(torch.arange(len(y)) < 6, y, -1) for s, y in labels.items()}),
        },
        {"train": torch.arange(80)},
    )
    return EmbeddingSpace(info, parts)


def unit(x: torch.Tensor) -> np.ndarray:
    return (x / x.norm(dim=1, keepdim=True)).numpy()


def accuracies(result: ProbeResult) -> dict[tuple[int, str, int], float]:
    return {
        (f.protocol["shots"], f.protocol["form"], f.protocol["subset_seed"]): f.value
        for f in result.measurements
        if f.metric == "accuracy" and f.label_set == "class"
    }
