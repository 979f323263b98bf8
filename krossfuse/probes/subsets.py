"""Few-shot subsets: drawn by seed, balanced, and written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, check_positive
from krossfuse.core.parts import TRAIN, VAL

VAL_SHOTS = 4
"""Validation shots a class at most: min(4, shots), as in cross-modal adaptation (Lin et al., CVPR 2023)."""


@dataclass(frozen=True)
class FewShotSubset:
    """The items of one few-shot problem.

    Attributes:
        shots: training items a class.
        seed: of the draw.
        train: (n_classes·shots,) int64 rows of the training split, class by class.
        val: (n_classes·min(4, shots),) int64 rows of ``val_split``, class by class.
        val_split: ``"val"``, or ``"train"`` where the dataset has no validation split; never a row of ``train`` then.
    """

    shots: int
    seed: int
    train: Tensor
    val: Tensor
    val_split: str = VAL

    def written_down(self) -> dict[str, Any]:
        """Return the draw and its rows as a JSON-able mapping."""
        return {
            "shots": self.shots,
            "seed": self.seed,
            TRAIN: self.train.tolist(),
            VAL: self.val.tolist(),
            "val_split": self.val_split,
        }

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for exactly these rows."""
        return hashlib.sha256(json.dumps(self.written_down(), sort_keys=True).encode()).hexdigest()[:12]


def draw_few_shot(
    labels: Tensor,
    shots: int,
    seed: int,
    *,
    classes: Sequence[str],
    val_labels: Tensor | None = None,
    val_shots: int = VAL_SHOTS,
) -> FewShotSubset:
    """Draw ``shots`` training items of each class, and min(``val_shots``, ``shots``) validation items.

    Each class is put in a random order by the seed and its first items are taken, so subsets of one seed are nested and
    every class keeps its draw whatever the other classes hold.

    Args:
        labels: (n,) int64 labels of the training split, -1 where an item has none.
        shots: items a class.
        seed: of the draw.
        classes: class names.
        val_labels: the same of the validation split; None takes the validation items from the training split, from the
            other end of each class's order, and so disjoint from the training items.
        val_shots: validation items a class at most.

    Raises:
        DataError: a class has too few items; the message names it and both counts.

    >>> draw_few_shot(torch.tensor([0, 1, 0, 1, 1]), 1, 0, classes=["a", "b"]).train.shape
    torch.Size([2])
    """
    check_positive("shots", shots, integer=True)
    check_positive("val_shots", val_shots, integer=True)
    held = min(val_shots, shots)
    train, val = [], []
    for value, name in enumerate(classes):
        rows = _shuffled(labels, value, seed, salt=0)
        others = rows.flip(0) if val_labels is None else _shuffled(val_labels, value, seed, salt=1)
        needed = shots + (held if val_labels is None else 0)
        for n, least, what in ((len(rows), needed, TRAIN), (len(others), held, VAL)):
            if n < least:
                raise DataError(
                    f"class {name!r} (label {value}) has {n} {what} items, but {shots} shots need {least}; "
                    "use fewer shots (probe.few_shot.shots) or another label set (probe.few_shot.label_sets)"
                )
        train.append(rows[:shots])
        val.append(others[:held])
    return FewShotSubset(shots, seed, torch.cat(train), torch.cat(val), TRAIN if val_labels is None else VAL)


def _shuffled(labels: Tensor, value: int, seed: int, *, salt: int) -> Tensor:
    rows = (labels == value).nonzero().flatten()
    key = f"few-shot:{seed}:{value}:{salt}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
    return rows[torch.randperm(len(rows), generator=generator)]
