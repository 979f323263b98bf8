from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.data.common import make_prompts
from krossfuse.data.module import BaseDataModule


class Toy(BaseDataModule):
    """Six coloured squares a split, each with a caption; two classes."""

    loads = 0

    def load(self):
        self.loads += 1
        items = {}
        for split in ("train", "val", "test"):
            items[Part(split, "image")] = [Image.new("RGB", (64, 48), (i * 40, 100, 0)) for i in range(6)]
            items[Part(split, "text")] = [f"{split} {i}" for i in range(6)]
        labels = {split: torch.arange(6) % 2 for split in ("train", "val", "test")}
        prompts = {"plain": make_prompts(["a {}", "{}"], ["even", "odd"])}
        captions = {split: torch.arange(6) for split in labels}
        info = DatasetInfo("toy", {"rev": 1}, {"parity": LabelSet(("even", "odd"), labels, prompts)}, captions)
        return info, items


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


def make_folder(root: Path, counts: dict[str, int], size: int = 8) -> None:
    """Write ``counts[folder]`` small images, no two alike, into each folder below ``root``."""
    for c, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (size, size), (c * 30, i * 10, 50)).save(root / folder / f"{i:03}.png")


@pytest.fixture
def folder_of_images(tmp_path):
    def make(counts: dict[str, int]) -> Path:
        make_folder(tmp_path / "images", counts)
        return tmp_path / "images"

    return make
