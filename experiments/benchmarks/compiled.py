"""Fusing as torch.compile makes it (TorchInductor) against eager: rows a second by sketch and batch.

python -m experiments.benchmarks.compiled [--out FILE] [--dim 3000] [--batches 1 7 512] [--methods NAME ...]

Needs a C++ compiler.
Made features of 512 + 768, float32, as many threads as torch takes. ``eager`` is ``FusionMethod.encode``, its checks
included; medians of rounds that alternate between the two, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.common import timed, write_json
from krossfuse.core.errors import check_choice
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.export import FusionFunction, compiled
from krossfuse.fusion.kernels import CentredKernel, GaussianKernel
from krossfuse.fusion.methods import CCA, Attention, Comm, Concatenation, Gate, PCAConcatenation, RPKrossFuse
from krossfuse.fusion.named import SKETCHES
from krossfuse.fusion.sketches import SpectralSketch

INPUTS = InputSpec(cross_modal=512, image_experts={"expert": 768})
SPECTRAL = 768
"""Dimensions of the preset: what is fitted on few rows has no more."""
FIT_ROWS, ROUNDS, CLASSES = 2_000, 15, 10


def methods(dim: int) -> dict[str, Callable[[], FusionMethod]]:
    """Return what is measured, by name."""
    rp = partial(RPKrossFuse, inputs=INPUTS, alignment="exact", dim=dim)
    centred = partial(CentredKernel, power=0.7)
    preset = partial(rp, sketch=SpectralSketch, expert_kernel=centred, product_kernel=centred, dim=SPECTRAL)
    drawn = [name for name in SKETCHES if name not in ("kronecker", "joint_fourier", "spectral", "nystrom")]
    return {
        **{name: partial(rp, sketch=SKETCHES[name]) for name in drawn},
        "published": partial(rp, alignment="published"),
        "gaussian kernel": partial(rp, kernel=partial(GaussianKernel, features=1024)),
        "joint_fourier": partial(
            rp, sketch=SKETCHES["joint_fourier"], kernel=partial(GaussianKernel, features=dim // 2)
        ),
        "nystrom": partial(rp, sketch=SKETCHES["nystrom"], dim=SPECTRAL),
        "spectral": partial(rp, sketch=SpectralSketch, dim=SPECTRAL),
        "preset": preset,
        "preset, power 1/2": partial(preset, expert_kernel=partial(CentredKernel, power=0.5)),
        "preset, power 1": partial(preset, expert_kernel=partial(CentredKernel, power=1.0)),
        "concatenation": partial(Concatenation, inputs=INPUTS),
        "pca_concatenation": partial(PCAConcatenation, inputs=INPUTS, dim=256),
        "cca": partial(CCA, inputs=INPUTS, dim=256),
        "gate": partial(Gate, inputs=INPUTS, dim=512, epochs=1),
        "attention": partial(Attention, inputs=INPUTS, dim=512, epochs=1),
        "comm": partial(Comm, inputs=INPUTS, dim=768, epochs=1),
    }


def features(rows: int, seed: int) -> list[Tensor]:
    """Return made features of both parents."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, dim, generator=generator) for dim in (512, 768)]


def measure(
    dim: int, batches: Sequence[int], names: Sequence[str] | None = None, rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """Yield, by method and batch: rows a second of both, their ratio, the largest difference, the seconds to compile.

    Args:
        dim: of the sketches.
        batches: rows at a time.
        names: of the methods; None = all.
        rounds: of which the medians are taken.
    """
    every = methods(dim)
    for name in every if names is None else [check_choice("--methods", name, every) for name in names]:
        method = every[name]()
        roles = FusionFunction(method, "image").roles
        labels = torch.arange(FIT_ROWS) % CLASSES if method.trained else None
        method.fit(image=dict(zip(roles, features(FIT_ROWS, 0), strict=True)), labels=labels)
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
            yield {
                "method": name,
                "rows": rows,
                "eager_rows_per_second": rate["eager"],
                "compiled_rows_per_second": rate["compiled"],
                "ratio": rate["compiled"] / rate["eager"],
                "largest_difference": difference,
                "compile_seconds": seconds,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--dim", type=int, default=3000)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 7, 512])
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(methods(3000))} (default: all)")
    options = parser.parse_args()
    found = []
    for row in measure(options.dim, options.batches, options.methods):
        found.append(row)
        print(
            f"{row['method']:20} {row['rows']:4} rows: eager {row['eager_rows_per_second']:9.0f}/s, compiled "
            f"{row['compiled_rows_per_second']:9.0f}/s, ratio {row['ratio']:.2f}, "
            f"difference {row['largest_difference']:.1e}",
            flush=True,
        )
    write_json(found, options.out)


if __name__ == "__main__":
    main()
