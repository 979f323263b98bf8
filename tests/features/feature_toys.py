"""A toy dataset and toy encoders (real, small networks) behind the true protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Modality, Part
from krossfuse.data.common import ImageFiles, make_prompts
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import Encoder, EncoderModule, TextBatch

SIZES = {"train": 20, "val": 6, "test": 7}


class Decoded(ImageFiles):
    """Image files that leave a line in a log for each decoding, whichever process does it."""

    def __init__(self, paths: Sequence[Path], log: Path) -> None:
        super().__init__(paths)
        self.log = log

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        with self.log.open("a") as file:
            file.write(self.paths[index] + "\n")
        return super().__getitem__(index)


class ToyData(BaseDataModule):
    sizes: Mapping[str, int] = SIZES

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, "num_workers": 0, **options})
        self.folder = folder
        self.log = folder / "decoded.log"

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Any]]]:
        items: dict[Part, Sequence[Any]] = {}
        labels = {}
        rng = np.random.default_rng(0)
        for split, n in self.sizes.items():
            paths = [self.folder / f"{split}_{i}.png" for i in range(n)]
            for path in paths:
                pixels = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
                if not path.exists():
                    Image.fromarray(pixels).save(path)
            items[Part(split, "image")] = Decoded(paths, self.log)
            items[Part(split, "text")] = [f"text {split} {i}" for i in range(n)]
            labels[split] = torch.arange(n) % 2
        prompts = {"simple": make_prompts(["a {}"], ["cat", "dog"])}
        caption_of = {split: torch.arange(n) for split, n in self.sizes.items()}
        info = DatasetInfo("toy", {"seed": 0}, {"animal": LabelSet(("cat", "dog"), labels, prompts)}, caption_of)
        return info, items

    def decoded(self) -> list[str]:
        return [Path(line).stem for line in self.log.read_text().split()] if self.log.exists() else []


class ToyModule(EncoderModule):
    def __init__(self, dim: int, seed: int, poison: int | None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.dim, self.poison = dim, poison
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, dim))
        self.words = nn.Embedding(128, dim)

    def prepare_image(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        longest = max(map(len, texts))
        return {"ids": torch.tensor([[ord(c) for c in text.ljust(longest, "\0")] for text in texts])}

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.conv(images)
        if self.poison is not None:
            features[min(self.poison, len(features) - 1)] = float("nan")
        return features

    def encode_text(self, batch: TextBatch) -> Tensor:
        weight = (batch["ids"] > 0).unsqueeze(-1).to(self.words.weight.dtype)
        return (self.words(batch["ids"]) * weight).sum(1)


class ToyEncoder(Encoder):
    """Counts its loads; ``weights`` (the seed) stands for the weights' digest."""

    def __init__(
        self, name: str, modalities: tuple[Modality, ...], *, dim: int = 8, weights: int = 0, poison: int | None = None
    ) -> None:
        self.name, self.modalities, self.dim, self.weights, self.poison = name, modalities, dim, weights, poison
        self.loads = 0

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        return {"weights": self.weights, "dim": self.dim}

    def load(self) -> EncoderModule:
        self.loads += 1
        return ToyModule(self.dim, self.weights, self.poison)
