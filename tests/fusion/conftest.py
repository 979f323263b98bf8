"""A small dataset of features with class structure, shared by the tests of this room."""

from __future__ import annotations

import pytest
import torch

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
SIZES = {"train": 160, "val": 40, "test": 64}


@pytest.fixture(scope="session")
def toy_bundle() -> FeatureBundle:
    """8 classes, 12-dimensional cross-modal features, an image expert of 16 dimensions, a text expert of 10.

    The cross-modal encoder tells pairs of classes apart, each expert the two members of a pair: only together do
    they know the class.
    """
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    pair_centres, member_image, member_text = draw(4, 12), draw(2, 16), draw(2, 10)
    labels = {split: torch.arange(n) % 8 for split, n in SIZES.items()}

    def rows(of: torch.Tensor, noise: float, text: bool) -> dict[str, torch.Tensor]:
        n = len(of)
        expert, name = (member_text, "minilm") if text else (member_image, "dino")
        return {
            "cross_modal": pair_centres[of // 2] + noise * draw(n, 12),
            name: expert[of % 2] + noise * draw(n, expert.shape[1]),
        }

    features = {Part(s, m): rows(y, 0.4, m == "text") for s, y in labels.items() for m in ("image", "text")}
    prompts = Part.prompts("animal", "plain")
    features[prompts] = rows(torch.arange(8), 0.1, True)
    label_set = LabelSet(CLASSES, labels, {"plain": Prompts(CLASSES, torch.arange(8))})
    info = DatasetInfo("toy", {"seed": 7}, {"animal": label_set}, {s: torch.arange(n) for s, n in SIZES.items()})
    return FeatureBundle(info, "toy_pair", features)
