"""From records to means with 95% intervals: over seeds, few-shot subsets and test items together.

Two measurements belong together when they differ in nothing but the seed: same data, pair, configuration (by digest),
measurement and conditions. What their interval is over depends on what there is (:mod:`krossfuse.results.inference`):

* ``items``: the test items' own scores, where the metric is their mean;
* ``seeds``: where several were run and the seed changes something;
* ``subsets``: few-shot subsets, folds or starts, where several were drawn;
* several of them, e.g. ``seeds+items``, or ``none``: one run whose metric is no mean over test items.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from krossfuse.results.digest import items_digest
from krossfuse.results.inference import LEVEL, Scores, interval_of_mean
from krossfuse.results.records import Record
from krossfuse.results.runs import Run

METHOD = ("data", "pair", "fusion", "dim", "method", "variant")
"""Columns that together say which method was measured on what; ``method`` is the digest without the probe's options."""

CONDITIONS = ("split", "prompt_set", "shots", "form", "k", "temperature", "space", "federation")
"""Keys of a protocol that say what was measured; the others (a selected C, n of items) say how it went."""

OUTCOMES = frozenset({"statement", "history"})
"""Keys of a protocol that describe what came of it at length, and so tell no two measurements apart."""

SUBSET = "subset_seed"
"""Key of a protocol that says which few-shot subset was drawn."""

MEASURE = ("probe", "metric", "modality", "label_set", *CONDITIONS, "other")

Member = tuple[Run, Record]


def _plain(value: Any) -> str | float | int | bool:
    """Make a condition hashable and printable."""
    return value if isinstance(value, (str, int, float, bool)) else json.dumps(value, sort_keys=True, default=str)


def _row(run: Run, order: int, record: Record) -> dict[str, Any]:
    row = {
        f.name: getattr(record, f.name)
        for f in dataclasses.fields(record)
        if f.name not in ("protocol", "fusion_config", "versions", "declared")
    }
    described = {name: value for name, value in record.fusion_config.items() if name != "seed"}
    row["method"] = record.method_digest or record.config_digest
    row["variant"] = "" if row["method"] else json.dumps(described, sort_keys=True, default=str)
    row["fusion_seed"] = record.fusion_config.get("seed", record.seed)
    for name in CONDITIONS:
        row[name] = _plain(record.protocol.get(name, ""))
    row["other"] = ""
    row["subset"] = _plain(record.protocol.get(SUBSET, ""))
    row["run"], row["order"], row["record"] = run.name, order, record
    return row


def frame(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Return one row a record, and notes on what was left out.

    Columns are the record's fields, the conditions of its protocol, the few-shot ``subset``, its ``run`` and the
    ``record``. Of what was measured twice (same configuration, seed and subset in two runs) the newer run's stays.
    Where the known conditions do not tell measurements of one run apart, or of one method under several options of a
    probe, the keys of their protocols that differ are added to the column ``other``.
    """
    ordered = sorted(runs, key=lambda run: (run.folder / "results.jsonl").stat().st_mtime_ns)
    rows = [_row(run, order, record) for order, run in enumerate(ordered) for record in run.records]
    if not rows:
        return pd.DataFrame(columns=[*METHOD, *MEASURE, "config_digest", "value"]), []
    table = pd.DataFrame(rows)
    repeat = [*METHOD, *MEASURE, "config_digest", "seed", "fusion_seed", "subset"]
    for _, group in table.groupby(["order", *repeat], sort=False, dropna=False):
        if len(group) > 1:
            table.loc[group.index, "other"] = _differences([record.protocol for record in group["record"]])
    latest = table.groupby(repeat, sort=False, dropna=False)["order"].transform("max")
    stale = table["order"] != latest
    notes = []
    if stale.any():
        names = sorted(table.loc[stale, "run"].unique())
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        notes.append(f"{int(stale.sum())} measurements of {shown} were made again by a newer run, whose values stand")
    table = table.loc[~stale].reset_index(drop=True)
    _tell_options_apart(table)
    return table, notes


def _tell_options_apart(table: pd.DataFrame) -> None:
    """Fill ``other`` where one method was measured by a probe under several options."""
    for _, group in table.groupby([*METHOD, *MEASURE], sort=False, dropna=False):
        digests = list(dict.fromkeys(group["config_digest"]))
        if len(digests) == 1 or group["method"].iloc[0] in digests:  # old records have but one digest
            continue
        firsts = [group.loc[group["config_digest"] == digest, "record"].iloc[0] for digest in digests]
        texts = _differences([record.protocol for record in firsts])
        if len(set(texts)) < len(texts):
            texts = [f"options {digest[:6]}" for digest in digests]
        for digest, text in zip(digests, texts, strict=True):
            rows = group.index[group["config_digest"] == digest]
            table.loc[rows, "other"] = [", ".join(filter(None, (old, text))) for old in table.loc[rows, "other"]]


def _differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name what tells some protocols apart: names alone where they do, since numbers mostly say how it went."""
    keys = sorted(set().union(*protocols) - OUTCOMES)
    differing = [k for k in keys if len({json.dumps(p.get(k), sort_keys=True, default=str) for p in protocols}) > 1]
    names = [k for k in differing if all(isinstance(p.get(k, ""), str) for p in protocols)]
    if len({tuple(p.get(k, "") for k in names) for p in protocols}) == len(protocols):
        differing = names
    return [", ".join(f"{k}={_plain(p[k])}" for k in differing if k in p) for p in protocols]


def scores_of(members: Sequence[Member]) -> Scores:
    """Return the scores of one method on one measurement, from the records of its runs and subsets.

    Where the runs have no scores of their items, or not of the same items, or the metric is no mean of them, an item
    stands for the value. Where not every seed has every subset, the seeds are averaged.
    """
    values: dict[tuple[Any, ...], dict[str, np.ndarray[Any, Any]]] = {}
    items = [_item_scores(run, record) for run, record in members]
    usable = len({None if own is None else len(own) for own in items}) == 1 and items[0] is not None
    for (_, record), own in zip(members, items, strict=True):
        seed = (record.seed, record.fusion_config.get("seed", record.seed))
        score = own if usable and own is not None else np.array([record.value])
        values.setdefault(seed, {})[str(_plain(record.protocol.get(SUBSET, "")))] = score
    subsets = sorted({subset for by_subset in values.values() for subset in by_subset})
    if all(len(by_subset) == len(subsets) for by_subset in values.values()):
        grid = np.array([[by_subset[subset] for subset in subsets] for by_subset in values.values()])
    else:
        each = [[v[subset] for v in values.values() if subset in v] for subset in subsets]
        grid = np.array([[np.mean(rows, axis=0) for rows in each]])
    deterministic = all(record.deterministic for _, record in members)
    if deterministic and (grid == grid[:1]).all():
        return Scores(grid[:1], True, tuple(subsets))
    # A deterministic method under a probe that draws by the seed varies with it all the same.
    return Scores(grid, deterministic and len(grid) == 1, tuple(subsets))


def _item_scores(run: Run, record: Record) -> np.ndarray[Any, Any] | None:
    own = run.per_item.get(record.figure_id)
    if own is None:
        return None
    wide = own.astype(np.float64)
    return wide if np.isclose(wide.mean(), record.value, rtol=1e-4, atol=1e-6) else None


def aggregate(runs: Sequence[Run], level: float = LEVEL) -> tuple[pd.DataFrame, list[str]]:
    """Group measurements by everything but the seed.

    Returns:
        one row a group, in the order of the runs, and the notes of :func:`frame`. Columns: those of ``METHOD`` and
        ``MEASURE``; ``config_digest``; ``mean``, ``low``, ``high`` and ``half_width`` in the metric's unit (NaN without
        an interval, and within the metric's bounds); ``interval`` (over what, see above); ``spread_unknown`` (one seed
        of a random method); ``n`` (values behind the interval, of its first factor); ``seeds``; ``n_items``;
        ``seconds`` (mean); ``scores`` (:class:`Scores`); ``items_digest`` (cells that share it are on the same items,
        see :func:`krossfuse.results.digest.items_digest`); ``members``, the (run, record) behind it.
    """
    table, notes = frame(runs)
    by_name = {run.name: run for run in runs}
    keys = [*METHOD, *MEASURE, "config_digest"]
    rows = [
        dict(zip(keys, key, strict=True)) | _summary(group, by_name, level)
        for key, group in table.groupby(keys, sort=False, dropna=False)
    ]
    return pd.DataFrame(rows), notes


def _summary(group: pd.DataFrame, runs: Mapping[str, Run], level: float) -> dict[str, Any]:
    members = [(runs[name], record) for name, record in zip(group["run"], group["record"], strict=True)]
    scores = scores_of(members)
    low, high, spread = interval_of_mean(scores, level)
    metric = members[0][1].declaration()
    low = low if metric.low is None else max(low, metric.low)
    high = high if metric.high is None else min(high, metric.high)
    n_items = spread.n_items if spread.n_items > 1 else 0
    sources = {name: part.draws for name, part in spread.parts.items()} | ({"items": n_items} if n_items else {})
    return {
        "mean": float(group.groupby("subset", sort=True)["value"].mean().mean()),
        "low": low,
        "high": high,
        "half_width": (high - low) / 2,
        "interval": "+".join(sources) or "none",
        "spread_unknown": scores.spread_unknown,
        "n": next(iter(sources.values()), 1),
        "seeds": sorted({int(seed) for seed in group["seed"]}),
        "n_items": n_items,
        "deterministic": scores.deterministic,
        "seconds": float(group["seconds"].mean()),
        "scores": scores,
        "items_digest": items_digest(members[0][0].config),
        "members": members,
    }
