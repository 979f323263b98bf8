from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from krossfuse.app.build import job_config
from krossfuse.app.paths import CONFIG_DIR
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


@pytest.fixture(scope="module")
def compose() -> Iterator[Callable[..., tuple[dict[str, Any], dict[str, str]]]]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):

        def composed(**overrides: object) -> tuple[dict[str, Any], dict[str, str]]:
            words = [f"{key}={value}" for key, value in overrides.items()]
            cfg = hydra.compose("config", overrides=words, return_hydra_config=True)
            return job_config(cfg), dict(cfg.hydra.runtime.choices)

        yield composed


@pytest.fixture(scope="module")
def node(compose: Any) -> Callable[..., dict[str, Any]]:
    """The node of a data set with some options changed; a set is composed once."""
    of = functools.cache(lambda name: compose(data=name)[0]["data"])
    return lambda name, **changes: {**copy.deepcopy(of(name)), **changes}
