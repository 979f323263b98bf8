"""What the GPU's benchmark reads: made pictures, a model with random weights, an embedding with captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import TEST, TRAIN, VAL, Modality, Part
from krossfuse.data.common import ImageFiles
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import Encoder, EncoderModule, TextBatch
from krossfuse.encoders.open_clip_adapter import OpenCLIP
from krossfuse.probes.space import EmbeddingSpace

DISTINCT = 500
"""Files (or prepared pictures) that there are; a larger set reads them again and again, which costs the same."""


class Pictures(BaseDataModule):
    """Made pictures of 500 × 375, as JPEG files or, given ``prepare``, prepared and in memory.

    Args:
        folder: of the files.
        images: how many are listed.
        prepare: what an encoder makes of a picture; None = files.
        options: of the base class.
    """

    def __init__(
        self, folder: Path, images: int, *, prepare: Callable[[Image.Image], Tensor] | None = None, **options: Any
    ) -> None:
        super().__init__(duplicates="ignore", **options)
        self.folder, self.images, self.prepare = folder, images, prepare

    @staticmethod
    def picture(number: int) -> Image.Image:
        """Return a picture that JPEG has to work on: smooth colours, edges, some noise."""
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((500, 375), 3)
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-20, 20, (375, 500, 3))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Any]]]:
        """List the pictures; those that are not there yet are made."""
        distinct = min(DISTINCT, self.images)
        chosen = [number % distinct for number in range(self.images)]
        few = max(1, self.images // 100)  # every dataset has three splits
        cut = {TRAIN: chosen[2 * few :], VAL: chosen[:few], TEST: chosen[few : 2 * few]}
        items: dict[Part, Sequence[Any]]
        if self.prepare is None:
            paths = [self.folder / f"{number}.jpg" for number in range(distinct)]
            for number, path in enumerate(paths):
                if not path.exists():
                    self.picture(number).save(path, quality=90)
            items = {Part(s, "image"): ImageFiles([paths[number] for number in of]) for s, of in cut.items()}
        else:
            ready = [self.prepare(self.picture(number)) for number in range(distinct)]
            items = {Part(s, "image"): [ready[number] for number in of] for s, of in cut.items()}
        return DatasetInfo("pictures", {"images": self.images}, {}), items


def checkpoint(architecture: str, folder: Path) -> OpenCLIP:
    """Return an open_clip model whose random weights are written to ``folder``."""
    import open_clip
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, path)
    return OpenCLIP(architecture=architecture, pretrained=str(path))


class Loaded(Encoder):
    """An encoder whose weights are in memory already, and which takes prepared pictures as they are."""

    def __init__(self, encoder: OpenCLIP) -> None:
        self.name, self.modalities, self.encoder = encoder.name, encoder.modalities, encoder
        self.module = _Ready(encoder.load())

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return the encoder's own."""
        return self.encoder.fingerprint(modality)

    def load(self) -> EncoderModule:
        """Return what is loaded."""
        return self.module


class _Ready(EncoderModule):
    def __init__(self, module: EncoderModule) -> None:
        super().__init__()
        self.inner, self.dim = module, module.dim

    def prepare_image(self, image: Image.Image | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else self.inner.prepare_image(image)

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        return self.inner.prepare_text(texts)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.inner.encode_image(images)

    def encode_text(self, batch: TextBatch) -> Tensor:
        return self.inner.encode_text(batch)


def made_space(rows: int, dim: int, classes: int) -> EmbeddingSpace:
    """Return an embedding of labelled images, class texts, and test images with a caption each, on the CPU."""
    g = torch.Generator().manual_seed(0)
    sizes = {TRAIN: rows, VAL: max(rows // 10, 2 * classes), TEST: max(rows // 5, 2 * classes)}
    centres = torch.randn(classes, dim, generator=g)
    labels = {split: torch.arange(n) % classes for split, n in sizes.items()}

    def near(x: Tensor, noise: float) -> Tensor:
        return torch.nn.functional.normalize(x + noise * torch.randn(x.shape, generator=g), dim=1)

    noise = 0.2 * dim**0.5
    parts: dict[Part, Tensor] = {Part(split, "image"): near(centres[y], noise) for split, y in labels.items()}
    parts[Part(TEST, "text")] = near(parts[Part(TEST, "image")], 2 / dim**0.5)
    parts[Part.prompts("class", "plain")] = near(centres, 0.5)
    names = tuple(f"class {k}" for k in range(classes))
    sets = {"class": LabelSet(names, labels, {"plain": Prompts(names, torch.arange(classes))})}
    info = DatasetInfo("made", {"rows": rows}, sets, {TEST: torch.arange(sizes[TEST])})
    return EmbeddingSpace(info, parts)
