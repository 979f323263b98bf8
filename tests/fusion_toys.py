"""Parents of a few dimensions, their features, and the constants, for the tests of the methods."""

from __future__ import annotations

import torch
from torch import Tensor

from krossfuse.core.parts import Modality
from krossfuse.fusion.base import InputSpec

CROSS, IMAGE, TEXT = 6, 8, 5
C, C_TEXT = 0.3, 0.7
INPUTS = {
    "image": InputSpec(CROSS, {"dino.v2": IMAGE}),
    "text": InputSpec(CROSS, {}, {"minilm": TEXT}),
    "both": InputSpec(CROSS, {"dino.v2": IMAGE}, {"minilm": TEXT}),
    "several": InputSpec(CROSS, {"dino.v2": IMAGE, "unicom": 4}),
}
PAIRS: list[tuple[Modality, Modality]] = [("image", "image"), ("image", "text"), ("text", "text")]


def features(n: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[Modality, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def rows(d: int) -> Tensor:
        return (torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5).to(dtype)

    image = {"cross_modal": rows(CROSS), "dino.v2": rows(IMAGE), "unicom": rows(4)}
    return {"image": image, "text": {"cross_modal": rows(CROSS), "minilm": rows(TEXT)}}


def constants(case: str) -> dict[str, float]:
    return {"C": C, "C_text": C_TEXT} if case == "both" else {"C": C}
