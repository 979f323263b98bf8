"""MSCOCO with a class an image: that of its largest object; the captions are its texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from krossfuse.core.errors import DataError
from krossfuse.core.parts import SPLITS
from krossfuse.data.captions import karpathy_images
from krossfuse.data.common import ImageFiles, digest
from krossfuse.data.labelled_images import LabelledImages, Source, file_line


class CocoObjects(LabelledImages):
    """MSCOCO's images in Karpathy's splits, labelled by the category of the object that covers most of each.

    The area is the one that the annotations give; of equal ones the first counts. Crowds (``iscrowd``) are no objects,
    and images without an object are left out. This is a rule of ours: MSCOCO has no class an image.

    Args:
        root: the folder of the images, as ``filepath`` and ``filename`` of the captions' file name them.
        file: Karpathy's JSON of the captions, below ``root`` or anywhere.
        instances: the JSON files of the objects (``annotations/instances_train2014.json``, ...), likewise.
        captions: how many an image, the first ones; None = all that it has.
        **options: of :class:`~krossfuse.data.labelled_images.LabelledImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = "the folder of the images"

    def __init__(self, *, file: str, instances: list[str], captions: int | None = 5, **options: Any) -> None:
        super().__init__(**options)
        self.file = self.root / Path(file).expanduser()
        self.instances = [self.root / Path(str(one)).expanduser() for one in instances]
        self.captions = captions

    def check(self) -> None:
        """Check that the folder and the JSON files are there.

        Raises:
            DataError: one is not.
        """
        super().check()
        for file in (self.file, *self.instances):
            if not file.is_file():
                raise DataError(f"data.root: there is no file {str(file)!r}{self.way_out()}")

    def read(self) -> Source:
        """Read captions and objects; no image is opened.

        Raises:
            DataError: a file is of another form, or two files number the categories differently.
        """
        self.check()
        names: dict[int, str] = {}
        largest: dict[int, tuple[float, int]] = {}
        for file in self.instances:
            self._objects(file, names, largest)
        numbers = sorted(names)
        splits, texts, lines = {}, {}, []
        for split, images in karpathy_images(self.file, self.root, self.way_out()).items():
            kept = [image for image in images if image.number in largest]
            labels = [numbers.index(largest[image.number][1]) for image in kept]
            splits[split] = ImageFiles([image.path for image in kept]), torch.tensor(labels, dtype=torch.int64)
            texts[split] = [image.captions[: self.captions] for image in kept]
            for image, label in zip(kept, labels, strict=True):
                lines.append(f"{split} {label} {file_line(self.root, image.path, self.digest)}")
        captions = digest(text for split in SPLITS if split in texts for of in texts[split] for text in of)
        fingerprint = {"source": "coco_objects", "digest": self.digest, "files": digest(lines), "texts": captions}
        return Source([names[number] for number in numbers], splits, fingerprint, texts=texts)

    def _objects(self, file: Path, names: dict[int, str], largest: dict[int, tuple[float, int]]) -> None:
        try:
            read = json.loads(file.read_text("utf-8"))
            for category in read["categories"]:
                if names.setdefault(int(category["id"]), str(category["name"])) != category["name"]:
                    raise ValueError(f"category {category['id']} is {category['name']!r} and {names[category['id']]!r}")
            for one in read["annotations"]:
                if one["category_id"] not in names:
                    raise ValueError(f"an object of category {one['category_id']}, which has no name")
                if not one.get("iscrowd") and one["area"] > largest.get(one["image_id"], (0.0, 0))[0]:
                    largest[one["image_id"]] = float(one["area"]), int(one["category_id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"data.instances: {str(file)!r} is not MSCOCO's JSON of objects (categories, and annotations with "
                f"image_id, category_id and area): {type(error).__name__}: {error}{self.way_out()}"
            ) from error
