"""Speed of extraction against the best bare loop: ``python -m experiments.benchmarks.extraction --out FILE``.

Both take the same pictures to the features of the same encoders. The bare loop is what one writes without this
package: PyTorch's ``DataLoader`` renders and prepares the pictures, the encoders take them in eval mode under
``torch.inference_mode()``, the features are kept in a list. How fast that is depends on how it is done, so the best
way is looked for in the same run, over

* the batch size of the encoders;
* the layout of the images (as PyTorch makes them, or channels-last);
* the allocator (glibc's usual thresholds, or the heap kept: :mod:`krossfuse.core.heap`);
* the threads (all cores in each operation, or one stream of batches a core);
* the workers of the loader (from none to one a core).

Each way is timed once with some of the images lying ready; the fastest few with each number of workers on all of
them; the fastest of these again in turns with extraction, several times. Its median is
``best_bare_samples_per_second``.

Extraction is ``krossfuse.features.extract`` into an empty store: Lightning's ``predict``, rendering and preparing
every image, encoding, checks, writing, checksums. Only loading the weights is left out of the time. ``ratio`` is its
speed over the best bare loop's.

``encoders_alone`` is how fast the encoders take images that lie ready in memory, by the best way, nothing else in the
time. Rendering the emoji from SVG is work on the same cores: ``prepare_ms`` is what rendering and preparing take of
one core for an image, measured alone, and ``ceiling`` is what ``ratio_encoders_alone`` would be if everything but
that and the encoders were free. ``ratio_decoded`` is to the encoders alone too, where the rendered pictures lie in
memory.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.benchmarks.common import write_json
from krossfuse.core.heap import kept_heap
from krossfuse.core.parts import SPLITS, Modality, Part
from krossfuse.data.openmoji import OpenMoji
from krossfuse.encoders.base import Encoder, EncoderModule
from krossfuse.encoders.bundled import EfficientNetLite0, OpenMojiCLIP
from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract
from krossfuse.features.stores import LocalStore
from krossfuse.results.versions import versions

FINALISTS = 3


class Images(OpenMoji):
    """OpenMoji's images of some splits, without the texts; ``decoded``: they lie in memory."""

    def __init__(self, splits: list[str], *, decoded: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.splits = splits
        self.decoded = {part: list(super(Images, self).items(part)) for part in self.parts()} if decoded else {}

    def items(self, part: Part) -> Sequence[Any]:
        """Return the images of a part."""
        return self.decoded.get(part) or super().items(part)

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


def prepare(data: Images, encoders: Mapping[str, Loaded]) -> tuple[dict[str, Tensor], float]:
    """Return all images as the encoders take them, and the seconds that it took on one core."""
    images: dict[str, list[Tensor]] = {role: [] for role in encoders}
    start = time.process_time()
    for part in data.parts():
        items = data.items(part)
        for i in range(len(items)):
            image = items[i]
            for role, encoder in encoders.items():
                images[role].append(encoder.module.prepare_image(image))
    seconds = time.process_time() - start
    return {role: torch.stack(of) for role, of in images.items()}, seconds


@dataclass(frozen=True)
class Way:
    """One way to call the encoders."""

    batch: int
    layout: str
    allocator: str
    threads: str

    def seconds(self, images: Mapping[str, Tensor], encoders: Mapping[str, Loaded]) -> float:
        """Return the seconds that the images take, whose batches lie ready."""
        form = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        jobs = [
            (encoders[role].module, batch.contiguous(memory_format=form))
            for role, x in images.items()
            for batch in x.split(self.batch)
        ]
        cores = torch.get_num_threads()
        with ExitStack() as stack:
            stack.enter_context(kept_heap(self.allocator == "kept"))
            if self.threads == "one a stream":
                pool = stack.enter_context(ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)))
                list(pool.map(_encode, jobs[:cores]))  # the threads, and their heaps
                start = time.perf_counter()
                list(pool.map(_encode, jobs))
            else:
                _encode(jobs[0])
                start = time.perf_counter()
                for job in jobs:
                    _encode(job)
            return time.perf_counter() - start


def _encode(job: tuple[EncoderModule, Tensor]) -> Tensor:
    with torch.inference_mode():
        return job[0].encode_image(job[1])


def ways(batches: list[int]) -> list[Way]:
    """Return every way."""
    return [
        Way(*of)
        for of in itertools.product(
            batches, ("contiguous", "channels_last"), ("usual", "kept"), ("all an operation", "one a stream")
        )
    ]


class Prepared(Dataset[dict[str, Tensor]]):
    """All images as the encoders take them, made when they are asked for."""

    def __init__(self, data: Images, encoders: Mapping[str, Loaded]) -> None:
        self.items = [(data.items(part), i) for part in data.parts() for i in range(len(data.items(part)))]
        self.encoders = encoders

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        items, i = self.items[index]
        image = items[i]
        return {role: encoder.module.prepare_image(image) for role, encoder in self.encoders.items()}


def loop(data: Images, encoders: Mapping[str, Loaded], way: Way, workers: int, batch_size: int) -> float:
    """Return the seconds of a bare loop: a loader with so many workers, then the encoders."""
    form = torch.channels_last if way.layout == "channels_last" else torch.contiguous_format
    features: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(kept_heap(way.allocator == "kept"))
        run: Any = map
        if way.threads == "one a stream":
            threads = torch.get_num_threads()
            run = stack.enter_context(ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))).map
        start = time.perf_counter()
        for batch in DataLoader(Prepared(data, encoders), batch_size=batch_size, num_workers=workers):
            jobs = [
                (encoders[role].module, piece.contiguous(memory_format=form))
                for role, x in batch.items()
                for piece in torch.split(x, way.batch)
            ]
            features += run(_encode, jobs)
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
    parser.add_argument("--batch-size", type=int, default=64, help="of the extraction")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 64], help="of the bare encoders")
    parser.add_argument("--search", type=int, default=128, help="images on which each way is timed")
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
    images, preparing = prepare(data, encoders)
    samples = len(images["cross_modal"])

    cores = torch.get_num_threads()
    few = {role: x[: options.search] for role, x in images.items()}
    searched = {way: min(options.search, samples) / way.seconds(few, encoders) for way in ways(options.batches)}
    finalists = sorted(searched, key=lambda way: -searched[way])[:FINALISTS]
    usual = Way(64, "contiguous", "usual", "all an operation")
    seconds: dict[Way, list[float]] = {way: [] for way in dict.fromkeys([*finalists, usual])}
    loops = {
        (way, workers): loop(data, encoders, way, workers, options.batch_size)
        for way in finalists
        for workers in range(cores + 1)
    }
    bare, workers = min(loops, key=loops.__getitem__)
    looped: list[float] = []
    ours: list[float] = []
    ours_decoded: list[float] = []
    lying = Images(options.splits, decoded=True)
    for _ in range(options.repeats):
        for way, of_way in seconds.items():
            of_way.append(way.seconds(images, encoders))
        looped.append(loop(data, encoders, bare, workers, options.batch_size))
        ours.append(extraction(data, pair, options.batch_size))
        ours_decoded.append(extraction(lying, pair, options.batch_size))
    speeds = {way: samples / statistics.median(of_way) for way, of_way in seconds.items()}
    best = max(finalists, key=lambda way: speeds[way])
    speed = samples / statistics.median(ours)
    bare_core_seconds = cores / speeds[best]
    result = {
        "samples_per_second": speed,
        "best_bare_samples_per_second": samples / statistics.median(looped),
        "best_bare": {**asdict(bare), "workers": workers},
        "ratio": statistics.median(looped) / statistics.median(ours),
        "ratio_of_each_repeat": [b / e for b, e in zip(looped, ours, strict=True)],
        "encoders_alone_samples_per_second": speeds[best],
        "encoders_alone": asdict(best),
        "ratio_encoders_alone": speed / speeds[best],
        "ratio_decoded": samples / statistics.median(ours_decoded) / speeds[best],
        "prepare_ms": preparing / samples * 1e3,
        "ceiling": bare_core_seconds / (bare_core_seconds + preparing / samples),
        "how_found": f"every way on {min(options.search, samples)} images that lie ready; the fastest {FINALISTS} "
        f"with 0 to {cores} workers on all {samples}, once; the fastest of these, extraction and the encoders alone in "
        f"turns, medians of {options.repeats}",
        "loops": [{**asdict(way), "workers": n, "seconds": of_way} for (way, n), of_way in loops.items()],
        "best_bare_seconds": looped,
        "searched": [{**asdict(way), "samples_per_second": of_way} for way, of_way in searched.items()],
        "finalists": [{**asdict(way), "samples_per_second": speeds[way], "seconds": seconds[way]} for way in seconds],
        "usual_bare_samples_per_second": speeds[usual],
        "seconds": ours,
        "seconds_decoded": ours_decoded,
        "samples": samples,
        "batch_size": options.batch_size,
        "encoders": [encoder.name for encoder in encoders.values()],
        "threads": cores,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "extraction_includes": "render, prepare, encode, check, write, checksum, Lightning; not loading the weights",
        "bare_includes": "render, prepare, encode; features kept in a list",
        "encoders_alone_includes": "encode_image on batches in memory, inference mode",
        "versions": versions(),
    }
    print(write_json(result, options.out))


if __name__ == "__main__":
    main()
