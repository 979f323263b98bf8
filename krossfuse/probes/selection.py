"""How a hyper-parameter is chosen: from a grid, on held-out items."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.labels import LabelSet
from krossfuse.core.parts import TRAIN, VAL, Modality, Part
from krossfuse.probes.labelled import all_rows, item_labels
from krossfuse.probes.options import check_grid
from krossfuse.probes.scoring import mean_average_precision
from krossfuse.probes.space import EmbeddingSpace

log = logging.getLogger(__name__)

SELECTIONS = ("val", "k-fold")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How one hyper-parameter is chosen, from the flat options that users write.

    Attributes:
        grid: its values; kept ascending, without repeats.
        selection: ``"val"``, on the validation split, or ``"k-fold"``, over training and validation items.
        n_folds: of ``"k-fold"``; stratified, shuffled by the run's seed.
        refit: fit anew on training and validation items with the value chosen; with ``"k-fold"`` it must.
        name: of the grid, in messages.

    Raises:
        ConfigError: a value is impossible.
    """

    grid: Sequence[float]
    selection: str = "val"
    n_folds: int = 5
    refit: bool = True
    name: str = "grid"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid(self.name, self.grid))
        check_choice("selection", self.selection, SELECTIONS)
        check_positive("n_folds", self.n_folds, integer=True)
        if self.n_folds < 2:
            raise ConfigError(f"n_folds={self.n_folds} must be 2 or more")
        if not isinstance(self.refit, bool):
            raise ConfigError(f"refit={self.refit!r} must be true or false")
        if self.selection == "k-fold" and not self.refit:
            raise ConfigError("selection='k-fold' has no fit of its own to test: refit must be true")

    @property
    def on_val(self) -> bool:
        """Whether the validation split decides."""
        return self.selection == "val"

    def described(self) -> dict[str, Any]:
        """Return the entries of a probe's protocol."""
        return {
            "selection": self.selection if self.on_val else f"{self.n_folds}-fold",
            "refit": "train+val" if self.refit else "",
        }

    def edge(self, index: int, knob: str, what: str) -> dict[str, Any]:
        """Return the protocol's ``selected_at_edge`` if the best value is the first or last of several; warn once."""
        if len(self.grid) == 1 or 0 < index < len(self.grid) - 1:
            return {}
        side = "smallest" if index == 0 else "largest"
        best = f"{self.grid[index]:g}, the {side} of {self.name}"
        warn_once(f"{what}: the best {knob} is {best}; a wider one may hold a better")
        return {"selected_at_edge": True}


@functools.lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log a warning that has not been logged yet: the jobs of a sweep say the same."""
    log.warning("%s", message)


def selection_parts(space: EmbeddingSpace, modality: Modality, names: Sequence[str], *, required: bool) -> list[Part]:
    """Return the training part and, where every label set has labels there, the validation part.

    Raises:
        DataError: there are no validation items with labels, and they are required.
    """
    parts = [Part(TRAIN, modality), Part(VAL, modality)]
    there = parts[1] in space or parts[1] in space.streams
    if not there or not all(VAL in space.info.label_sets[name].labels for name in names):
        if required:
            raise DataError(
                f"{space.info.name!r} has no {modality} items with labels in the split {VAL!r} to select on; "
                "say selection=k-fold"
            )
        del parts[1]
    for name in names if required else []:
        labels = item_labels(space, parts[1], name)
        if not bool((labels.any() if labels.ndim == 2 else labels >= 0).any()):
            raise DataError(f"no item of {parts[1]} has a label in {name!r} to select on; say selection=k-fold")
    return parts


def k_folds(labels: Tensor, n_folds: int, seed: int, *, classes: Sequence[str] = ()) -> list[Tensor]:
    """Return the held-out rows of each fold, ascending: stratified by class (not if multilabel), shuffled by ``seed``.

    Args:
        labels: (n,) int64, -1 where a row has no label (it is in no fold); or (n, classes) bool.
        n_folds: number of folds.
        seed: of the shuffle.
        classes: names, for messages.

    Raises:
        DataError: a class has fewer items than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    rows = all_rows(labels)
    strata = labels[rows] if labels.ndim == 1 else torch.zeros(len(rows), dtype=torch.int64)
    counts = torch.bincount(strata)
    least = int(counts[counts > 0].min())
    if least < n_folds:
        fewest = int((counts == least).nonzero()[0])
        which = f"class {classes[fewest]!r}" if labels.ndim == 1 and fewest < len(classes) else "a class"
        raise DataError(f"{which} has {least} items to select on, fewer than n_folds={n_folds}; take fewer folds")
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, strata)
    return [rows[torch.from_numpy(held)] for _, held in folds]


def best_of(scores: Tensor, labels: Tensor, *, squared: bool = False) -> tuple[int, float]:
    """Return which of several classifiers is best on held-out items, and its accuracy there.

    The most accurate; among equals the one of lowest loss; among those the first.

    Args:
        scores: (classifiers, n, K).
        labels: (n,) int64.
        squared: whether the loss is the squared error to targets ±1 (ridge), or the log-loss.
    """
    scores = scores.to(labels.device, torch.float64)
    if squared:
        loss = (scores - 2.0 * one_hot(labels, scores.shape[2]) + 1).square().sum((1, 2))
    else:
        loss = -scores.log_softmax(2).gather(2, labels.expand(len(scores), -1)[..., None]).sum((1, 2))
    right = (scores.argmax(2) == labels).sum(1).tolist()
    best = min(range(len(scores)), key=lambda c: (-right[c], float(loss[c])))
    return best, right[best] / len(labels)


def best_for(scores: Tensor, labels: Tensor, label_set: LabelSet, *, squared: bool) -> tuple[int, float]:
    """Return which of several classifiers is best on held-out items, and its accuracy (multilabel: mAP) there.

    Args:
        scores: (classifiers, n, classes).
        labels: (n,) int64, or (n, classes) bool.
        label_set: what is labelled.
        squared: whether the squared error to targets ±1 decides among equally accurate ones, or the log-loss.
    """
    scores = scores.to(labels.device)
    if label_set.multilabel:
        precisions = [mean_average_precision(each, labels) for each in scores]
        best = max(range(len(precisions)), key=precisions.__getitem__)
        return best, precisions[best]
    return best_of(scores, labels, squared=squared)
