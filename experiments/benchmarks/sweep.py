"""What a sweep costs beside fusing and probing: imports, composing, and what every cached point adds.

python -m experiments.benchmarks.sweep [--out FILE] [--points N] [--logger wandb] [--runs 10000]

The points are of made embeddings (cached, small), so that what is measured is the overhead; fusing and probing are
timed inside and subtracted. Then the report of a made sweep of ``--runs`` runs (:mod:`experiments.benchmarks.report`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import report

IMPORTS = """
import krossfuse.app.job
from krossfuse.core.collector import uncollected
with uncollected(for_good=True):  # as krossfuse.app.build.make_kind does
    import krossfuse.app.fuse_and_probe
"""


def import_seconds(repeats: int = 3) -> float:
    """Return the median wall time of a process that imports what a job imports, without the bare interpreter's."""

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return statistics.median(seconds(IMPORTS) - seconds("pass") for _ in range(repeats))


def embeddings(path: Path) -> None:
    """Write three classes under two encoders."""
    rng = np.random.default_rng(0)
    clip, dino = rng.normal(size=(3, 16)), rng.normal(size=(3, 20))
    made: dict[str, Any] = {"classes": np.array(["cat", "dog", "owl"]), "prompts/text/clip": clip.astype(np.float32)}
    for split, size in {"train": 90, "val": 30, "test": 60}.items():
        labels = np.arange(size) % 3
        made[f"{split}/labels"] = labels
        for key, means in (("image/clip", clip), ("text/clip", clip), ("image/dinov2", dino)):
            made[f"{split}/{key}"] = (means[labels] + rng.normal(size=(size, means.shape[1]))).astype(np.float32)
    np.savez(path, **made)


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return a function that adds the seconds of each call to a list."""

    def call(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent.append(time.perf_counter() - start)

    return call


def measure(points: int = 200, logger: str = "wandb") -> dict[str, float]:
    """Run a sweep of so many cached points in this process.

    Returns:
        ``import_seconds``; ``compose_seconds_per_point`` (composing and checking); ``overhead_per_point`` (all of a
        point but fusing and probing, its own run in the tracker included, without the sweep's report);
        ``points_per_second`` (all of a point).
    """
    from krossfuse.app import fuse_and_probe
    from krossfuse.app.command import main
    from krossfuse.app.launching import Launching
    from krossfuse.app.plan import Planner

    spent: dict[str, list[float]] = {"plan": [], "launch": [], "fuse": [], "probe": []}
    replaced: list[tuple[Any, str, str]] = [
        (Planner, "plan", "plan"),
        (Launching, "__call__", "launch"),
        (fuse_and_probe, "fuse", "fuse"),
        (fuse_and_probe, "probe_all", "probe"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    argv = sys.argv
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        embeddings(Path("features.npz"))
        sys.argv = ["krossfuse", "-m", "data=embeddings", "data.path=features.npz", "probe=[zero_shot]"]
        sys.argv += [f"logger={logger}", "fusion.dim=24,32", f"seed=range({points // 2})", "hydra.sweep.dir=sweep"]
        try:
            for owner, name, what in replaced:
                setattr(owner, name, timed(getattr(owner, name), spent[what]))
            with contextlib.redirect_stdout(io.StringIO()):
                main()
        finally:
            sys.argv = argv
            for owner, name, function in before:
                setattr(owner, name, function)
        done = len(list(Path("sweep").glob("*/status.json")))
    launch, inside = sum(spent["launch"]), sum(spent["fuse"]) + sum(spent["probe"])
    return {
        "points": float(done),
        "import_seconds": import_seconds(),
        "compose_seconds_per_point": sum(spent["plan"]) / done,
        "overhead_per_point": (launch - inside) / done,
        "points_per_second": done / launch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--logger", default="wandb", choices=["wandb", "csv", "none"])
    parser.add_argument("--runs", type=int, default=report.RUNS, help="of the report that is measured; 0: none")
    options = parser.parse_args()
    if options.points < 2 or options.runs < 0:
        parser.error("--points must be 2 or more, and --runs 0 or more")
    os.environ.setdefault("WANDB_SILENT", "true")
    result: dict[str, float | None] = {**measure(options.points, options.logger)}
    if options.runs:
        result |= report.measure(options.runs)
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
