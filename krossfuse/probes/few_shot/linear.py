"""Linear heads on the shots, on class texts, or on both: all training sets solved together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.parts import TRAIN, Part
from krossfuse.probes.few_shot.images import Images, dtype_of, head_rows
from krossfuse.probes.solvers import fit_logistic_batch, fit_ridge_batch
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.subsets import FewShotSubset

_BATCH_VALUES = 1 << 24
_IMAGES = Part(TRAIN, "image")


@dataclass(frozen=True)
class Linear:
    """W·x + b with the C that it was fitted at: weight (K, dim), bias (K,)."""

    weight: Tensor
    bias: Tensor
    C: float

    def scores(self, images: Images) -> Tensor:
        """Return the (n, K) scores of images."""
        return images.for_heads @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Rows of training images and of class texts, with their numbers among the classes that are told apart.

    Attributes:
        subset: that the images are of.
        images: (n,) rows of the training split.
        image_labels: (n,) int64, 0 ... K − 1.
        n_classes: K.
        text_part: of the texts.
        texts: (m,) rows of it; may be none.
        text_labels: (m,) int64.
    """

    subset: FewShotSubset
    images: Tensor
    image_labels: Tensor
    n_classes: int
    text_part: Part
    texts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    text_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.images) + len(self.texts)


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """How linear heads are fitted.

    Attributes:
        classifier: ``"logistic"`` (multinomial) or ``"ridge"`` (targets ±1, closed form).
        tol: of the logistic solver.
        text_weight: of a class's texts together, in images: a number, ``"balanced"`` (as many as its shots), or None
            (1 a text).
        normalise: whether rows are scaled to norm 1.
    """

    classifier: str
    tol: float
    text_weight: float | Literal["balanced"] | None
    normalise: bool

    def heads(
        self, space: EmbeddingSpace, sets: Sequence[TrainingSet], grid: Sequence[float]
    ) -> Iterator[tuple[TrainingSet, list[Linear]]]:
        """Yield each training set, of one number of classes all, with its heads along the grid."""
        if not sets:
            return
        longest = max(map(len, sets))
        for block in blocks(len(sets), max(1, _BATCH_VALUES // (longest * space[_IMAGES].shape[1]))):
            batch, n_classes = sets[block], sets[0].n_classes
            x, y, weight = self._padded(space, batch)
            if self.classifier == "ridge":
                weights, biases = fit_ridge_batch(x, y, weight, grid, n_classes)
            else:
                fit = fit_logistic_batch(x, y, n_classes=n_classes, C=grid, weight=weight, tol=self.tol)
                weights, biases = fit.weights, fit.intercepts
            for training, w, b in zip(batch, weights, biases, strict=True):
                # Copies: a view of one head would keep those of the whole grid.
                yield training, [Linear(w[i].clone(), b[i].clone(), C) for i, C in enumerate(grid)]

    def _padded(self, space: EmbeddingSpace, batch: Sequence[TrainingSet]) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples (P, n, dim), labels (P, n) and weights (P, n), where padding has weight 0."""
        longest, dim = max(map(len, batch)), space[_IMAGES].shape[1]
        x = torch.zeros(len(batch), longest, dim, dtype=dtype_of(space, _IMAGES))
        y, weight = torch.zeros(len(batch), longest, dtype=torch.int64), torch.zeros(len(batch), longest, dtype=x.dtype)
        for i, s in enumerate(batch):
            n, end = len(s.images), len(s)
            x[i, :n] = head_rows(space, _IMAGES, s.images, normalise=self.normalise)
            y[i, :n], weight[i, :n] = s.image_labels, 1.0
            if not len(s.texts):
                continue
            x[i, n:end] = head_rows(space, s.text_part, s.texts, normalise=self.normalise).to(x)
            y[i, n:end], weight[i, n:end] = s.text_labels, 1.0
            if self.text_weight is not None:
                together = s.subset.shots if isinstance(self.text_weight, str) else self.text_weight
                weight[i, n:end] = together / torch.bincount(s.text_labels)[s.text_labels].to(x.dtype)
        return x, y, weight
