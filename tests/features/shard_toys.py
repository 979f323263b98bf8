"""A small set in tars, and the same as images in files: what tests of shards share."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from feature_toys import ToyData, ToyEncoder

from krossfuse.core.parts import Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.shards import TarShards
from krossfuse.encoders.pair import Pair
from krossfuse.features.source import Extraction
from krossfuse.features.stores.base import FeatureStore

TRAIN = Part("train", "image")
PER_SHARD = {"train": [16, 16, 8, 16], "val": [8], "test": [16, 3]}


def toy_pair() -> Pair:
    return Pair(
        name="toys",
        cross_modal=ToyEncoder("clip", ("image", "text"), dim=8),
        image_experts={"dino": ToyEncoder("dino", ("image",), dim=5, weights=1)},
    )


class Plain(ToyData):
    """The same items as images in files, without shards."""

    sizes = {split: sum(of) for split, of in PER_SHARD.items()}  # noqa: RUF012


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tars(folder: Path, images: Path) -> dict[str, list[str]]:
    """Write the plain dataset's own files into tars, in its order."""
    plain = Plain(images)
    plain.setup()
    shards: dict[str, list[str]] = {}
    for split, counts in PER_SHARD.items():
        (folder / split).mkdir(parents=True)
        row = 0
        for number, count in enumerate(counts):
            name = f"{split}/{number:03d}.tar"
            with tarfile.open(folder / name, "w") as tar:
                for _ in range(count):
                    add(tar, f"{row:05d}.png", (images / f"{split}_{row}.png").read_bytes())
                    add(tar, f"{row:05d}.cls", str(row % 2).encode())
                    add(tar, f"{row:05d}.txt", f"text {split} {row}".encode())
                    row += 1
            shards.setdefault(split, []).append(name)
    return shards


def source(data: Any, store: FeatureStore, *, devices: int = 1, **options: Any) -> Extraction:
    trainers = TrainerFactory({"accelerator": "cpu", "devices": devices})
    return Extraction(
        data=data, pair=toy_pair(), store=store, trainers=trainers, progress=False, batch_size=16, **options
    )


def shard_data(folder: Path | str, **options: Any) -> TarShards:
    prompts = {"simple": ["a {}"]}
    return TarShards(manifest=f"{folder}/manifest.json", num_workers=0, prompts=prompts, **options)
