"""Scores and decisions on test items, turned into measurements."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.errors import DataError
from krossfuse.core.labels import LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes.base import Measurement
from krossfuse.probes.labelled import labelled_items
from krossfuse.probes.space import EmbeddingSpace


def mean_per_class(correct: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes present in ``labels`` of the accuracy within the class.

    >>> mean_per_class(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 2]))
    0.5
    """
    counts = torch.bincount(labels)
    hits = torch.bincount(labels, weights=correct.double())
    present = counts > 0
    return float((hits[present] / counts[present]).mean())


def accuracy_measurements(
    correct: Tensor,
    labels: Tensor,
    *,
    modality: str,
    label_set: str,
    protocol: Mapping[str, Any],
    in_top5: Tensor | None = None,
) -> list[Measurement]:
    """Return the measurements ``accuracy``, ``mean_per_class_accuracy`` and, given ``in_top5``, ``top5_accuracy``.

    Args:
        correct: (n,) bool, whether the decision on each test item is its label.
        labels: (n,) int64.
        modality: of the test items.
        label_set: name of the label set.
        protocol: of each measurement.
        in_top5: (n,) bool, whether the label is among the five highest scores.
    """
    hits = correct.float()
    measurements = [
        Measurement("accuracy", float(hits.double().mean()), modality, label_set, protocol, hits),
        Measurement("mean_per_class_accuracy", mean_per_class(hits, labels), modality, label_set, protocol),
    ]
    if in_top5 is not None:
        top = in_top5.float()
        measurements.append(
            Measurement("top5_accuracy", float(top.double().mean()), modality, label_set, protocol, top)
        )
    return measurements


@torch.no_grad()
def measurements_of_head(
    space: EmbeddingSpace,
    name: str,
    part: Part,
    head: nn.Module,
    protocol: Mapping[str, Any],
    *,
    device: torch.device | None = None,
) -> list[Measurement]:
    """Return the measurements of a head on the labelled items of a part, held or streamed.

    Args:
        space: the embedding.
        name: of the label set.
        part: whose items.
        head: embeddings in, scores out; it stays where it is.
        protocol: of each measurement.
        device: where scores are computed; None is where the head is.
    """
    rows, labels = labelled_items(space, part, name)
    there = head if device is None else copy.deepcopy(head).to(device)
    scores = torch.cat([there(x).to(labels.device) for x in space.read(part, rows)])
    return measurements_of_scores(scores, labels, space.info.label_sets[name], name, part, protocol)


def measurements_of_scores(
    scores: Tensor, labels: Tensor, label_set: LabelSet, name: str, part: Part, protocol: Mapping[str, Any]
) -> list[Measurement]:
    """Return the measurements of (n, classes) scores of the labelled items of a part."""
    classes = len(label_set.classes)
    shared = {**protocol, "split": part.split, "n_test": len(labels), "n_classes": classes}
    if label_set.multilabel:
        if not bool(labels.any()):
            raise DataError(f"no item of {part} has a class of label set {name!r}, so there is no precision to measure")
        precision = mean_average_precision(scores, labels)
        return [Measurement("mean_average_precision", precision, part.modality, name, shared)]
    above = (scores > scores.gather(1, labels[:, None])).sum(1)
    return accuracy_measurements(
        scores.argmax(1) == labels,
        labels,
        modality=part.modality,
        label_set=name,
        protocol=shared,
        in_top5=above < 5 if classes > 5 else None,
    )


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes with a positive item of the average precision, as torchmetrics computes it.

    Args:
        scores: (n, classes).
        labels: (n, classes) bool.
    """
    from torchmetrics.functional.classification import multilabel_average_precision

    # torchmetrics would squash scores by a sigmoid, which saturates into ties; ranks within [0, 1) it leaves alone.
    columns = [torch.unique(column, return_inverse=True)[1] for column in scores.T]
    ranks = torch.stack(columns, 1).double() / len(scores)
    present = labels.bool().any(0)
    by_class = multilabel_average_precision(
        ranks[:, present], labels[:, present].long(), num_labels=int(present.sum()), average=None
    )
    return float(by_class.mean())
