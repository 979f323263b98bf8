"""The study's table and claims, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from krossfuse.federated.mnist import CLIENTS, CLIP, DELTA, RELEASED_STEP, ROUNDS, SIGMA, VARIANTS
from krossfuse.privacy import Accountant

TAIL = 4
"""Evaluations that the last rounds' mean accuracy is taken over, since a single round moves by a point."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval; NaN for a single value."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), math.nan
    width = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(width)


def measures(record: dict[str, Any]) -> dict[str, float]:
    """Return what the table shows of a run, in percent and bits."""
    evaluated = [h for h in record["history"] if "accuracy" in h]
    early = [h["validation"] for h in evaluated if h["round"] == 20]
    return {
        "test": 100 * evaluated[-1]["accuracy"],
        "tail": 100 * float(np.mean([h["accuracy"] for h in evaluated[-TAIL:]])),
        "round_20": 100 * early[0] if early else math.nan,
        "bits": record["bits_per_coordinate"],
    }


def table(records: Sequence[dict[str, Any]], model: str) -> str:
    """Return the Markdown table of a model."""
    lines = [
        f"| {model} | seeds | test accuracy, round {ROUNDS} | mean of the last {TAIL} evaluations | "
        "validation, round 20 | bits a coordinate |",
        "|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        runs = [measures(r) for r in records if r["model"] == model and r["variant"] == variant]
        if not runs:
            continue
        cells = [
            "{:.2f} ± {:.2f}".format(*interval([run[name] for run in runs])) for name in ("test", "tail", "round_20")
        ]
        bits = float(np.mean([run["bits"] for run in runs]))
        lines.append(f"| {variant} | {len(runs)} | {' | '.join(cells)} | {bits:.3f} |")
    return "\n".join(lines)


def difference(records: Sequence[dict[str, Any]], model: str, one: str, other: str, name: str) -> dict[str, Any]:
    """Return the paired difference of two variants over the seeds that both have, with its 95 % interval."""
    runs = {(r["variant"], r["seed"]): measures(r)[name] for r in records if r["model"] == model}
    seeds = sorted(seed for variant, seed in runs if variant == one and (other, seed) in runs)
    mean, width = interval([runs[one, seed] - runs[other, seed] for seed in seeds]) if seeds else (math.nan, math.nan)
    return {"seeds": len(seeds), "difference": mean, "half_width": width, "within": bool(abs(mean) <= width)}


def claims(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the study must show, by model."""
    accountant = Accountant()
    accountant.step(noise_std=math.sqrt(CLIENTS) * SIGMA, clip=CLIP, rounds=ROUNDS)
    out: dict[str, Any] = {
        "privacy": {"unit": "client", "delta": DELTA, "rounds": ROUNDS, "epsilon": accountant.epsilon(DELTA)},
        "released_step": RELEASED_STEP,
    }
    for model in sorted({r["model"] for r in records}):
        bits = {
            variant: float(
                np.mean([r["bits_per_coordinate"] for r in records if (r["model"], r["variant"]) == (model, variant)])
            )
            for variant in {r["variant"] for r in records if r["model"] == model}
        }
        pairs = [
            ("cepam", "gaussian"),
            ("cepam", "fedavg"),
            ("released", "fedavg_x1.2732"),
            ("released", "fedavg"),
            ("fedavg_x1.2732", "fedavg"),
        ]
        out[model] = {
            "float32_over_cepam": bits.get("fedavg", math.nan) / bits.get("cepam", math.nan),
            "gaussian_sdq_over_cepam": bits.get("gaussian_sdq", math.nan) / bits.get("cepam", math.nan),
            **{
                f"{one} - {other}": {
                    name: difference(records, model, one, other, name) for name in ("tail", "test", "round_20")
                }
                for one, other in pairs
                if {one, other} <= set(bits)
            },
        }
    return out
