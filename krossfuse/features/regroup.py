"""Stored features under other splits: rows gathered, captions with their images, labels with their items."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Modality, Part

IN_MEMORY = 256 << 20
"""Bytes up to which gathered rows are copied in memory; above, to an unnamed temporary file."""

_BLOCK = 16 << 20

Features = Mapping[Part, Mapping[str, Tensor]]
Rows = Mapping[str, Mapping[str, Tensor]]
"""``rows[new][old]``: the rows, ascending, of the split ``old`` that the split ``new`` is made of, in this order."""


def regroup(info: DatasetInfo, features: Features, rows: Rows) -> tuple[DatasetInfo, dict[Part, dict[str, Tensor]]]:
    """Make new splits of the items of some splits; captions go with their images, other splits stay as they are.

    Args:
        info: the dataset.
        features: by part and role.
        rows: of the images, or of the texts where there are no images.

    Returns:
        The dataset's description and features under the new splits. A label set that has labels for some of the splits
        alone has none (-1) for the items of the others.

    Raises:
        DataError: there are images and texts, but it is not said which text describes which image.
    """
    used = list(dict.fromkeys(old for of_new in rows.values() for old in of_new))
    main: Modality = "image" if any(Part(old, "image") in features for old in used) else "text"
    made = {part: dict(by_role) for part, by_role in features.items() if part.split not in used}
    captions = {split: of_split for split, of_split in info.caption_of.items() if split not in used}
    for new, of_old in rows.items():
        made[Part(new, main)] = _gather(features, main, of_old)
        if main == "image" and any(Part(old, "text") in features for old in of_old):
            texts, captions[new] = _captions(info, features, of_old)
            made[Part(new, "text")] = _gather(features, "text", texts)
    label_sets = {name: _relabelled(s, rows, used) for name, s in info.label_sets.items()}
    return replace(info, label_sets=label_sets, caption_of=captions, fold_of={}), made


def _gather(features: Features, modality: Modality, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces = [(features[Part(old, modality)], of_old) for old, of_old in rows.items()]
    return {role: _joined([take(by_role[role], of_old) for by_role, of_old in pieces]) for role in pieces[0][0]}


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _captions(info: DatasetInfo, features: Features, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return, by split, the texts of the chosen images; and the new row of the image that each describes."""
    texts: dict[str, Tensor] = {}
    images: list[Tensor] = []
    first = 0
    for old, of_old in rows.items():
        if old not in info.caption_of:
            raise DataError(f"dataset {info.name!r} does not say which text of {old!r} describes which image")
        place = torch.full((len(next(iter(features[Part(old, "image")].values()))),), -1, dtype=torch.int64)
        place[of_old] = torch.arange(len(of_old)) + first
        image = place[info.caption_of[old]]
        texts[old] = torch.nonzero(image >= 0).flatten()
        images.append(image[texts[old]])
        first += len(of_old)
    return texts, torch.cat(images)


def _relabelled(s: LabelSet, rows: Rows, used: list[str]) -> LabelSet:
    labels = {split: of_split for split, of_split in s.labels.items() if split not in used}
    for new, of_old in rows.items():
        there = [old for old in of_old if old in s.labels]
        if not there:
            continue
        pieces = []
        for old, r in of_old.items():
            unlabelled = s.labels[there[0]].new_full((len(r), *s.labels[there[0]].shape[1:]), 0 if s.multilabel else -1)
            pieces.append(s.labels[old][r] if old in s.labels else unlabelled)
        labels[new] = torch.cat(pieces)
    return replace(s, labels=labels)


def row_blocks(tensor: Tensor) -> Iterable[Tensor]:
    """Yield a tensor in blocks of rows of a few megabytes."""
    rows = max(1, _BLOCK // max(1, tensor.element_size() * math.prod(tensor.shape[1:])))
    return (tensor[block] for block in blocks(len(tensor), rows))


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Gather rows, in memory or (above ``IN_MEMORY`` bytes) into a temporary file that vanishes with the tensor."""
    if len(rows) * tensor.shape[1] * tensor.element_size() <= IN_MEMORY:
        return tensor[rows]
    raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    with tempfile.TemporaryFile(prefix="krossfuse-") as file:
        out = torch.from_numpy(np.memmap(file, raw[:0].numpy().dtype, "w+", shape=(len(rows), tensor.shape[1])))
    start = 0
    for block in row_blocks(out):
        block.copy_(raw[rows[start : start + len(block)]])
        start += len(block)
    return out.view(tensor.dtype)
