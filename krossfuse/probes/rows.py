"""What every probe does with rows: read them in blocks, check them, normalise them, score decisions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import MODALITIES, Modality, Part
from krossfuse.probes.base import EmbeddingSpace, Measurement

SIMILARITIES = ("dot", "cosine")


def check_names(name: str, value: object, choices: Sequence[str] | None = None) -> list[str]:
    """Return ``value`` if it is a list of names that is not empty (each one of ``choices``, where given).

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not len(value):
        raise ConfigError(f"{name}={value!r} must be a list of names that is not empty")
    return [str(v) if choices is None else check_choice(name, v, choices) for v in value]


def check_counts(name: str, value: object) -> list[int]:
    """Return ``value``, sorted and without repeats, if it is a list of positive integers that is not empty.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not len(value):
        raise ConfigError(f"{name}={value!r} must be a list of positive integers that is not empty")
    for count in value:
        check_positive(name, count, integer=True)
    return sorted(set(value))


def check_modalities(value: object) -> list[Modality]:
    """Return ``value`` if it is a list of modalities that is not empty.

    Raises:
        ConfigError: it is not.
    """
    names = check_names("modalities", value, MODALITIES)
    return [modality for modality in MODALITIES if modality in names]


def finite_rows(block: Tensor, what: object, *, rows: Tensor | None = None) -> Tensor:
    """Return ``block`` (n, dim), whose rows are numbered ``rows`` (n,) in messages, or from 0.

    Raises:
        DataError: a value is NaN or infinite; the message names ``what`` and the row.
    """
    # A sum is finite only if every term is; it reads the block once and builds no mask of its size.
    if not bool(torch.isfinite(block.sum())):
        bad = (~torch.isfinite(block).all(dim=1)).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"{what} has NaN or infinite values in {len(bad)} rows, the first is row {_number(bad[0], rows)}; "
                "drop these items or extract the features again"
            )
    return block


def unit_rows(
    block: Tensor, what: object, *, dtype: torch.dtype | None = torch.float64, rows: Tensor | None = None
) -> Tensor:
    """Return the rows of ``block`` (n, dim) in ``dtype`` (None keeps it), scaled to Euclidean norm 1.

    Raises:
        DataError: a row has NaN or infinite values, or is zero (it has no direction).
    """
    block = finite_rows(block, what, rows=rows)
    block = block if dtype is None else block.to(dtype)
    norms: Tensor = torch.linalg.vector_norm(block, dim=1, keepdim=True)
    zero = (norms.flatten() == 0).nonzero()
    if len(zero):
        raise DataError(
            f"{what} has a zero vector in row {_number(zero[0], rows)}: it has no direction, so no cosine similarity"
        )
    return block / norms


def similarity_rows(block: Tensor, what: object, similarity: str, *, rows: Tensor | None = None) -> Tensor:
    """Return the rows in float64 such that their inner products are the ``similarity``: ``"dot"`` or ``"cosine"``.

    ``"dot"`` is the fused kernel itself, so with exact alignment it is C·k_ψ between an image and a text and ranks as
    the cross-modal encoder does; ``"cosine"`` divides by the fused norms, in which the expert takes part.
    """
    if similarity == "cosine":
        return unit_rows(block, what, rows=rows)
    return finite_rows(block, what, rows=rows).double()


def _number(index: Tensor, rows: Tensor | None) -> int:
    return int(index) if rows is None else int(rows[int(index)])


def part_labels(space: EmbeddingSpace, split: str, modality: Modality, label_set: str) -> Tensor:
    """Return the (n,) int64 labels of the rows of a part, -1 where a row has none.

    Raises:
        DataError: the part or its labels are missing, there are not as many labels as rows, or a label is outside
            -1 ... classes - 1.
    """
    part = Part(split, modality)
    sets = space.info.label_sets
    if label_set not in sets:
        raise DataError(f"dataset {space.info.name!r} has no label set {label_set!r}; it has {sorted(sets)}")
    if split not in sets[label_set].labels:
        raise DataError(
            f"label set {label_set!r} of {space.info.name!r} has no labels for split {split!r}; "
            f"it has {sorted(sets[label_set].labels)}"
        )
    rows = space[part].shape[0]
    labels = space.info.labels(label_set, part)
    if len(labels) != rows:
        raise DataError(
            f"label set {label_set!r} has {len(labels)} labels for {part}, but the embedding has {rows} rows"
        )
    classes = len(sets[label_set].classes)
    if len(labels) and (int(labels.min()) < -1 or int(labels.max()) >= classes):
        wrong = int(labels.min()) if int(labels.min()) < -1 else int(labels.max())
        raise DataError(
            f"label set {label_set!r} has label {wrong} in {part}; its {classes} classes are numbered 0 ... "
            f"{classes - 1}, and -1 says that an item has no label"
        )
    return labels.long()


def labelled(space: EmbeddingSpace, split: str, modality: Modality, label_set: str) -> tuple[Tensor, Tensor]:
    """Return ``rows, labels`` (both int64): the rows of a part that have a label, and those labels.

    Raises:
        DataError: as :func:`part_labels`, or no row has a label.
    """
    labels = part_labels(space, split, modality, label_set)
    rows = (labels >= 0).nonzero().flatten()
    if not len(rows):
        raise DataError(
            f"no item of {Part(split, modality)} of {space.info.name!r} has a label in label set {label_set!r}"
        )
    return rows, labels[rows]


def check_every_class(train: Tensor, classes: tuple[str, ...], *, at_least: int = 1, what: str = "training") -> None:
    """Check that each class has at least ``at_least`` of the (n,) labels ``train``.

    Raises:
        DataError: one has fewer; the message names the class and both counts.
    """
    counts = torch.bincount(train, minlength=len(classes))
    short = (counts < at_least).nonzero().flatten()
    if len(short):
        first = int(short[0])
        raise DataError(
            f"class {classes[first]!r} (label {first}) has {int(counts[first])} {what} items, but {at_least} are "
            f"needed ({len(short)} of {len(classes)} classes are short)"
        )


def best_of(scores: Tensor, labels: Tensor, *, squared: bool = False) -> tuple[int, float]:
    """Return which of several classifiers is best on held-out items, and its accuracy there.

    The most accurate; among equals the one of lowest loss; among those the first.

    Args:
        scores: (classifiers, n, K).
        labels: (n,) int64.
        squared: whether the loss is the squared error to targets ±1 (ridge), or the log-loss.
    """
    scores = scores.double()
    if squared:
        loss = (scores - 2.0 * one_hot(labels, scores.shape[2]) + 1).square().sum((1, 2))
    else:
        loss = -scores.log_softmax(2).gather(2, labels.expand(len(scores), -1)[..., None]).sum((1, 2))
    right = (scores.argmax(2) == labels).sum(1).tolist()
    best = min(range(len(scores)), key=lambda c: (-right[c], float(loss[c])))
    return best, right[best] / len(labels)


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
