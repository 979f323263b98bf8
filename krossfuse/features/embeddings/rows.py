"""Features of a file in blocks of rows: checked and drawn without a second copy in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import TRAIN, VAL, Part
from krossfuse.data.common import stratified_split
from krossfuse.features.regroup import regroup, row_blocks


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
    return regroup(info, features, {split: {TRAIN: of_split} for split, of_split in rows.items()})
