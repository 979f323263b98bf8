"""What the pre-training sees: pictures and captions of OpenMoji's part ``pretrain``, and their augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from krossfuse.data.openmoji import PRETRAIN, Emoji, assign_parts, list_emoji, render
from krossfuse.encoders.bundled import CLIP_MEAN, CLIP_STD


def training_emoji(limit: int | None = None) -> list[Emoji]:
    """Return the emoji of the part ``pretrain``; with ``limit``, that many spread over the list (toy runs)."""
    parts = assign_parts()
    emoji = [e for e in list_emoji() if parts[e.id] == PRETRAIN]
    return emoji if limit is None else emoji[:: max(1, len(emoji) // limit)][:limit]


@dataclass(frozen=True)
class Pictures:
    """Rendered pictures in memory.

    Attributes:
        rgba: (n, 4, side, side) uint8; the first pictures are the emoji themselves, in order, the others their
            skin tones.
        variants: by emoji, the rows of its skin tones (may be none).
    """

    rgba: Tensor
    variants: Sequence[Sequence[int]]


def draw(emoji: Sequence[Emoji], side: int, *, skin_tones: bool = True) -> Pictures:
    """Render the emoji and, if asked, the skin-tone variants of the same emoji."""
    rows = {e.without_skin_tone: i for i, e in enumerate(emoji)}
    tones = [t for t in list_emoji(skin_tones=True) if t.without_skin_tone in rows] if skin_tones else []
    variants: list[list[int]] = [[] for _ in emoji]
    for i, tone in enumerate(tones):
        variants[rows[tone.without_skin_tone]].append(len(emoji) + i)
    pixels = np.stack([np.asarray(render(e, side, background=None)) for e in [*emoji, *tones]])
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), variants)


@dataclass(frozen=True)
class Captions:
    """Texts that are encoded once, before training.

    Attributes:
        names: (templates, emoji) texts; the first template is the bare name.
        categories: by category kind (group, subgroup), (templates, classes) texts: the classes' own captions.
        labels: by category kind, (emoji,) int64.
    """

    names: Sequence[Sequence[str]]
    categories: Mapping[str, Sequence[Sequence[str]]]
    labels: Mapping[str, Tensor]


def caption(
    emoji: Sequence[Emoji],
    *,
    name_templates: Sequence[str],
    category_templates: Sequence[str],
    class_names: Mapping[str, Mapping[str, str]],
) -> Captions:
    """Write the captions.

    Args:
        emoji: the training emoji.
        name_templates: with ``{name}``, and ``{group}`` and ``{subgroup}`` for the class names.
        category_templates: with ``{}`` for the class name.
        class_names: by kind and class, as in ``conf/data/openmoji.yaml``.
    """

    def spoken(kind: str, value: str) -> str:
        return class_names.get(kind, {}).get(value, value.lower().replace("-", " "))

    names = [
        [
            template.format(name=e.name, group=spoken("group", e.group), subgroup=spoken("subgroup", e.subgroup))
            for e in emoji
        ]
        for template in name_templates
    ]
    categories: dict[str, list[list[str]]] = {}
    labels: dict[str, Tensor] = {}
    for kind in ("group", "subgroup"):
        values = [getattr(e, kind) for e in emoji]
        classes = list(dict.fromkeys(values))
        categories[kind] = [[t.format(spoken(kind, c)) for c in classes] for t in category_templates]
        labels[kind] = torch.tensor([classes.index(v) for v in values])
    return Captions(names, categories, labels)


class Batch(NamedTuple):
    """One step's input: normalised images (batch, 3, size, size), rows of their emoji, template of each caption."""

    images: Tensor
    rows: Tensor
    templates: Tensor


class Batches(IterableDataset[Batch]):
    """Batches of distinct emoji, each drawn once an epoch, with fresh augmentation.

    Args:
        pictures: rendered pictures.
        n_templates: templates of name captions to draw from.
        batch_size: emoji a batch; what is left over at the end of an epoch is dropped.
        size: side of the images in pixels.
        skin_tone: chance that an emoji with skin tones is shown in one of them.
        bare_name: chance that the caption is the bare name.
        strength: of the augmentation.
        seed: of all draws.
    """

    def __init__(
        self,
        pictures: Pictures,
        n_templates: int,
        *,
        batch_size: int,
        size: int,
        skin_tone: float,
        bare_name: float,
        strength: float,
        seed: int,
    ) -> None:
        self.pictures, self.n_templates, self.size, self.strength = pictures, n_templates, size, strength
        self.batch_size = min(batch_size, len(pictures.variants))
        self.skin_tone, self.bare_name = skin_tone, bare_name
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.pictures.variants) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        g, n = self.generator, len(self.pictures.variants)
        for rows in torch.randperm(n, generator=g)[: len(self) * self.batch_size].split(self.batch_size):
            chance = torch.rand(len(rows), generator=g)
            shown = rows.clone()
            for i, row in enumerate(rows.tolist()):
                variants = self.pictures.variants[row]
                if variants and chance[i] < self.skin_tone:
                    shown[i] = variants[int(chance[i] / self.skin_tone * len(variants))]
            templates = torch.randint(self.n_templates, (len(rows),), generator=g)
            templates[torch.rand(len(rows), generator=g) < self.bare_name] = 0
            images = augment(self.pictures.rgba[shown], self.size, strength=self.strength, generator=g)
            yield Batch(normalise(images), rows, templates)


def normalise(rgb: Tensor) -> Tensor:
    """Bring RGB in [0, 1] to the encoder's input, in the memory layout that convolutions like best."""
    return ((rgb - CLIP_MEAN) / CLIP_STD).contiguous(memory_format=torch.channels_last)


def augment(rgba: Tensor, size: int, *, strength: float, generator: torch.Generator) -> Tensor:
    """Return random views of pictures with transparency.

    Rotation, scale, aspect, shear, shift and flip; saturation, hue, contrast and brightness of the drawing; a
    coloured background now and then (else white); one rectangle erased now and then.

    Args:
        rgba: (n, 4, side, side) uint8.
        size: side of the views.
        strength: 1 = as meant, 0 = the pictures themselves on white, scaled.
        generator: of all draws, on the CPU.

    Returns:
        (n, 3, size, size) float32 in [0, 1].
    """
    n, s = len(rgba), strength

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def happens(chance: float) -> Tensor:
        return (torch.rand(n, generator=generator) < chance * s).view(n, 1, 1, 1)

    angle = uniform(-0.35, 0.35) * s
    zoom, aspect = torch.exp(uniform(-0.3, 0.25) * s), torch.exp(uniform(-0.15, 0.15) * s)
    flip = torch.where(happens(0.3).flatten(), -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = uniform(-0.15, 0.15, 2) * s
    matrix = torch.stack(
        [
            torch.stack([flip * cos / zoom * aspect, -sin / zoom + uniform(-0.15, 0.15) * s, shift[:, 0]], 1),
            torch.stack([flip * sin / zoom, cos / zoom / aspect, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [n, 4, size, size], align_corners=False)
    view = F.grid_sample(rgba.float() / 255, grid, align_corners=False)
    rgb, alpha = view[:, :3], view[:, 3:]

    gray = rgb.mean(1, keepdim=True)
    saturation = torch.where(happens(0.1), 0.0, 1 + uniform(-0.5, 0.5, 1, 1, 1) * s)
    rgb = gray + (rgb - gray) * saturation
    mixing = torch.eye(3) + 0.12 * s * torch.randn(n, 3, 3, generator=generator)
    rgb = torch.einsum("nij,njhw->nihw", mixing / mixing.sum(2, keepdim=True), rgb)
    rgb = (rgb - 0.5) * (1 + uniform(-0.3, 0.3, 1, 1, 1) * s) + 0.5
    rgb = rgb * (1 + uniform(-0.3, 0.3, 1, 1, 1) * s)

    background = torch.where(happens(0.35), uniform(0, 1, 3, 1, 1), torch.ones(()))
    out = (rgb * alpha + background * (1 - alpha)).clamp(0, 1)

    along = (torch.arange(size) + 0.5) / size
    corner, extent = uniform(0, 0.7, 2), uniform(0.15, 0.4, 2)
    inside = (along >= corner[..., None]) & (along < (corner + extent)[..., None])
    erased = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(erased[:, None] & happens(0.25), uniform(0, 1, 3, 1, 1), out)
