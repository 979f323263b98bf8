"""Images whose labels are not looked at: what scores are measured on before they are added."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from krossfuse.core.parts import TRAIN, VAL, Part
from krossfuse.probes.few_shot.images import Images
from krossfuse.probes.few_shot.residual import spread
from krossfuse.probes.labelled import part_labels
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.subsets import FewShotSubset

_ROWS = 4096


class Unlabelled:
    """Training and validation images of a task, at most 4,096 of each at even distances.

    Of the labels only this is used: whether an image is of one of the classes that are told apart.

    Args:
        space: the embedding.
        label_set: its name.
        classes: (K,) those that are told apart.
        normalise: see :class:`Images`.
    """

    def __init__(self, space: EmbeddingSpace, label_set: str, classes: Tensor, *, normalise: bool) -> None:
        self.images: dict[str, Images] = {}
        for split in (TRAIN, VAL):
            if Part(split, "image") not in space or split not in space.info.label_sets[label_set].labels:
                continue
            rows = torch.isin(part_labels(space, split, "image", label_set), classes).nonzero().flatten()
            count = min(len(rows), _ROWS)
            rows = rows[torch.arange(count) * len(rows) // max(count, 1)]
            self.images[split] = Images(space, Part(split, "image"), rows, normalise=normalise)

    def spread(self, scores: Callable[[Images], Tensor], subset: FewShotSubset) -> float:
        """Return the spread of (n, K) scores on the images that are not among the shots (all, if no other is there).

        A head scores its own shots higher than it scores others.
        """
        among = {s: torch.ones(len(x.rows), dtype=torch.bool) for s, x in self.images.items()}
        others = {**among, TRAIN: ~torch.isin(self.images[TRAIN].rows, subset.train)}
        if any(bool(chosen.any()) for chosen in others.values()):
            among = others
        return spread([scores(images) for images in self.images.values()], list(among.values()))
