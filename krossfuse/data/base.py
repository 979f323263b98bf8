"""What a dataset is: items by part, label sets, prompts and captions, behind one DataModule base.

This module's dataclasses are what every later room sees of a dataset; they import torch only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)


@dataclass(frozen=True, order=True)
class Part:
    """One homogeneous list of items: a split (or a prompt list) in one modality.

    ``split`` is ``train``, ``val``, ``test`` (a dataset may add others), or ``prompts/<label set>/<prompt set>``.
    """

    split: str
    modality: Modality

    def __str__(self) -> str:
        return f"{self.split}:{self.modality}"

    @staticmethod
    def prompts(label_set: str, prompt_set: str) -> Part:
        """Return the text part that holds the class texts of ``label_set`` under ``prompt_set``."""
        return Part(f"prompts/{label_set}/{prompt_set}", "text")


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
            text part if the dataset has no images.
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
    """

    name: str
    fingerprint: Mapping[str, Any]
    label_sets: Mapping[str, LabelSet]
    caption_of: Mapping[str, Tensor] = field(default_factory=dict)

    def labels(self, label_set: str, part: Part) -> Tensor:
        """Return the labels of the rows of ``part``: a text row takes its image's label.

        Raises:
            KeyError: no such label set or split.
        """
        labels = self.label_sets[label_set].labels[part.split]
        if part.modality == "text" and part.split in self.caption_of:
            return labels[self.caption_of[part.split]]
        return labels
