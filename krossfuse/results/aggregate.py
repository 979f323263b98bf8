"""From records to means with 95% intervals: over seeds, over few-shot subsets, or over test items.

Two figures belong together when they differ in nothing but the seed: same data, pair, configuration (by digest),
measurement and conditions. The interval of a group is

* ``subsets``: Student's t over few-shot subsets, where several were drawn (each averaged over the seeds first);
* ``seeds``: Student's t over seeds, where the method depends on the seed and several were run;
* ``items``: bootstrap over the test items, where one run is all there is (a deterministic method, or one seed);
* ``none``: one run whose metric is no mean over test items.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from krossfuse.core.errors import check_positive
from krossfuse.results.records import Record, Run

LEVEL = 0.95
RESAMPLES = 2000

METHOD = ("data", "pair", "fusion", "alignment", "sketch", "kernel", "dim", "config_digest", "variant")
"""Columns that together say which method was measured on what."""

CONDITIONS = ("split", "prompt_set", "shots", "form", "k", "temperature", "space")
"""Keys of a protocol that say what was measured; the others (a selected C, n of items) say how it went."""

SUBSET = "subset_seed"
"""Key of a protocol that says which few-shot subset was drawn."""

MEASURE = ("probe", "metric", "modality", "label_set", *CONDITIONS, "other")


def t_half_width(values: ArrayLike, level: float = LEVEL) -> float:
    """Return the half width of Student's t interval of the mean of ``values``, NaN for fewer than two.

    >>> round(t_half_width([0.5, 0.6, 0.7]), 4)
    0.2484
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        return float("nan")
    return float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))


def bootstrap_interval(
    items: ArrayLike, level: float = LEVEL, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``items`` (one axis).

    Resamples are drawn as counts of the distinct values, which is the same distribution as drawing items, and for
    scores of 0 and 1 costs nothing.
    """
    check_positive("resamples", resamples, integer=True)
    values, counts = np.unique(np.asarray(items, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    generator = np.random.default_rng(seed)
    block = max(1, 2**22 // len(values))
    means = np.concatenate(
        [
            generator.multinomial(n, counts / n, size=min(block, resamples - start)) @ values / n
            for start in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _plain(value: Any) -> str | float | int | bool:
    """Make a condition hashable and printable."""
    return value if isinstance(value, (str, int, float, bool)) else json.dumps(value, sort_keys=True, default=str)


def _row(run: Run, order: int, record: Record) -> dict[str, Any]:
    row = {
        f.name: getattr(record, f.name)
        for f in dataclasses.fields(record)
        if f.name not in ("protocol", "fusion_config", "versions")
    }
    described = {name: value for name, value in record.fusion_config.items() if name != "seed"}
    row["variant"] = "" if record.config_digest else json.dumps(described, sort_keys=True, default=str)
    row["fusion_seed"] = record.fusion_config.get("seed", record.seed)
    row["C"] = np.nan if record.C is None else record.C
    for name in CONDITIONS:
        row[name] = _plain(record.protocol.get(name, ""))
    row["other"] = ""
    row["subset"] = _plain(record.protocol.get(SUBSET, ""))
    row["run"], row["order"], row["record"] = run.name, order, record
    return row


def frame(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Return one row a record, and notes on what was left out.

    Columns are the record's fields, the conditions of its protocol, the few-shot ``subset``, its ``run`` and the
    ``record``. Of figures that were measured twice (same configuration, seed and subset in two runs) the newer
    run's stays. Where one run has several figures that the known conditions do not tell apart, the keys of their
    protocols that differ are added to the column ``other``.
    """
    ordered = sorted(runs, key=lambda run: (run.folder / "results.jsonl").stat().st_mtime_ns)
    rows = [_row(run, order, record) for order, run in enumerate(ordered) for record in run.records]
    if not rows:
        return pd.DataFrame(columns=[*METHOD, *MEASURE, "value"]), []
    table = pd.DataFrame(rows)
    repeat = [*METHOD, *MEASURE, "seed", "fusion_seed", "subset"]
    for _, group in table.groupby(["order", *repeat], sort=False, dropna=False):
        if len(group) > 1:
            table.loc[group.index, "other"] = _differences([record.protocol for record in group["record"]])
    latest = table.groupby(repeat, sort=False, dropna=False)["order"].transform("max")
    stale = table["order"] != latest
    notes = []
    if stale.any():
        names = sorted(table.loc[stale, "run"].unique())
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        notes.append(f"{int(stale.sum())} figures of {shown} were measured again by a newer run, whose figures stand")
    return table.loc[~stale].reset_index(drop=True), notes


def _differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name what tells some protocols apart: names alone where they do, since numbers mostly say how it went."""
    keys = sorted(set().union(*protocols))
    told = [k for k in keys if len({json.dumps(p.get(k), sort_keys=True, default=str) for p in protocols}) > 1]
    names = [k for k in told if all(isinstance(p.get(k, ""), str) for p in protocols)]
    if len({tuple(p.get(k, "") for k in names) for p in protocols}) == len(protocols):
        told = names
    return [", ".join(f"{k}={_plain(p[k])}" for k in told if k in p) for p in protocols]


def aggregate(runs: Sequence[Run], level: float = LEVEL) -> tuple[pd.DataFrame, list[str]]:
    """Group figures by everything but the seed.

    Returns:
        one row a group, in the order of the runs, and the notes of :func:`frame`. Columns: those of ``METHOD`` and
        ``MEASURE``; ``C`` (the mean, with ``C_low`` and ``C_high`` where it was selected run by run); ``mean``,
        ``low``, ``high`` and ``half_width`` in the metric's unit (NaN without an interval); ``interval``
        (``subsets``, ``seeds``, ``items``, ``none``); ``n`` (values behind the interval); ``seeds``; ``n_items``;
        ``seconds`` (mean); ``members``, the (run, record) behind it.
    """
    table, notes = frame(runs)
    by_name = {run.name: run for run in runs}
    rows = [
        dict(zip((*METHOD, *MEASURE), key, strict=True)) | _summary(group, by_name, level)
        for key, group in table.groupby([*METHOD, *MEASURE], sort=False, dropna=False)
    ]
    return pd.DataFrame(rows), notes


def _summary(group: pd.DataFrame, runs: Mapping[str, Run], level: float) -> dict[str, Any]:
    members = [(runs[name], record) for name, record in zip(group["run"], group["record"], strict=True)]
    subsets = group.groupby("subset", sort=True)["value"].mean()
    seeds = sorted({int(seed) for seed in group["seed"]})
    scores = [run.per_item.get(record.figure_id) for run, record in members]
    items = next((score for score in scores if score is not None), None)
    # A deterministic method under a probe that draws by the seed has figures that differ, and an interval over seeds.
    deterministic = bool(group["deterministic"].all()) and group["value"].nunique() == 1
    mean = float(subsets.mean())
    low = high = float("nan")
    interval, n = "none", 1
    if len(subsets) > 1:
        half = t_half_width(subsets.to_numpy(), level)
        interval, n, low, high = "subsets", len(subsets), mean - half, mean + half
    elif len(group) > 1 and not deterministic:
        half = t_half_width(group["value"].to_numpy(), level)
        interval, n, low, high = "seeds", len(group), mean - half, mean + half
    elif items is not None:
        low, high = bootstrap_interval(items, level)
        interval, n = "items", len(items)
    chosen = group["C"].dropna()
    return {
        "C": float(chosen.mean()) if len(chosen) else np.nan,
        "C_low": float(chosen.min()) if len(chosen) else np.nan,
        "C_high": float(chosen.max()) if len(chosen) else np.nan,
        "mean": mean,
        "low": low,
        "high": high,
        "half_width": (high - low) / 2,
        "interval": interval,
        "n": n,
        "seeds": seeds,
        "n_items": 0 if items is None else len(items),
        "deterministic": deterministic,
        "seconds": float(group["seconds"].mean()),
        "members": members,
    }
