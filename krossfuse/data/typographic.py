"""Typographic attack: a misleading class name written over each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import PIL
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, did_you_mean
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import Part
from krossfuse.data.common import digest
from krossfuse.data.module import BaseDataModule, Item

FILL, EDGE = "red", "white"


class TypographicAttack(BaseDataModule):
    """Another dataset with the name of a wrong class written in red over each image.

    The wrong class is drawn uniformly from the others, by ``seed`` and split, one draw an item; labels, texts and
    prompts stay the true ones. The name stands in the middle, in Pillow's own font with a thin white edge, as
    large as fits the image's central square (so that a centre crop keeps it).

    Args:
        base: the attacked dataset; its ``batch_size`` and ``num_workers`` hold.
        label_set: the label set whose class names mislead; None = the first.
        seed: of the draw.
        name: of the dataset, in results; None = the base's name and ``_typographic``.

    Attributes:
        misleading: after ``setup``: by split, (n,) int64, the class whose name is written on each image.

    Raises:
        ConfigError: ``base`` is no dataset of images and texts.
    """

    misleading: Mapping[str, Tensor]

    def __init__(
        self, *, base: BaseDataModule, label_set: str | None = None, seed: int = 0, name: str | None = None
    ) -> None:
        if not isinstance(base, BaseDataModule):
            raise ConfigError(f"data.base must be a dataset of images, got {type(base).__name__}")
        super().__init__(batch_size=base.batch_size, num_workers=base.num_workers)
        self.base = base
        self.label_set = label_set
        self.seed = seed
        self.dataset_name = name

    def check(self) -> None:
        """Check the base."""
        self.base.check()

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """List the base and draw the misleading classes.

        Raises:
            ConfigError: the base has no such label set.
            DataError: no images, fewer than two classes, or a multilabel set.
        """
        info = self.base.info
        chosen = self.label_set or next(iter(info.label_sets), "")
        if chosen not in info.label_sets:
            near = did_you_mean(chosen, info.label_sets)
            raise ConfigError(f"data.label_set={chosen!r} is not one of {list(info.label_sets)} of {info.name!r}{near}")
        label_set = info.label_sets[chosen]
        if label_set.multilabel or len(label_set.classes) < 2:
            raise DataError(f"label set {chosen!r} of {info.name!r} must have two or more classes, one an item")
        parts = [part for part in self.base.parts() if not part.split.startswith("prompts/")]
        if not any(part.modality == "image" for part in parts):
            raise DataError(f"dataset {info.name!r} has no images to write on")
        items = {part: self.base.items(part) for part in parts}
        self.misleading = {
            split: draw_misleading(labels, len(label_set.classes), seed=int(digest([str(self.seed), split])[:15], 16))
            for split, labels in label_set.labels.items()
        }
        for part in parts:
            if part.modality == "image":
                names = [label_set.classes[i] for i in self.misleading[part.split].tolist()]
                items[part] = _Attacked(items[part], names)
        fingerprint = {
            **info.fingerprint,
            "typographic_attack": {
                "label_set": chosen,
                "seed": self.seed,
                "drawn": digest(str(rows.tolist()) for rows in self.misleading.values()),
                "names": digest(label_set.classes),
                "pillow": PIL.__version__,
            },
        }
        name = self.dataset_name or f"{info.name}_typographic"
        return DatasetInfo(name, fingerprint, info.label_sets, info.caption_of, info.fold_of), items


def draw_misleading(labels: Tensor, n_classes: int, *, seed: int) -> Tensor:
    """Draw a class other than the true one for each item.

    Args:
        labels: (n,) int64; -1 = no label, taken as class 0.
        n_classes: two or more.
        seed: of the CPU generator.

    Returns:
        (n,) int64.
    """
    step = torch.randint(1, n_classes, labels.shape, generator=torch.Generator().manual_seed(seed))
    return (labels.clamp_min(0) + step) % n_classes


def write_over(image: Image.Image, text: str) -> Image.Image:
    """Return a copy of ``image`` with ``text`` in red in its middle, as large as fits."""
    image = image.copy()
    side = min(image.size)
    size, lines = _layout(text, side)
    ImageDraw.Draw(image).multiline_text(
        (image.width / 2, image.height / 2),
        "\n".join(lines),
        fill=FILL,
        font=_font(size),
        anchor="mm",
        align="center",
        spacing=0,
        stroke_width=size // 16,
        stroke_fill=EDGE,
    )
    return image


class _Attacked(Sequence[Item]):
    """Images with a name written over each."""

    def __init__(self, images: Sequence[Item], names: list[str]) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        image = self.images[index]
        assert isinstance(image, Image.Image)
        return write_over(image, self.names[index])


@lru_cache(maxsize=4096)
def _layout(text: str, side: int) -> tuple[int, tuple[str, ...]]:
    """Return the largest font size, and the lines, with which ``text`` fills 0.9 of the width and half the height."""
    for size in range(max(1, side // 3), 1, -1):
        font, lines = _font(size), [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > 0.9 * side:
                lines.append(word)
            else:
                lines[-1] = longer
        if max(map(font.getlength, lines)) <= 0.9 * side and 1.2 * size * len(lines) <= 0.5 * side:
            return size, tuple(lines)
    return 1, (text,)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
