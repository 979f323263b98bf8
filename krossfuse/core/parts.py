"""Modalities, splits, parts and roles: where a row of features stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)

CROSS_MODAL = "cross_modal"
"""The role of the cross-modal encoder of a pair; every other role is an expert's name."""


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
