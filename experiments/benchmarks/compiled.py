"""Fusing as torch.compile makes it (TorchInductor) against eager: rows a second by sketch and batch.

python -m experiments.benchmarks.compiled [--out FILE] [--dim 3000] [--batches 1 128 512]     (needs a C++ compiler)

Made features of 512 + 768, float32, as many threads as torch takes. ``eager`` is ``FusionMethod.encode``, its checks
included; medians of rounds that alternate between the two, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.common import timed, write_json
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.export import FusionFunction, compiled
from krossfuse.fusion.kernels import CentredKernel
from krossfuse.fusion.methods import Concatenation, RPKrossFuse
from krossfuse.fusion.sketches import SpectralSketch, SRHTSketch, TensorSketch, UniformSketch

INPUTS = InputSpec(cross_modal=512, image_experts={"expert": 768})
FIT_ROWS, ROUNDS = 2_000, 15


def methods(dim: int) -> dict[str, Callable[[], FusionMethod]]:
    """Return what is measured, by name."""
    rp = partial(RPKrossFuse, inputs=INPUTS, alignment="exact", dim=dim)
    spectral = partial(rp, sketch=SpectralSketch, expert_kernel=CentredKernel, product_kernel=CentredKernel, dim=768)
    return {
        "uniform": partial(rp, sketch=UniformSketch),
        "srht": partial(rp, sketch=SRHTSketch),
        "tensor_sketch": partial(rp, sketch=TensorSketch),
        "spectral, 768": spectral,
        "concatenation": partial(Concatenation, inputs=INPUTS),
    }


def features(rows: int, seed: int) -> list[Tensor]:
    """Return made features of both parents."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, dim, generator=generator) for dim in (512, 768)]


def measure(dim: int, batches: Sequence[int], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Return, by method and batch: rows a second of both, their ratio, the largest difference, the seconds to compile.

    Args:
        dim: of the sketches.
        batches: rows at a time.
        rounds: of which the medians are taken.
    """
    found = []
    for name, make in methods(dim).items():
        method = make()
        roles = FusionFunction(method, "image").roles
        method.fit(image=dict(zip(roles, features(FIT_ROWS, 0), strict=True)))
        torch._dynamo.reset()
        fast = compiled(method, "image")
        seconds, _ = timed(partial(fast, *features(max(batches), 1)))
        for rows in batches:
            given = features(rows, 2)
            by_role = dict(zip(roles, given, strict=True))
            difference = float((fast(*given) - method.encode("image", by_role)).abs().max())
            times: dict[str, list[float]] = {"eager": [], "compiled": []}
            repeats = max(1, 2_000 // rows)
            for _ in range(rounds):
                for what, call in (
                    ("eager", partial(method.encode, "image", by_role)),
                    ("compiled", partial(fast, *given)),
                ):
                    times[what].append(timed(call, repeats)[0])
            rate = {what: rows / statistics.median(each) for what, each in times.items()}
            found.append(
                {
                    "method": name,
                    "rows": rows,
                    "eager_rows_per_second": rate["eager"],
                    "compiled_rows_per_second": rate["compiled"],
                    "ratio": rate["compiled"] / rate["eager"],
                    "largest_difference": difference,
                    "compile_seconds": seconds,
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--dim", type=int, default=3000)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128, 512])
    options = parser.parse_args()
    found = measure(options.dim, options.batches)
    write_json(found, options.out)
    for row in found:
        print(
            f"{row['method']:14} {row['rows']:4} rows: eager {row['eager_rows_per_second']:9.0f}/s, compiled "
            f"{row['compiled_rows_per_second']:9.0f}/s, ratio {row['ratio']:.2f}, "
            f"difference {row['largest_difference']:.1e}"
        )


if __name__ == "__main__":
    main()
