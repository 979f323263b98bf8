"""Speed of extraction against the bare encoders: ``python -m experiments.benchmarks.extraction --out FILE``.

Both see the same images in the same batches, in turns, several times; the figures are medians.

* Bare: ``encode_image`` of each encoder of the pair, one after the other, on batches that lie ready in memory; eval
  mode, ``torch.inference_mode()``, PyTorch's default number of threads. Nothing else is in the time.
* Extraction: ``krossfuse.features.extract`` into an empty store: Lightning's ``predict``, rendering and preparing every
  image, encoding, checks, writing, checksums. Only loading the weights is left out of the time. It can beat the bare
  encoders, because it gives each core a stream of small channels-last shards of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.common import write_json
from krossfuse.core.parts import SPLITS, Modality, Part
from krossfuse.data.openmoji import OpenMoji
from krossfuse.encoders.base import Encoder, EncoderModule
from krossfuse.encoders.bundled import EfficientNetLite0, OpenMojiCLIP
from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract
from krossfuse.features.stores import LocalStore
from krossfuse.results.versions import versions


class Images(OpenMoji):
    """OpenMoji's images of some splits, without the texts."""

    def __init__(self, splits: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.splits = splits

    def parts(self) -> list[Part]:
        """Return the image parts of the chosen splits."""
        return [Part(split, "image") for split in self.splits]


class Loaded(Encoder):
    """An encoder whose weights are in memory already."""

    def __init__(self, encoder: Encoder) -> None:
        self.name, self.modalities, self.encoder, self.module = (
            encoder.name,
            encoder.modalities,
            encoder,
            encoder.load(),
        )

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return the encoder's own."""
        return self.encoder.fingerprint(modality)

    def load(self) -> EncoderModule:
        """Return what is loaded."""
        return self.module


def prepare(data: Images, encoders: Mapping[str, Loaded], batch_size: int) -> list[dict[str, Tensor]]:
    """Return the batches of all parts, as the encoders take them."""
    batches = []
    for part in data.parts():
        items = data.items(part)
        for start in range(0, len(items), batch_size):
            images = [items[i] for i in range(start, min(start + batch_size, len(items)))]
            batches.append({r: torch.stack([e.module.prepare_image(i) for i in images]) for r, e in encoders.items()})
    return batches


def bare(batches: list[dict[str, Tensor]], encoders: Mapping[str, Loaded]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            for role, encoder in encoders.items():
                encoder.module.encode_image(batch[role])
    return time.perf_counter() - start


def extraction(data: Images, pair: Pair, batch_size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        trainer = {"accelerator": "cpu", "devices": 1}
        extract(data, pair, LocalStore(folder), trainer=trainer, batch_size=batch_size, progress=False)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--weights", help="weights of the bundled CLIP (default: those in the package)")
    options = parser.parse_args()

    encoders = {
        "cross_modal": Loaded(OpenMojiCLIP(weights=options.weights)),
        "efficientnet_lite0": Loaded(EfficientNetLite0()),
    }
    pair = Pair(
        name="bench",
        cross_modal=encoders["cross_modal"],
        image_experts={"efficientnet_lite0": encoders["efficientnet_lite0"]},
    )
    data = Images(options.splits)
    batches = prepare(data, encoders, options.batch_size)
    samples = sum(len(batch["cross_modal"]) for batch in batches)

    bare(batches[:1], encoders)
    seconds: dict[str, list[float]] = {"bare": [], "extraction": []}
    for _ in range(options.repeats):
        seconds["bare"].append(bare(batches, encoders))
        seconds["extraction"].append(extraction(data, pair, options.batch_size))
    bare_speed, speed = (samples / statistics.median(seconds[what]) for what in ("bare", "extraction"))
    result = {
        "samples_per_second": speed,
        "bare_samples_per_second": bare_speed,
        "ratio": speed / bare_speed,
        "ratio_of_each_repeat": [b / e for b, e in zip(seconds["bare"], seconds["extraction"], strict=True)],
        "seconds": seconds,
        "samples": samples,
        "batch_size": options.batch_size,
        "encoders": [encoder.name for encoder in encoders.values()],
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "extraction_includes": "render, prepare, encode, check, write, checksum, Lightning; not loading the weights",
        "bare_includes": "encode_image on batches in memory, default threads, inference mode",
        "versions": versions(),
    }
    print(write_json(result, options.out))


if __name__ == "__main__":
    main()
