"""What a GPU is worth: ``python -m experiments.benchmarks.gpu --out FILE`` (one CUDA device; ``make bench-gpu``).

* Floors, measured first: the fastest bf16 and float32 (no TF32) matrix product, a copy on the device (bytes read and
  written), and copies from and to pinned memory of the host.
* Extraction: ``krossfuse.features.extract`` as ``trainer=gpu_bf16`` runs it (bf16 autocast, stored in float32), of an
  open_clip model with random weights, over made pictures, into an empty store: Lightning, preparing, encoding, checks,
  writing and checksums; loading the weights is left out. ``jpeg``: loader processes decode and prepare JPEG files;
  ``memory``: the prepared pictures lie in memory. Beside it, the best bare ``encode_image`` on batches that lie on the
  device, over batch sizes, layouts and forms of bf16 (autocast, or weights and pictures in bf16). Ratios are ours over
  bare; ``ratio_autocast`` is that to the best bare with autocast, the same arithmetic as ours.
* Fusion: milliseconds of one fused batch of 128 pictures at the paper's dimensions (512 and 768 to 3000), medians of
  CUDA events around one batch each: every named sketch, as it is called (checks of the input, which wait for the device
  once, included); ``graph``: the same map captured in a CUDA graph and replayed; and the published formula, plainly
  written. The paper reports 0.14 ms (arXiv 2506.08645), on another GPU. And rows a second through ``FusionModule.fuse``
  into memory, against the time that the same products or copies take at the floors, whichever is longest.
* Probes on the GPU and, in the same run and on the same features, on the machine's CPU: seconds each, their ratio, and
  the largest difference of a measurement.

``--device cpu --small`` runs the same on a CPU in seconds, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.benchmarks.common import timed, write_json
from experiments.benchmarks.fusion import NOT_FOR_COSINE, PublishedFormula
from experiments.benchmarks.gpu_data import Loaded, Pictures, checkpoint, made_space
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import KrossFuseError
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import CROSS_MODAL, TRAIN, Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.encoders.base import EncoderModule
from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract
from krossfuse.features.stores import LocalStore
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.export import FusionFunction
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.methods import RPKrossFuse
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.named import SKETCHES
from krossfuse.probes import KNN, LinearProbe, Probe, Retrieval, RidgeProbe, ZeroShot
from krossfuse.results.versions import versions

INPUTS = InputSpec(cross_modal=512, image_experts={"dinov2": 768})
GRID = (1.0, 10.0, 100.0, 1000.0)
PAPER_MS = 0.14
"""Milliseconds that the paper reports for fusing a batch of 128."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        architecture: of open_clip.
        images: JPEG files that are extracted.
        repeats: of each measurement of extraction and of probes on the GPU.
        batches: sizes of the bare encoder's batches.
        batch: size of extraction's batches.
        dim: of the fused embedding.
        fused: rows of a fused batch.
        events: timed batches.
        stream: rows of the stream.
        rows: of the probed training split; a tenth of it validates, a fifth tests.
        classes: of the probed set.
        square: side of the products that the floors are measured on.
    """

    architecture: str = "ViT-B-32"
    images: int = 20_000
    repeats: int = 2
    batches: tuple[int, ...] = (256, 1024, 2048)
    batch: int = 512
    dim: int = 3000
    fused: int = 128
    events: int = 200
    stream: int = 1_000_000
    rows: int = 50_000
    classes: int = 100
    square: int = 8192


SMALL = Sizes("ViT-S-32-alt", 6, 1, (2,), 4, 64, 16, 5, 3000, 300, 5, 128)


class Clock:
    """Seconds of work on a device, waited for; and the peak of the memory that it took there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done all."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], repeats: int = 1) -> list[float]:
        """Return the seconds of each of some runs."""

        def whole() -> None:
            run()
            self.wait()

        return [timed(whole)[0] for _ in range(repeats)]

    def milliseconds(self, run: Callable[[], Any], repeats: int) -> list[float]:
        """Return the milliseconds of each of some runs, by events of the device where there are any."""
        for _ in range(min(10, repeats)):
            run()
        self.wait()
        if not self.cuda:
            return [1e3 * s for s in self.seconds(run, repeats)]
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]  # type: ignore[no-untyped-call]
        for first, last in marks:
            first.record()  # type: ignore[no-untyped-call]
            run()
            last.record()  # type: ignore[no-untyped-call]
        self.wait()
        return [first.elapsed_time(last) for first, last in marks]  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Forget the peak so far."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int | None:
        """Return the most bytes of the device's memory that tensors took since :meth:`begin`."""
        return torch.cuda.max_memory_allocated(self.device) if self.cuda else None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def floors(clock: Clock, side: int) -> dict[str, float]:
    """Return operations a second of products, and bytes a second of a copy."""
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(side, side, device=clock.device, dtype=dtype) for _ in range(2))
        ms = min(clock.milliseconds(lambda a=a, b=b: a @ b, 20))  # type: ignore[misc]
        found[f"{name}_tflops"] = 2 * side**3 / ms / 1e9
    x = torch.empty(side * side, device=clock.device)
    y = torch.empty_like(x)
    found["copy_gb_per_second"] = 2 * x.nbytes / min(clock.milliseconds(lambda: y.copy_(x), 20)) / 1e6
    host = torch.empty(side * side, pin_memory=clock.cuda)
    for name, to, of in (("to_device", x, host), ("to_host", host, x)):
        ms = min(clock.milliseconds(lambda to=to, of=of: to.copy_(of, non_blocking=True), 10))  # type: ignore[misc]
        found[f"{name}_gb_per_second"] = host.nbytes / ms / 1e6
    return found


def bare(module: EncoderModule, clock: Clock, sizes: Sizes) -> list[dict[str, Any]]:
    """Return images a second of every way to call a bare encoder, the fastest first."""
    side = module.prepare_image(Pictures.picture(0)).shape[-1]
    found = []
    module = module.to(clock.device)
    forms = {"autocast": torch.float32, "bf16": torch.bfloat16} if clock.cuda else {"float32": torch.float32}
    for form, dtype in forms.items():
        of_form = module.to(dtype)
        for batch in sizes.batches:
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(batch, 3, side, side, device=clock.device, dtype=dtype).contiguous(memory_format=layout)
                with (
                    torch.inference_mode(),
                    torch.autocast(clock.device.type, torch.bfloat16, enabled=form == "autocast"),
                ):
                    ms = clock.milliseconds(
                        lambda of_form=of_form, x=x: of_form.encode_image(x), max(3, sizes.events // 10)
                    )  # type: ignore[misc]
                speed = 1e3 * batch / statistics.median(ms)
                name = str(layout).removeprefix("torch.")
                found.append({"form": form, "batch": batch, "layout": name, "images_per_second": speed})
    module.to("cpu", torch.float32)
    return sorted(found, key=lambda way: -way["images_per_second"])


def extraction(clock: Clock, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Measure extraction against the best bare encoder."""
    encoder = Loaded(checkpoint(sizes.architecture, folder))
    clock.begin()
    ways = bare(encoder.module, clock, sizes)
    bare_peak = clock.peak()
    best, best_autocast = ways[0], next(way for way in ways if way["form"] != "bf16")
    pair = Pair(name="bench", cross_modal=encoder)
    options = {
        "accelerator": "gpu" if clock.cuda else "cpu",
        "devices": 1,
        "precision": "bf16-mixed" if clock.cuda else "32-true",
    }
    trainers = TrainerFactory({**options, "float32_matmul_precision": "highest"})
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    result: dict[str, Any] = {
        "architecture": sizes.architecture,
        "images": sizes.images,
        "precision": "bf16 autocast, features stored in float32" if clock.cuda else "float32",
        "workers": workers,
        "bare": ways,
        "best_bare": best,
        "best_bare_autocast": best_autocast,
        "bare_peak_bytes": bare_peak,
    }
    for name, data in {
        "jpeg": Pictures(folder, sizes.images, num_workers=workers),
        "memory": Pictures(folder, sizes.images, prepare=encoder.module.prepare_image),
    }.items():

        def run(data: Pictures = data) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as store:
                extract(data, pair, LocalStore(store), trainers=trainers, batch_size=sizes.batch, progress=False)

        clock.begin()
        run()  # kernels are chosen and files are read for the first time
        seconds = clock.seconds(run, sizes.repeats)
        speed = sizes.images / statistics.median(seconds)
        result[name] = {
            "images_per_second": speed,
            "seconds": seconds,
            "ratio": speed / best["images_per_second"],
            "ratio_autocast": speed / best_autocast["images_per_second"],
            "peak_bytes": clock.peak(),
        }
    return result


def graphed(method: FusionMethod, features: Mapping[str, Tensor]) -> Callable[[], Any]:
    """Return what replays the fusion of a batch as a CUDA graph, without a look at its values."""
    function = FusionFunction(method, "image")
    given = tuple(features.values())
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function(*given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*given)
    return graph.replay


@torch.no_grad()
def fusion(clock: Clock, sizes: Sizes) -> dict[str, Any]:
    """Time a fused batch: the published formula, and every sketch as it is called and as a graph."""
    g = torch.Generator().manual_seed(0)
    dims = {CROSS_MODAL: 512, "dinov2": 768}
    fit = {role: torch.randn(max(1024, 4 * sizes.fused), d, generator=g) for role, d in dims.items()}
    batch = {role: torch.randn(sizes.fused, d, generator=g).to(clock.device) for role, d in dims.items()}
    formula = PublishedFormula(inputs=INPUTS, dim=sizes.dim)
    formula.first, formula.second = (x.to(clock.device) for x in (formula.first, formula.second))
    rows: dict[str, Any] = {"published_formula": {"called": spread(clock.milliseconds(lambda: formula(batch), 5))}}
    rows["published_formula"]["called"] = spread(clock.milliseconds(lambda: formula(batch), sizes.events))
    for sketch, cls in SKETCHES.items():
        if sketch in NOT_FOR_COSINE:
            continue
        clock.begin()
        try:
            method = RPKrossFuse(inputs=INPUTS, dim=sizes.dim, sketch=cls).fit(image=fit).to(clock.device)
            called = clock.milliseconds(lambda method=method: method.encode("image", batch), sizes.events)  # type: ignore[misc]
        except KrossFuseError as error:
            rows[sketch] = {"left_out": str(error)}
            continue
        rows[sketch] = {"called": spread(called), "peak_bytes": clock.peak()}
        if clock.cuda:
            try:
                rows[sketch]["graph"] = spread(clock.milliseconds(graphed(method, batch), sizes.events))
            except Exception as error:  # a map that a graph cannot hold
                rows[sketch]["no_graph"] = str(error).splitlines()[0]
    return {"batch": sizes.fused, "dims": dims, "out_dim": sizes.dim, "paper_ms": PAPER_MS, "milliseconds": rows}


def stream(clock: Clock, sizes: Sizes, found: Mapping[str, float]) -> dict[str, Any]:
    """Fuse many rows through the module, from memory into memory, and on the device alone."""
    dims, rows = {CROSS_MODAL: 512, "dinov2": 768}, sizes.stream
    features = {role: torch.randn(rows, d) for role, d in dims.items()}
    bundle = FeatureBundle(DatasetInfo("made", {}, {}), "made", {Part(TRAIN, "image"): features})
    options = {"accelerator": "gpu" if clock.cuda else "cpu", "devices": 1, "float32_matmul_precision": "highest"}
    method = fit_method(RPKrossFuse(inputs=INPUTS, dim=sizes.dim), bundle)
    module = FusionModule(method, trainers=TrainerFactory(options), block_rows=min(16_384, rows))
    of_bytes = {"in": sum(x.nbytes for x in features.values()), "out": rows * sizes.dim * 4}
    operations = 2 * rows * sizes.dim * sum(dims.values())
    result: dict[str, Any] = {"rows": rows, "bytes": of_bytes}
    for name, keep in (("to_host", False), ("kept_on_device", True)):
        clock.begin()
        (seconds,) = clock.seconds(
            lambda keep=keep: module.fuse(bundle, memory_limit=1 << 40, keep_on_device=keep)  # type: ignore[misc]
        )
        floor = {
            "products": operations / found["float32_tflops"] / 1e12,
            "to_device": of_bytes["in"] / found["to_device_gb_per_second"] / 1e9,
            "to_host": 0.0 if keep else of_bytes["out"] / found["to_host_gb_per_second"] / 1e9,
        }
        result[name] = {
            "rows_per_second": rows / seconds,
            "seconds": seconds,
            "floor_seconds": floor,
            "of_the_floor": max(floor.values()) / seconds,
            "peak_bytes": clock.peak(),
        }
    return result


def probed(clock: Clock, sizes: Sizes) -> dict[str, Any]:
    """Run probes on the device and on the CPU, on the same features."""
    space = made_space(sizes.rows, sizes.dim, sizes.classes)
    kinds: dict[str, Callable[[str | None], Probe]] = {
        f"linear, {len(GRID)} values of C": lambda device: LinearProbe(grid=GRID, modalities=["image"], device=device),
        "ridge, 8 values of alpha": lambda device: RidgeProbe(modalities=["image"], device=device),
        "k-NN": lambda device: KNN(device=device),
        "zero-shot": lambda device: ZeroShot(device=device),
        "retrieval": lambda device: Retrieval(device=device),
    }
    out: dict[str, Any] = {"rows": sizes.rows, "dim": sizes.dim, "classes": sizes.classes}
    for name, make in kinds.items():
        start = time.perf_counter()
        on_cpu = make(None).evaluate(space, seed=0)
        cpu = time.perf_counter() - start
        clock.begin()
        results: list[Any] = []
        seconds = clock.seconds(
            lambda make=make, results=results: results.append(make(str(clock.device)).evaluate(space, seed=0)),  # type: ignore[misc]
            sizes.repeats,
        )
        pairs = list(zip(on_cpu.measurements, results[-1].measurements, strict=True))
        out[name] = {
            "cpu_seconds": cpu,
            "seconds": spread(seconds),
            "speedup": cpu / statistics.median(seconds),
            "largest_difference": max(abs(a.value - b.value) for a, b in pairs),
            "first_measurement": [pairs[0][0].metric, pairs[0][0].value, pairs[0][1].value],
            "peak_bytes": clock.peak(),
        }
    return out


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the figures as tables."""
    table = Table(title=f"{result['device']}: extraction, images a second ({result['extraction']['precision']})")
    for column in ("what", "images/s", "of the best bare", "of the best bare with autocast"):
        table.add_column(column, justify="left" if column == "what" else "right")
    found = result["extraction"]
    for name in ("best_bare", "best_bare_autocast"):
        table.add_row(name.replace("_", " "), f"{found[name]['images_per_second']:,.0f}", "", "")
    for name in ("memory", "jpeg"):
        row = found[name]
        speed, ratios = row["images_per_second"], (row["ratio"], row["ratio_autocast"])
        table.add_row(f"extract, {name}", f"{speed:,.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
    table = Table(title=f"A fused batch of {result['fusion']['batch']}, milliseconds (the paper: {PAPER_MS})")
    for column in ("sketch", "called", "least", "most", "as a graph"):
        table.add_column(column, justify="left" if column == "sketch" else "right")
    for name, row in result["fusion"]["milliseconds"].items():
        if "called" in row:
            graph = f"{row['graph']['median']:.4f}" if "graph" in row else ""
            table.add_row(name, *(f"{row['called'][k]:.4f}" for k in ("median", "least", "most")), graph)
    console.print(table)
    for name in ("to_host", "kept_on_device"):
        row = result["stream"][name]
        speed, share = row["rows_per_second"], row["of_the_floor"]
        what = f"{result['stream']['rows']:,} rows fused, {name.replace('_', ' ')}"
        console.print(f"{what}: {speed:,.0f} rows/s, {share:.2f} of the floor")
    table = Table(title=f"Probes of {result['probes']['rows']:,} × {result['probes']['dim']}")
    for column in ("probe", "CPU s", "device s", "times", "largest difference", "peak GB"):
        table.add_column(column, justify="left" if column == "probe" else "right")
    for name, row in result["probes"].items():
        if isinstance(row, dict):
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
            values = (row["cpu_seconds"], row["seconds"]["median"], row["speedup"])
            table.add_row(name, *(f"{v:.2f}" for v in values), f"{row['largest_difference']:.4f}", peak)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON, which is written after each stage")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu")
    parser.add_argument("--small", action="store_true", help="a few seconds' worth, whose figures mean nothing")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --small shows that the benchmark runs")
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    torch.set_float32_matmul_precision("highest")
    clock, sizes, console = Clock(device), SMALL if options.small else Sizes(), Console(width=120)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if clock.cuda else "CPU",
        "cuda": torch.version.cuda if clock.cuda else None,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "sizes": asdict(sizes),
        "versions": versions(),
        "seconds": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        stages: dict[str, Callable[[], Any]] = {
            "floors": lambda: floors(clock, sizes.square),
            "extraction": lambda: extraction(clock, sizes, Path(folder)),
            "probes": lambda: probed(clock, sizes),
            "stream": lambda: stream(clock, sizes, result["floors"]),
            "fusion": lambda: fusion(clock, sizes),
        }
        for name, stage in stages.items():
            start = time.perf_counter()
            result[name] = stage()
            result["seconds"][name] = time.perf_counter() - start
            console.print(f"{name}: {result['seconds'][name]:.1f} s")
            write_json(result, options.out)
    show(result, console)


if __name__ == "__main__":
    main()
