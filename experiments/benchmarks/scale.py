"""Time and memory a row from 100,000 rows on: ``python -m experiments.benchmarks.scale --largest 10000000 --out FILE``.

The features, 512 of a cross-modal encoder and 768 of an expert a row, are made when they are read and lie nowhere: as
shards (:mod:`krossfuse.core.sharded`) that are drawn from their own numbers. They are fused into a file, and the fused
set is probed: a linear head by SGD (one epoch), blocked logistic regression, k-NN of some queries in all rows,
retrieval of all rows by some captions. Sizes grow by √10, each in turn, in one process.

Written for each size and stage: seconds, microseconds a row, and for the size the peak of the process's anonymous
memory (neither a mapped file nor shared), labels and all. ``flatness`` is, by stage, the time a row of the largest size
over that of the smallest (logistic regression takes more iterations for more rows, which
are written too). With ``--out`` a plot lies beside the JSON.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.common import Peak, write_json
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.heap import kept_heap
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import CROSS_MODAL, Part
from krossfuse.core.sharded import below_one_another
from krossfuse.fusion.methods import RPKrossFuse
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.stream import inputs_of
from krossfuse.probes import KNN, LinearProbe, Probe, Retrieval, SGDProbe
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.results.versions import versions

DIMS = {CROSS_MODAL: 512, "expert": 768}
CLASSES, FEW, SHARD = 10, 1024, 8192


class Made:
    """One shard of made features, drawn when it is read: class means and noise, no two rows alike.

    Args:
        role: of the features; seeds means and noise.
        labels: (rows,) of its rows.
        number: of the shard; seeds the signs and the order of the noise.
    """

    dtype, device = torch.float32, torch.device("cpu")
    noise: dict[str, tuple[Tensor, Tensor]] = {}  # noqa: RUF012 - drawn once for all shards

    def __init__(self, role: str, labels: Tensor, number: int) -> None:
        self.role, self.labels, self.number = role, labels, number
        self.shape = (len(labels), DIMS[role])
        if role not in self.noise:
            g = torch.Generator().manual_seed(DIMS[role])
            dim = DIMS[role]
            self.noise[role] = torch.randn(CLASSES, dim, generator=g), torch.randn(SHARD, dim, generator=g)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Tensor:
        means, noise = self.noise[self.role]
        g = torch.Generator().manual_seed(self.number)
        signs = torch.randint(2, (DIMS[self.role],), generator=g) * 2.0 - 1.0
        chosen = torch.arange(len(self))[rows]
        return means[self.labels[chosen]] + noise[(chosen + self.number * 7919) % SHARD] * signs


def made(rows: int) -> FeatureBundle:
    """Return a bundle of ``rows`` training images, some others, and captions of some training images."""
    g = torch.Generator().manual_seed(0)
    sizes = {"train": rows, "val": FEW, "test": FEW}
    labels = {split: torch.randint(CLASSES, (n,), generator=g) for split, n in sizes.items()}
    described = torch.randperm(rows, generator=g)[:256].sort().values
    features: dict[Part, dict[str, Tensor]] = {}
    for at, split in enumerate(sizes):
        features[Part(split, "image")] = {
            role: below_one_another(
                [Made(role, of, at << 40 | i) for i, of in enumerate(labels[split].split(SHARD))]  # type: ignore[misc]
            )
            if sizes[split] > SHARD
            else Made(role, labels[split], at << 40)[:]
            for role in DIMS
        }
    captions = features[Part("train", "image")][CROSS_MODAL][described]
    features[Part("train", "text")] = {CROSS_MODAL: captions + 0.1 * torch.randn(captions.shape, generator=g)}
    names = tuple(f"class {k}" for k in range(CLASSES))
    info = DatasetInfo("made", {"rows": rows}, {"class": LabelSet(names, labels)}, {"train": described})
    return FeatureBundle(info, "made", features)


def measure(rows: int, dim: int, folder: Path) -> dict[str, Any]:
    """Return seconds by stage, the peak of own memory, and the measurements."""
    seconds: dict[str, float] = {}
    values: dict[str, float] = {}
    iterations = 0
    probes: dict[str, Probe] = {
        "SGD": SGDProbe(learning_rates=[1.0], weight_decays=[0.0], epochs=1, batch_size=1024, modalities=["image"]),
        "logistic regression": LinearProbe(grid=[1.0], refit=False, tol=1e-2, modalities=["image"]),
        "k-NN": KNN(ks=[5], refit=False),
        "retrieval": Retrieval(split="train"),
    }
    with Peak() as peak, kept_heap():
        bundle = made(rows)
        start = time.perf_counter()
        train = bundle[Part("train", "image")]
        for first in range(0, rows, 4096):
            for x in train.values():
                _ = x[first : first + 4096]
        seconds["making the features"] = time.perf_counter() - start
        start = time.perf_counter()
        module = FusionModule(RPKrossFuse(inputs=inputs_of(bundle), dim=dim))
        module.fit(bundle)
        space = EmbeddingSpace(bundle.info, module.fuse(bundle, memory_limit=64 << 20, folder=folder))
        seconds["fusion"] = time.perf_counter() - start
        for name, probe in probes.items():
            start = time.perf_counter()
            result = probe.evaluate(space, seed=0)
            seconds[name] = time.perf_counter() - start
            values[name] = result.measurements[0].value
            iterations += result.measurements[0].protocol.get("iterations", 0)
    return {
        "rows": rows,
        "seconds": seconds,
        "microseconds_a_row": {name: of / rows * 1e6 for name, of in seconds.items()},
        "peak_own_bytes": peak.bytes,
        "fused_file_bytes": rows * dim * 4,
        "first_measurement": values,
        "logistic_iterations": iterations,
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the time a row over the number of rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = [result["rows"] for result in results]
    for stage in results[0]["seconds"]:
        axes.plot(sizes, [result["microseconds_a_row"][stage] for result in results], marker="o", label=stage)
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="microseconds a row")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON; the plot lies beside it")
    parser.add_argument("--smallest", type=int, default=100_000)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128, help="of the fused embeddings")
    parser.add_argument("--folder", type=Path, help="where the fused embeddings are written, and removed")
    options = parser.parse_args()
    sizes, size = [], float(options.smallest)
    while size < options.largest * 0.99:
        sizes.append(round(size))
        size *= 10**0.5
    results = []
    for rows in [*sizes, options.largest]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results.append(measure(rows, options.dim, Path(folder)))
        print(f"{rows:,} rows: {sum(results[-1]['seconds'].values()):.0f} s", flush=True)
    first, last = results[0]["microseconds_a_row"], results[-1]["microseconds_a_row"]
    result = {
        "sizes": results,
        "flatness": {stage: last[stage] / first[stage] for stage in first},
        "largest_peak_own_bytes": max(of["peak_own_bytes"] for of in results),
        "dims": DIMS,
        "fused_dim": options.dim,
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "versions": versions(),
    }
    print(write_json(result, options.out))
    if options.out:
        plot(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
