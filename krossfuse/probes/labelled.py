"""The labels of the rows of a part, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, did_you_mean
from krossfuse.core.parts import Modality, Part
from krossfuse.probes.space import EmbeddingSpace


def part_labels(space: EmbeddingSpace, split: str, modality: Modality, label_set: str) -> Tensor:
    """Return the (n,) int64 labels of the rows of a part, -1 where a row has none.

    Raises:
        DataError: the part or its labels are missing, there are not as many labels as rows, or a label is outside
            -1 ... classes - 1.
    """
    part = Part(split, modality)
    sets = space.info.label_sets
    if label_set not in sets:
        raise DataError(
            f"dataset {space.info.name!r} has no label set {label_set!r}; it has {sorted(sets)}"
            f"{did_you_mean(label_set, sets)}"
        )
    if split not in sets[label_set].labels:
        raise DataError(
            f"label set {label_set!r} of {space.info.name!r} has no labels for split {split!r}; "
            f"it has {sorted(sets[label_set].labels)}"
        )
    rows = space.count(part)
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


def item_labels(space: EmbeddingSpace, part: Part, name: str) -> Tensor:
    """Return the labels of a part: (n,) int64 with -1, or (n, classes) bool where multilabel.

    Raises:
        DataError: they are missing, of another number than the rows, or out of range.
    """
    if not space.info.label_sets[name].multilabel:
        return part_labels(space, part.split, part.modality, name)
    labels = space.info.labels(name, part)
    expected = (space.count(part), len(space.info.label_sets[name].classes))
    if tuple(labels.shape) != expected:
        raise DataError(f"label set {name!r} has labels {tuple(labels.shape)} for {part}, but it must be {expected}")
    return labels


def labelled_items(space: EmbeddingSpace, part: Part, name: str) -> tuple[Tensor, Tensor]:
    """Return ``rows, labels``: the rows of a part that have a label (all, if multilabel), and those labels.

    Raises:
        DataError: as :func:`item_labels`, or no row has a label.
    """
    if space.info.label_sets[name].multilabel:
        labels = item_labels(space, part, name)
        return torch.arange(len(labels)), labels
    return labelled(space, part.split, part.modality, name)


def all_rows(labels: Tensor) -> Tensor:
    """Return the rows that have a label; in a multilabel set all have.

    >>> all_rows(torch.tensor([0, -1, 2])).tolist()
    [0, 2]
    """
    return torch.arange(len(labels)) if labels.ndim == 2 else (labels >= 0).nonzero().flatten()


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


def check_label_set(space: EmbeddingSpace, name: str, train: Part) -> None:
    """Check that there are two classes or more (one, if multilabel), each with a training item.

    Raises:
        DataError: there are not.
    """
    s, labels = space.info.label_sets[name], item_labels(space, train, name)
    if s.multilabel:
        missing = [s.classes[i] for i in torch.nonzero(~labels.bool().any(0)).flatten().tolist()]
        if missing:
            raise DataError(f"label set {name!r}: classes {missing} have no training items in {train}")
        return
    if len(s.classes) < 2:
        raise DataError(f"label set {name!r} has one class, {s.classes[0]!r}: there is nothing to tell apart")
    check_every_class(labels[labels >= 0], s.classes)
