"""From records to means with 95% intervals: over seeds, few-shot subsets and test items together.

Two measurements belong together when they differ in nothing but the seed: same data, pair, configuration (by digest),
measurement and conditions. What their interval is over depends on what there is (:mod:`krossfuse.results.inference`):

* ``items``: the test items' own scores, where the metric is their mean;
* ``seeds``: where several were run and the seed changes something;
* ``subsets``: few-shot subsets, folds or starts, where several were drawn;
* several of them, e.g. ``seeds+items``, or ``none``: one run whose metric is no mean over test items.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krossfuse.results.digest import items_digest
from krossfuse.results.index import RunIndex
from krossfuse.results.inference import LEVEL, Scores, interval_of_mean
from krossfuse.results.layout import RESULTS
from krossfuse.results.records import Record
from krossfuse.results.runs import Run

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass
class _Measured:
    """One record with what groups it: ``method`` (of :data:`METHOD`) and ``measure`` (of :data:`MEASURE`)."""

    run: Run
    order: int
    record: Record
    method: tuple[Any, ...]
    measure: list[Any]
    subset: Any
    fusion_seed: Any

    @property
    def repeat(self) -> tuple[Any, ...]:
        record = self.record
        return (*self.method, *self.measure, record.config_digest, record.seed, self.fusion_seed, self.subset)

    @property
    def group(self) -> tuple[Any, ...]:
        return (*self.method, *self.measure, self.record.config_digest)


_OTHER = MEASURE.index("other")


def _measured(run: Run, order: int, record: Record) -> _Measured:
    digest = record.method_digest or record.config_digest
    variant = ""
    if not digest:
        described = {name: value for name, value in record.fusion_config.items() if name != "seed"}
        variant = json.dumps(described, sort_keys=True, default=str)
    protocol = record.protocol
    return _Measured(
        run,
        order,
        record,
        (record.data, record.pair, record.fusion, record.dim, digest, variant),
        [
            *(record.probe, record.metric, record.modality, record.label_set),
            *(_plain(protocol[name]) if name in protocol else "" for name in CONDITIONS),
            "",
        ],
        _plain(protocol.get(SUBSET, "")),
        _plain(record.fusion_config.get("seed", record.seed)),
    )


def _groups(table: Iterable[_Measured], key: Callable[[_Measured], Any]) -> dict[Any, list[_Measured]]:
    made: dict[Any, list[_Measured]] = {}
    for one in table:
        made.setdefault(key(one), []).append(one)
    return made


def _collected(runs: Sequence[Run]) -> tuple[list[_Measured], list[str]]:
    """Return every record that stands, and notes on what was left out.

    Of what was measured twice (same configuration, seed and subset in two runs) the newer run's stays. Where the known
    conditions do not tell measurements of one run apart, or of one method under several options of a probe, the keys of
    their protocols that differ are added to the condition ``other``.
    """
    ordered = sorted(runs, key=lambda run: (run.folder / RESULTS).stat().st_mtime_ns)
    table = [_measured(run, order, record) for order, run in enumerate(ordered) for record in run.records]
    for group in _groups(table, lambda one: (one.order, one.repeat)).values():
        if len(group) > 1:
            for one, text in zip(group, _differences([one.record.protocol for one in group]), strict=True):
                one.measure[_OTHER] = text
    latest: dict[Any, int] = {}
    for one in table:
        latest[one.repeat] = max(one.order, latest.get(one.repeat, 0))
    stale = [one for one in table if one.order != latest[one.repeat]]
    notes = []
    if stale:
        names = sorted({one.run.name for one in stale})
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        notes.append(f"{len(stale)} measurements of {shown} were made again by a newer run, whose values stand")
        table = [one for one in table if one.order == latest[one.repeat]]
    _tell_options_apart(table)
    return table, notes


def _tell_options_apart(table: Sequence[_Measured]) -> None:
    """Fill ``other`` where one method was measured by a probe under several options."""
    for group in _groups(table, lambda one: (*one.method, *one.measure)).values():
        firsts = {one.record.config_digest: one for one in reversed(group)}
        digests = list(dict.fromkeys(one.record.config_digest for one in group))
        if len(digests) == 1 or group[0].method[METHOD.index("method")] in digests:  # old records have but one digest
            continue
        texts = _differences([firsts[digest].record.protocol for digest in digests])
        if len(set(texts)) < len(texts):
            texts = [f"options {digest[:6]}" for digest in digests]
        by_digest = dict(zip(digests, texts, strict=True))
        for one in group:
            one.measure[_OTHER] = ", ".join(filter(None, (one.measure[_OTHER], by_digest[one.record.config_digest])))


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
    if len(members) == 1:
        run, record = members[0]
        own = _item_scores(run, record)
        grid = np.array([[[record.value]]]) if own is None else own[None, None]
        return Scores(grid, record.deterministic, (str(_plain(record.protocol.get(SUBSET, ""))),))
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
    own = run.scores(record.figure_id)
    if own is None:
        return None
    wide = own.astype(np.float64)
    return wide if abs(float(wide.mean()) - record.value) <= 1e-6 + 1e-4 * abs(record.value) else None


class Cell(dict[str, Any]):
    """One aggregated measurement of one method.

    Keys: those of :data:`METHOD` and :data:`MEASURE`; ``config_digest``; ``mean``, ``low``, ``high`` and ``half_width``
    in the metric's unit (NaN without an interval, and within the metric's bounds); ``interval`` (over what, see above);
    ``spread_unknown`` (one seed of a random method); ``n`` (values behind the interval, of its first factor);
    ``seeds``; ``draws`` (of the seed that count: 1 where it changes nothing); ``subsets`` (names of them); ``n_items``
    (0 where the scores are no items'); ``deterministic``; ``hits`` (whether the scores are hits and misses); ``spread``
    (the variance of the mean, by where it comes from); ``seconds`` (mean); ``items_digest`` (cells that share it are
    on the same items, see :func:`krossfuse.results.digest.items_digest`); ``scores_digest`` (cells that share it have
    the same scores); ``members``, the (run, record) behind it; and ``scores`` (:class:`Scores`), which are read when
    they are asked for, and not kept.
    """

    def __missing__(self, key: str) -> Any:
        if key == "scores":
            return scores_of(self["members"])
        raise KeyError(key)


def aggregate(runs: Sequence[Run], level: float = LEVEL) -> tuple[pd.DataFrame, list[str]]:
    """Group measurements by everything but the seed.

    Returns:
        a table of :func:`cells`, one row a cell, with the column ``scores``; and notes on what was left out.
    """
    made, notes = cells(runs, level=level)
    import pandas as pd

    table = pd.DataFrame(made) if made else pd.DataFrame(columns=[*METHOD, *MEASURE, "config_digest", "mean"])
    return table.assign(scores=[cell["scores"] for cell in made]), notes


def cells(runs: Sequence[Run], index: RunIndex | None = None, *, level: float = LEVEL) -> tuple[list[Cell], list[str]]:
    """Return the cells of all boards, in the order of the runs, and notes on what was left out.

    Args:
        runs: whatever they are of.
        index: that remembers intervals; None: they are computed.
        level: of the intervals.
    """
    table, notes = _collected(runs)
    digests: dict[Path, str] = {}
    made = []
    for key, group in _groups(table, lambda one: one.group).items():
        first = group[0].run
        if first.folder not in digests:
            digests[first.folder] = items_digest(first.config)
        cell = Cell(zip([*METHOD, *MEASURE, "config_digest"], key, strict=True))
        cell.update(_summary(group, index, level), items_digest=digests[first.folder])
        made.append(cell)
    return made, notes


def _summary(group: Sequence[_Measured], index: RunIndex | None, level: float) -> dict[str, Any]:
    members = [(one.run, one.record) for one in group]
    digest = _scores_digest(group)
    metric = members[0][1].declaration()
    compute = functools.partial(_interval, members, metric.low, metric.high, level)
    key = f"interval {digest} {metric.low} {metric.high} {level}"
    found = index.statistic(key, compute, _read_interval, dict) if index else compute()
    by_subset: dict[Any, list[float]] = {}
    for one in group:
        by_subset.setdefault(one.subset, []).append(one.record.value)
    means = [sum(values) / len(values) for values in by_subset.values()]
    low, high = (float("nan") if found[end] is None else found[end] for end in ("low", "high"))
    return {
        "mean": sum(means) / len(means),
        **found,
        "low": low,
        "high": high,
        "half_width": (high - low) / 2,
        "subsets": tuple(found["subsets"]),
        "seeds": sorted({int(one.record.seed) for one in group}),
        "seconds": sum(one.record.seconds for one in group) / len(group),
        "scores_digest": digest,
        "members": members,
    }


def _interval(members: Sequence[Member], low: float | None, high: float | None, level: float) -> dict[str, Any]:
    """Return what the scores say of a cell, JSON-able."""
    scores = scores_of(members)
    *ends, spread = interval_of_mean(scores, level)
    n_items = spread.n_items if spread.n_items > 1 else 0
    sources = {name: part.draws for name, part in spread.parts.items()} | ({"items": n_items} if n_items else {})
    bounded = (max(ends[0], -math.inf if low is None else low), min(ends[1], math.inf if high is None else high))
    # max and min would hide that there is no interval.
    low, high = (None, None) if math.isnan(ends[0]) else bounded
    return {
        "low": low,
        "high": high,
        "interval": "+".join(sources) or "none",
        "spread_unknown": scores.spread_unknown,
        "n": next(iter(sources.values()), 1),
        "n_items": n_items,
        "draws": len(scores.values),
        "subsets": list(scores.subsets),
        "deterministic": scores.deterministic,
        "hits": scores.hits,
        "spread": {"items": spread.items, "parts": {name: vars(part) for name, part in spread.parts.items()}},
    }


_INTERVAL = (
    *("low", "high", "interval", "spread_unknown", "n", "n_items", "draws", "subsets", "deterministic", "hits"),
    "spread",
)


def _read_interval(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in _INTERVAL}


def _scores_digest(group: Sequence[_Measured]) -> str:
    """Return a digest of all that :func:`scores_of` depends on."""
    parts = [
        (
            one.run.score_digest(one.record.figure_id),
            one.record.value,
            one.record.seed,
            one.fusion_seed,
            str(one.subset),
            one.record.deterministic,
        )
        for one in group
    ]
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()
