"""A search of 60 trials beside the grid of 240 points that it searches: how near it comes, and what either costs.

python -m experiments.benchmarks.optuna_search [--out FILE] [--folder FOLDER] [--samplers N]     (krossfuse[optuna])

Dimension × C × expert weight × sketch of RP-KrossFuse on OpenMoji's bundled features; the objective is accuracy over
subgroups by nearest neighbours (``knn``). The best of the search is compared with the best of the grid on the same test
items, paired. Both are picked on these items: it says how well a search does a grid's work, not how good the winner is.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.common import write_json
from krossfuse.results.inference import Scores
from krossfuse.results.runs import Run, read_run, read_runs
from krossfuse.results.significance import as_scores, compare

SPACE = {
    "fusion.dim": ("320", "384", "512", "768", "1024"),
    "fusion.C": ("0.1", "0.3", "1", "3"),
    "fusion.expert_weight": ("0", "1", "2", "4"),
    "fusion/sketch": ("spectral", "srht", "uniform"),
}
FIXED = ["data=openmoji", "fusion=rp_krossfuse", "fusion.alignment=exact", "probe=[knn]", "logger=none"]
FIXED += ["probe.knn.label_sets=[subgroup]", "extraction.progress=false"]
OBJECTIVE, TRIALS = "knn/accuracy/image/subgroup/temperature=0.07", 60


def command(folder: Path, *arguments: str) -> float:
    """Run a sweep into a folder; returns its seconds."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "krossfuse", "-m", *FIXED, *arguments, f"hydra.sweep.dir={folder}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def accuracy(run: Run) -> tuple[float, Scores]:
    """Return the objective of a run and its items' own scores."""
    (record,) = (r for r in run.records if (r.probe, r.metric, r.label_set) == ("knn", "accuracy", "subgroup"))
    scores = run.scores(record.figure_id)
    assert scores is not None
    return record.value, as_scores(np.asarray(scores, dtype=np.float64)[None], deterministic=True)


def best_trial(folder: Path) -> tuple[Run, int, float]:
    """Return the run of a search's best trial, after how many trials it came, and the number of distinct points."""
    with (folder / "search.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "complete"]
    best = max(rows, key=lambda row: float(row[OBJECTIVE]))
    return read_run(folder / best["runs"].split()[0]), int(best["trial"]) + 1, len({row["runs"] for row in rows})


def measure(folder: Path, samplers: int = 3, trials: int = TRIALS) -> dict[str, Any]:
    """Compute the grid, search it with so many samplers' seeds, and compare.

    Args:
        folder: where the sweeps go; a grid that lies there is gone on with.
        samplers: seeds of the sampler.
        trials: of each search.

    Returns:
        ``grid_points``, ``grid_best`` (accuracy) and ``grid_seconds``; by sampler's seed in ``searches``: ``best``, its
        ``rank`` in the grid (1 is the best), ``difference`` to the grid's best with its 95 % interval, ``verdict``,
        ``found_after`` trials, ``distinct_points`` computed, ``seconds``.
    """
    sweep = [f"{key}={','.join(values)}" for key, values in SPACE.items()]
    seconds = command(folder / "grid", *sweep, *(["hydra.sweeper.resume=true"] if (folder / "grid").exists() else []))
    grid = [accuracy(run) for run in read_runs(folder / "grid")]
    assert len(grid) == math.prod(map(len, SPACE.values()))
    value, scores = max(grid, key=lambda point: point[0])
    result: dict[str, Any] = {"grid_points": len(grid), "grid_best": value, "grid_seconds": seconds, "searches": []}
    result["grid_median"] = float(np.median([v for v, _ in grid]))
    for seed in range(samplers):
        of_search = [f"hydra.sweeper.objectives=['{OBJECTIVE}']", f"hydra.sweeper.trials={trials}"]
        of_search += [f"hydra.sweeper.sampler.seed={seed}", "hydra/sweeper=search"]
        seconds = command(folder / f"search-{seed}", *of_search, *sweep)
        run, after, distinct = best_trial(folder / f"search-{seed}")
        found, own = accuracy(run)
        compared = compare(own, scores)
        result["searches"].append(
            {
                "best": found,
                "rank": 1 + sum(v > found for v, _ in grid),
                "difference": compared.difference,
                "interval": [compared.low, compared.high],
                "verdict": compared.verdict,
                "found_after": after,
                "distinct_points": distinct,
                "seconds": seconds,
            }
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--folder", type=Path, help="keep the sweeps here; a grid that is there is not computed again")
    parser.add_argument("--samplers", type=int, default=3, help="seeds of the sampler")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options.folder or Path(scratch), options.samplers)
    print(write_json(result, options.out))


if __name__ == "__main__":
    main()
