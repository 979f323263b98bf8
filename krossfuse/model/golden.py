"""Golden embeddings: what a few made images and texts became where a model was saved, held against what they become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from krossfuse.core.errors import StoreError
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import EncoderModule
from krossfuse.model.fused import Fused

TEXTS = (
    "a red mushroom",
    "an emoji of a smiling face",
    "Zwei Kätzchen auf der Matte, 3,50 €",
    "a long description, with more words than a short one has, of a house by the sea at night",
)
SIZES = ((64, 64), (96, 48), (40, 80), (224, 224))

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
"""By precision, the distance of two embeddings over their norm up to which they are equal: above rounding on another
processor, below any change of weights or preprocessing that means something."""

POOLED = 8
"""Prepared images are kept as means over so many squares a side."""

FUSED = "fused"


def golden_images() -> list[Image.Image]:
    """Return the made images: smooth gradients with a pattern, of several shapes, by a formula."""
    made = []
    for number, (width, height) in enumerate(SIZES, start=1):
        y, x = np.mgrid[:height, :width].astype(np.int64)
        waves = [(x * number * 3 + y) % 256, (y * 255) // height, ((x // 8 + y // 8) % 2) * 128 + (x * 127) // width]
        made.append(Image.fromarray(np.stack(waves, -1).astype(np.uint8)))
    return made


def golden(model: Fused, images: list[Image.Image], texts: list[str]) -> dict[str, Tensor]:
    """Return what a model makes of golden inputs: by ``MODALITY/prepared/ROLE``, ``MODALITY/encoder/ROLE``, fused.

    Args:
        model: on the CPU.
        images: of the image side.
        texts: of the text side.
    """
    made: dict[str, Tensor] = {}
    for modality in model.modalities:
        given: list[Any] = images if modality == "image" else texts
        for role, module in model.loaded(modality).items():
            for name, x in _prepared(module, modality, given):
                made[f"{modality}/prepared{name}/{role}"] = x.contiguous()
        features = model.encode_parents(modality, given)
        made |= {f"{modality}/encoder/{role}": x.contiguous() for role, x in features.items()}
        made[f"{modality}/{FUSED}"] = model.fuse(modality, features).contiguous()
    return made


def _prepared(module: EncoderModule, modality: Modality, given: list[Any]) -> Iterator[tuple[str, Tensor]]:
    if modality == "text":
        yield from ((f"/{name}", x) for name, x in module.prepare_text(given).items())
    else:
        pool = torch.nn.AdaptiveAvgPool2d(POOLED)
        yield "", torch.cat([pool(module.prepare_image(image)[None]).flatten(1) for image in given])


def golden_file(model: Fused) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of ``golden.safetensors``: inputs and what they became."""
    images, texts = golden_images(), list(TEXTS)
    tensors = golden(model, images, texts)
    tensors |= {f"image/input/{i}": torch.from_numpy(np.array(image)) for i, image in enumerate(images)}
    return tensors, {"texts": json.dumps(texts, ensure_ascii=False)}


def differences(model: Fused, tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[str]:
    """Return, in words, what a model makes of the golden inputs that is not what was saved; empty: all is equal.

    Raises:
        StoreError: the file does not hold what it should.
    """
    try:
        texts = json.loads(metadata["texts"])
        inputs = sorted((int(key.rpartition("/")[2]), key) for key in tensors if key.startswith("image/input/"))
        images = [Image.fromarray(tensors[key].numpy()) for _, key in inputs]
        now = golden(model, images, texts)
        saved = {key: tensors[key] for key in now}
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"golden.safetensors does not hold what it should ({type(error).__name__}: {error}); save the "
                         "model again") from None  # fmt: skip
    tolerance = TOLERANCE[now[f"{model.modalities[0]}/{FUSED}"].dtype]
    found: dict[tuple[str, str], str] = {}
    for key, x in now.items():
        modality, kind, *role = key.split("/", 2)
        off = _distance(saved[key], x)
        allowed = tolerance if kind == FUSED else TOLERANCE[torch.float32]
        if not off <= allowed:
            name = role[-1].rpartition("/")[2] if role else ""
            at_fault = (modality, name)
            if kind == "prepared":
                found[at_fault] = f"the preprocessing of {modality}s for {name!r}"
            elif kind == "encoder" and at_fault not in found:
                found[at_fault] = f"the {modality} features of {name!r} (by {off:.1e} of their norm)"
            elif kind == FUSED and not any(of == modality for of, _ in found):
                found[at_fault] = f"the fusion of {modality} features (by {off:.1e} of the norm)"
    return list(found.values())


def _distance(saved: Tensor, now: Tensor) -> float:
    """Return the largest distance of two rows over the saved row's norm; infinite where the shapes differ."""
    if saved.shape != now.shape:
        return float("inf")
    a, b = saved.double(), now.double()
    return float(((a - b).norm(dim=1) / a.norm(dim=1).clamp_min(1e-30)).max())
