"""Time and memory of label propagation: ``python -m experiments.benchmarks.propagation --out FILE``.

Random unit features in float32 (clustered about the class texts, so that the graph is connected as real ones are),
half train and half test. Written: seconds of the whole probe, the most anonymous memory above what the features take,
and the record of the graph. ``--kernel product`` searches under the exact product
of two parents with as many dimensions each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.common import Peak, write_json
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.probes.graph_kernels import KERNELS
from krossfuse.probes.propagation import Propagation
from krossfuse.probes.space import EmbeddingSpace


def make_space(n: int, dim: int, classes: int, *, seed: int = 0) -> EmbeddingSpace:
    """Return a space of ``n`` images and one text a class."""
    g = torch.Generator().manual_seed(seed)
    texts = torch.nn.functional.normalize(torch.randn(classes, dim, generator=g), dim=1)
    labels = torch.randint(classes, (n,), generator=g)
    parts, parents = {Part.prompts("class", "plain"): texts}, {}
    by_split = dict(zip(("train", "test"), labels.chunk(2), strict=True))
    for split, own in by_split.items():
        part = Part(split, "image")
        parts[part] = torch.randn(len(own), dim, generator=g).div_(dim**0.5).add_(texts[own], alpha=0.3)
        parts[part] /= parts[part].norm(dim=1, keepdim=True)
        parents[part] = {"cross_modal": parts[part], "expert": parts[part].flip(1)}
    names = tuple(f"class {i}" for i in range(classes))
    prompts = {"plain": Prompts(names, torch.arange(classes))}
    return EmbeddingSpace(
        DatasetInfo("synthetic", {}, {"class": LabelSet(names, by_split, prompts)}), parts, parents=parents
    )


def measure(probe: Propagation, space: EmbeddingSpace) -> dict[str, Any]:
    """Return seconds, memory and the record of one evaluation."""
    with Peak() as peak:
        start = time.perf_counter()
        result = probe.evaluate(space, seed=0)
        seconds = time.perf_counter() - start
    accuracy = next(m for m in result.measurements if m.metric == "accuracy")
    kept = ("n_graph", "n_edges", "n_components", "cg_iterations", "cg_residual")
    return {
        "seconds": round(seconds, 2),
        "peak_megabytes": round((peak.bytes - peak.before) / 2**20, 1),
        **{key: accuracy.protocol[key] for key in kept},
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--kernel", choices=KERNELS, default="fused")
    parser.add_argument("--index", default="exact")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    space = make_space(given.rows, given.dim, given.classes)
    measured = measure(Propagation(kernel=given.kernel, index=given.index), space)
    options = {key: value for key, value in vars(given).items() if key != "out"}
    print(write_json({**options, **measured}, given.out))


if __name__ == "__main__":
    main()
