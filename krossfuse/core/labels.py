"""What is known of a dataset but its items: label sets, class texts, captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.parts import Part


@dataclass(frozen=True)
class Prompts:
    """Class texts: every template filled with every name of a class.

    Attributes:
        texts: the texts, in the order of the rows of the part ``Part.prompts(...)``.
        owner: (len(texts),) int64, the class of each text.
        templates: the templates as configured (recorded with each result).
    """

    texts: tuple[str, ...]
    owner: Tensor
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelSet:
    """One labelling of a dataset.

    Attributes:
        classes: class names, in the order of the label values.
        labels: by split, (n,) int64 with -1 where the item has no label in this set; or, when
            ``multilabel``, (n, len(classes)) bool. Rows are those of the image part of the split, or of the
            text part if the dataset has no images; or ``DatasetInfo.compared``, where it has pairs of texts.
        prompts: by prompt-set name, the class texts for zero-shot classification; may be empty.
        multilabel: whether an item can have several classes.
    """

    classes: tuple[str, ...]
    labels: Mapping[str, Tensor]
    prompts: Mapping[str, Prompts] = field(default_factory=dict)
    multilabel: bool = False


@dataclass(frozen=True)
class DatasetInfo:
    """Everything about a dataset but its items.

    Attributes:
        name: short name, as in the configuration.
        fingerprint: JSON-able mapping of all that decides which items there are, in which order (source,
            revision, split rule, seed, rendering size, ...); part of every feature key.
        label_sets: by name.
        caption_of: by split, (n_texts,) int64: the row of the image that each text describes. Present only
            where a split has both modalities.
        fold_of: by split (train, val and test), (n,) int64: the fold in which each item is tested. Rows are those of
            the labels. Empty: the splits are used as they are; else every item is tested once
            (:mod:`krossfuse.features.folds`). No part of the fingerprint: it changes no feature.
        compared: by split, (n, 2) int64: the rows of the two texts that each label is of, where a dataset has pairs of
            texts (paraphrases). A text alone then has no label.
    """

    name: str
    fingerprint: Mapping[str, Any]
    label_sets: Mapping[str, LabelSet]
    caption_of: Mapping[str, Tensor] = field(default_factory=dict)
    fold_of: Mapping[str, Tensor] = field(default_factory=dict)
    compared: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_folds(self) -> int:
        """How many folds there are; 0 where the splits are used as they are."""
        return max((int(fold.max()) + 1 for fold in self.fold_of.values() if len(fold)), default=0)

    def labels(self, label_set: str, part: Part) -> Tensor:
        """Return the labels of the rows of ``part``: a text row takes its image's label, and one of two has none.

        Raises:
            KeyError: no such label set or split.
        """
        labels = self.label_sets[label_set].labels[part.split]
        if part.split in self.compared:
            return torch.full((1 + int(self.compared[part.split].max()),), -1)
        if part.modality == "text" and part.split in self.caption_of:
            return labels[self.caption_of[part.split]]
        return labels
