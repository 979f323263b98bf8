"""Features of a file in blocks of rows: checked, drawn and copied without a second copy in memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import TRAIN, VAL, Part
from krossfuse.data.common import stratified_split

IN_MEMORY = 256 << 20
"""Bytes up to which the rows of a drawn split are copied in memory; above, to an unnamed temporary file."""

_BLOCK = 16 << 20


def sizes_of(features: Mapping[Part, Mapping[str, Tensor]], *, prompts: bool = False) -> dict[Part, int]:
    """Return the number of rows of each part; of the prompt parts too, if asked."""
    return {
        part: len(next(iter(by_role.values())))
        for part, by_role in features.items()
        if prompts or not part.split.startswith("prompts/")
    }


class ItemRows(Sequence[int]):
    """The items of a part, known by their features under all encoders."""

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self.features = list(features.values())

    def __len__(self) -> int:
        return len(self.features[0])

    def __getitem__(self, row: int) -> int:  # type: ignore[override]
        return row

    def content(self, row: int) -> bytes:
        """Return the bytes of an item's features."""
        return b"".join(
            of_encoder[row].contiguous().view(torch.uint8).numpy().tobytes() for of_encoder in self.features
        )


def row_blocks(tensor: Tensor) -> Iterable[Tensor]:
    """Yield a tensor in blocks of rows of a few megabytes."""
    rows = max(1, _BLOCK // max(1, tensor.element_size() * math.prod(tensor.shape[1:])))
    return (tensor[block] for block in blocks(len(tensor), rows))


def check_finite(where: str, tensor: Tensor) -> None:
    """Check that there is no NaN and no infinity.

    Raises:
        DataError: there is; the message names the first row.
    """
    start = 0
    for block in row_blocks(tensor):
        # One pass without a mask; a sum of finite numbers may overflow, so only the mask decides.
        if not math.isfinite(float(block.sum(dtype=torch.float64))):
            bad = torch.nonzero(~torch.isfinite(block).all(1)).flatten()
            if len(bad):
                raise DataError(f"{where} holds NaN or infinity in row {start + int(bad[0])}")
        start += len(block)


def draw_val(
    info: DatasetInfo, features: Mapping[Part, Mapping[str, Tensor]], fraction: float, seed: int
) -> tuple[DatasetInfo, dict[Part, dict[str, Tensor]]]:
    """Draw a validation split from train: items by stratum, captions with their images."""
    image, text = Part(TRAIN, "image"), Part(TRAIN, "text")
    main = image if image in features else text
    n = sizes_of(features)[main]
    single = (s.labels[TRAIN] for s in info.label_sets.values() if not s.multilabel and TRAIN in s.labels)
    rows = stratified_split(next(single, torch.zeros(n, dtype=torch.int64)), {VAL: fraction}, seed=seed)
    drawn = {part: dict(by_role) for part, by_role in features.items() if part.split != TRAIN}
    captions = dict(info.caption_of)
    for split, of_split in rows.items():
        drawn[Part(split, main.modality)] = {role: take(x, of_split) for role, x in features[main].items()}
        if main == image and text in features:
            position = torch.full((n,), -1, dtype=torch.int64)
            position[of_split] = torch.arange(len(of_split))
            new = position[info.caption_of[TRAIN]]
            texts = torch.nonzero(new >= 0).flatten()
            captions[split] = new[texts]
            drawn[Part(split, "text")] = {role: take(x, texts) for role, x in features[text].items()}
    label_sets = {
        name: LabelSet(
            s.classes,
            {**s.labels, **{split: s.labels[TRAIN][r] for split, r in rows.items() if TRAIN in s.labels}},
            s.prompts,
            s.multilabel,
        )
        for name, s in info.label_sets.items()
    }
    return DatasetInfo(info.name, info.fingerprint, label_sets, captions), drawn


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
