"""The sample of test items whose kernels and similarities the pictures of a run show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.parts import CROSS_MODAL, TEST, Part
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.results.snapshot import balanced_rows, make_snapshot, save_snapshot

FeaturesOf = Callable[[Part, Tensor], Mapping[str, Tensor]]
"""``features_of(part, rows)``: by role, the parents' features of some rows of a part."""


def take_snapshot(
    space: EmbeddingSpace,
    features_of: FeaturesOf,
    folder: Path,
    *,
    label_set: str | None,
    max_items: int,
    about: Mapping[str, Any],
) -> None:
    """Save the matrices behind the heat maps and similarity distributions.

    They hold a class-balanced sample of the test items, the same for all methods and seeds, so that their pictures
    can be compared.

    Args:
        space: the fused embedding.
        features_of: the parents' features.
        folder: the run folder.
        label_set: that orders the items; None: the first.
        max_items: at most so many.
        about: what the run is: its data, pair, and what describes the method.
    """
    label_set = label_set or next(iter(space.info.label_sets), None)
    part = next((p for p in (Part(TEST, "image"), Part(TEST, "text")) if p in space), None)
    if label_set is None or part is None:
        return
    labels = space.info.labels(label_set, part)
    if labels.ndim != 1 or not bool((labels >= 0).any()):  # several classes an item, or none, give no order by class
        return
    rows = balanced_rows(labels, max_items)
    text, caption_of = Part(TEST, "text"), space.info.caption_of.get(TEST)
    texts: dict[str, Any] = {}
    if part.modality == "image" and text in space and caption_of is not None:
        place = torch.full((len(labels),), -1).index_put((rows,), torch.arange(len(rows)))[caption_of]
        captions = torch.nonzero(place >= 0).flatten()
        texts = {
            "text_cross_modal": features_of(text, captions).get(CROSS_MODAL),
            "text_fused": space[text][captions],
            "text_of": place[captions],
        }
    parents = dict(features_of(part, rows))
    made = make_snapshot(
        labels[rows],
        space.info.label_sets[label_set].classes,
        cross_modal=parents.pop(CROSS_MODAL, None),
        experts=parents,
        fused=space[part][rows],
        label_set=label_set,
        about=about,
        **texts,
    )
    save_snapshot(made, folder)
