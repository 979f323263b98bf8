"""The texts of the classes that have one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from krossfuse.core.parts import Part
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.zero_shot import ZeroShotHead


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """Texts of some classes of a label set; the others have none.

    Attributes:
        space: the embedding.
        part: of the texts.
        rows: (m,) rows of it.
        owner: (m,) int64, their classes in the label set.
    """

    space: EmbeddingSpace
    part: Part
    rows: Tensor
    owner: Tensor

    @cached_property
    def classes(self) -> Tensor:
        """(K,) int64, ascending: the classes that have a text."""
        classes: Tensor = torch.unique(self.owner)
        return classes

    @cached_property
    def labels(self) -> Tensor:
        """(m,) int64: the number of each text's class among those that have one."""
        return torch.searchsorted(self.classes, self.owner)

    @cached_property
    def head(self) -> ZeroShotHead:
        """Scores of the K classes, as ``zero_shot`` has them: the kernel with the mean of a class's texts."""
        reference = self.space.reference
        return ZeroShotHead(
            self.space[self.part][self.rows],
            self.labels,
            n_classes=len(self.classes),
            cross_modal=reference[self.part][self.rows] if self.part in reference else None,
            name=str(self.part),
        )
