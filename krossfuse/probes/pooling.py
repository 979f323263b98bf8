"""One measurement of all items out of the folds' measurements.

A fold tests its own items, with a fusion and heads that have seen the other folds alone. What is a mean over the test
items is a mean over all items of all folds then: their scores, put in the order of the items, are one measurement's.
``mean_per_class_accuracy`` is made anew of them. Whatever else is measured is the mean of the folds' values, and has no
scores of items: medians, clusterings, precisions over a ranking, and what is measured on other items than the fold's
(of a split that belongs to no fold, the same in each turn, the items' scores are averaged). A ranking is one of the
fold alone: in retrieval the gallery is the fold, so recalls with folds and without are not the same measure.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.parts import SPLITS, TEST, Modality, Part
from krossfuse.features.folds import Fold
from krossfuse.probes.base import Measurement, ProbeResult
from krossfuse.probes.labelled import all_rows
from krossfuse.probes.scoring import mean_per_class
from krossfuse.results.aggregate import CONDITIONS, SUBSET

log = logging.getLogger(__name__)

COUNTS = ("n_test", "errors_before", "errors_after", "corrected", "spoiled")
"""Numbers of items in a protocol that add up over the folds."""

PER_CLASS = "mean_per_class_accuracy"


@dataclass(frozen=True)
class _Pooled:
    """A pooled measurement; where its items are known, their labels in the same order."""

    measurement: Measurement
    labels: Tensor | None = None


def pool(results: Sequence[ProbeResult], folds: Sequence[Fold]) -> ProbeResult:
    """Return one result out of what a probe measured in each fold's turn.

    Protocols keep what all folds agree on; of the rest they list the folds' values. ``folds`` says how many there are,
    ``pooled`` whether a measurement is over all ``items`` or the ``mean of folds``. Heads and draws are kept by fold.

    Args:
        results: of one probe, by fold.
        folds: in the same order.
    """
    groups = _by_measurement(results)
    made: dict[tuple[Hashable, ...], _Pooled] = {}
    for what, of_folds in groups.items():
        if len(of_folds) == len(folds):
            made[what] = _pool(of_folds, results, folds)
        else:
            first = next(iter(of_folds.values()))
            log.warning(
                "%s of %s is left out: it could be measured in %d of %d folds",
                first.metric,
                first.label_set or first.modality,
                len(of_folds),
                len(folds),
            )
    for key, pooled in made.items():
        if pooled.measurement.metric == PER_CLASS:
            accuracy = made.get(("accuracy", *key[1:]))
            if accuracy and accuracy.labels is not None and accuracy.measurement.per_item is not None:
                value = mean_per_class(accuracy.measurement.per_item, accuracy.labels)
                protocol = {**pooled.measurement.protocol, "pooled": "items"}
                made[key] = _Pooled(replace(pooled.measurement, value=value, protocol=protocol))
    return ProbeResult(
        [pooled.measurement for pooled in made.values()],
        {**merged([result.protocol for result in results]), "folds": len(folds)},
        {f"{name}/fold {i}": head for i, result in enumerate(results, 1) for name, head in result.heads.items()},
        {f"fold {i}": result.drawn for i, result in enumerate(results, 1) if result.drawn},
        seeded=any(result.seeded for result in results),
    )


def merged(descriptions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what some descriptions agree on, and a list of their values where they do not (None: it has none).

    >>> merged([{"grid": [1, 2], "C": 1.0}, {"grid": [1, 2], "C": 10.0}])
    {'grid': [1, 2], 'C': [1.0, 10.0]}
    """
    out: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in descriptions for key in one):
        values = [one.get(key) for one in descriptions]
        out[key] = values[0] if all(value == values[0] for value in values) else values
    return out


def _by_measurement(results: Sequence[ProbeResult]) -> dict[tuple[Hashable, ...], dict[int, Measurement]]:
    """Return by what was measured the folds' measurements; what looks the same is told apart by its turn."""
    groups: dict[tuple[Hashable, ...], dict[int, Measurement]] = {}
    for fold, result in enumerate(results):
        turns: Counter[Hashable] = Counter()
        for m in result.measurements:
            protocol = {**result.protocol, **m.protocol}
            key = (m.metric, m.modality, m.label_set, *(str(protocol.get(name, "")) for name in (*CONDITIONS, SUBSET)))
            turns[key] += 1
            groups.setdefault((*key, turns[key]), {})[fold] = m
    return groups


def _pool(of_folds: Mapping[int, Measurement], results: Sequence[ProbeResult], folds: Sequence[Fold]) -> _Pooled:
    measured = [of_folds[fold] for fold in range(len(folds))]
    first = measured[0]
    split = {**results[0].protocol, **first.protocol}.get("split", "")
    protocol = merged([m.protocol for m in measured])
    own = [m.per_item for m in measured if m.per_item is not None]
    scores: Tensor | None = None
    labels: Tensor | None = None
    if len(own) == len(folds) and split == TEST:
        for name in (name for name in COUNTS if name in protocol):
            protocol[name] = sum(int(m.protocol[name]) for m in measured)
        scores, labels = _in_order(measured, own, folds)
        value, pooled = float(scores.double().mean()), "items"
    else:
        value, pooled = sum(m.value for m in measured) / len(measured), "mean of folds"
        same = len(own) == len(folds) and split not in ("", *SPLITS) and len({len(x) for x in own}) == 1
        scores = torch.stack([x.double() for x in own]).mean(0) if same else None
    made = Measurement(first.metric, value, first.modality, first.label_set, {**protocol, "pooled": pooled}, scores)
    return _Pooled(made, labels)


def _in_order(
    measured: Sequence[Measurement], scores: Sequence[Tensor], folds: Sequence[Fold]
) -> tuple[Tensor, Tensor | None]:
    """Return the scores of all items in the order of the items, and their labels.

    Where it cannot be told which items of a fold were scored (a subset drawn by the probe), the folds follow one
    another, and there are no labels.
    """
    places = [_places(m, x, fold) for m, x, fold in zip(measured, scores, folds, strict=True)]
    known = [of_fold for of_fold in places if of_fold is not None]
    together = torch.cat(list(scores))
    if len(known) < len(places):
        return together, None
    order = torch.cat([place for place, _ in known]).argsort()
    labels = [of_fold for _, of_fold in known if of_fold is not None]
    return together[order], torch.cat(labels)[order] if len(labels) == len(known) else None


def _places(m: Measurement, scores: Tensor, fold: Fold) -> tuple[Tensor, Tensor | None] | None:
    """Return where the scored items stand among all, and their labels where they have one each."""
    asked, arrow, _ = m.modality.partition("->")
    modality: Modality = "image" if asked == "image" else "text"
    places = fold.places.get(modality)
    info = fold.bundle.info
    if places is None or asked != modality:
        return None
    labels = None
    if m.label_set in info.label_sets and TEST in info.label_sets[m.label_set].labels:
        labels = info.labels(m.label_set, Part(TEST, modality))
        rows = all_rows(labels)
        places, labels = places[rows], labels[rows] if labels.ndim == 1 else None
    elif arrow and modality == "image" and TEST in info.caption_of:  # queries are the images that have a caption
        places = places[torch.unique(info.caption_of[TEST])]
    return (places, labels) if len(places) == len(scores) else None
