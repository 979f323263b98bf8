"""The class texts of a label set, of which some classes may have none."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.parts import Modality, Part
from krossfuse.probes.labelled import labelled
from krossfuse.probes.scope import ENSEMBLE
from krossfuse.probes.space import EmbeddingSpace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassTexts:
    """The texts of one or several pooled prompt sets, and the classes that they name.

    Attributes:
        label_set: its name.
        prompt_set: its name, ``"a+b"`` for an ensemble.
        parts: of the texts.
        owner: (n_texts,) int64, place of each text's class in ``classes``.
        classes: (n,) int64, ascending, the classes that have a text.
        without: number of classes that have none; their items cannot be classified by texts.
        protocol: what the records say of the texts.
    """

    label_set: str
    prompt_set: str
    parts: tuple[Part, ...]
    owner: Tensor
    classes: Tensor
    without: int
    protocol: dict[str, Any]

    def items(self, space: EmbeddingSpace, split: str, modality: Modality) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return the items whose class has a text: ``rows``, their places in ``classes``, and what the records say.

        The record names the number of classes told apart and, where there are any, how many classes and items were
        left out for want of a text; that is logged too.

        Raises:
            DataError: no item has a label, or none has the label of a class with a text.
        """
        rows, labels = labelled(space, split, modality, self.label_set)
        protocol: dict[str, Any] = {"n_classes": len(self.classes)}
        place = torch.full((len(self.classes) + self.without,), -1)
        place[self.classes] = torch.arange(len(self.classes))
        places = place[labels]
        kept = places >= 0
        if self.without:
            out = int((~kept).sum())
            protocol |= {"n_classes_without_text": self.without, "n_items_without_text": out}
            where = f"{Part(split, modality)} of {space.info.name!r}, label set {self.label_set!r}"
            if out == len(rows):
                raise DataError(f"{where}: no item is of one of the {len(self.classes)} classes that have a text")
            log.info(
                "%s: %d classes have no text (prompt set %r); their %d items are left out, %d items of %d classes are "
                "measured",
                where,
                self.without,
                self.prompt_set,
                out,
                len(rows) - out,
                len(self.classes),
            )
        return rows[kept], places[kept], protocol


def class_texts(space: EmbeddingSpace, label_set: str, prompt_set: str) -> ClassTexts:
    """Return the class texts of a prompt set, or of several pooled ones.

    Raises:
        DataError: the space has no such prompt set.
    """
    described = space.info.label_sets[label_set]
    members = prompt_set.split(ENSEMBLE)
    for member in members:
        if member not in described.prompts or Part.prompts(label_set, member) not in space:
            raise DataError(
                f"label set {label_set!r} of {space.info.name!r} has no prompt set {member!r} in this space; "
                f"it has {[p for p in described.prompts if Part.prompts(label_set, p) in space]}"
            )
    prompts = [described.prompts[member] for member in members]
    classes, owner = torch.unique(torch.cat([p.owner for p in prompts]), return_inverse=True)
    words = [text for p in prompts for text in p.texts]
    return ClassTexts(
        label_set,
        prompt_set,
        tuple(Part.prompts(label_set, member) for member in members),
        owner,
        classes,
        len(described.classes) - len(classes),
        {
            "prompt_set": prompt_set,
            "templates": [template for p in prompts for template in p.templates],
            "n_prompts": len(words),
            "prompts_digest": hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12],
        },
    )
