"""Images with several captions each, no labels: in Karpathy's JSON (MSCOCO, Flickr30k), or any subclass's form."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from krossfuse.core.errors import DataError, check_positive
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import SPLITS, TRAIN, Part
from krossfuse.data.common import ImageFiles, check_counts, digest
from krossfuse.data.files import ImagesInFiles
from krossfuse.data.labelled_images import file_line, rows_of
from krossfuse.data.module import Item

Captioned = Mapping[str, tuple[Sequence[Any], Sequence[Sequence[str]]]]
"""By split, images and the captions of each."""

_OFFICIAL = {"restval": TRAIN}
"""Names of official splits that are part of another: what MSCOCO's validation images leave over is trained on."""


class CaptionedImages(ImagesInFiles):
    """Images with one caption or more each; a subclass says in :meth:`read` what lies in its files.

    Splits that are not official are drawn, image by image; of ``limit`` images the first ones.

    Args:
        captions: how many an image, the first ones; an image with fewer is an error. None = all that it has.
        **options: of :class:`~krossfuse.data.files.ImagesInFiles`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = "the folder of the images"

    def __init__(self, *, captions: int | None = 5, **options: Any) -> None:
        super().__init__(**options)
        if captions is not None:
            check_positive("data.captions", captions, integer=True)
        self.captions = captions

    @abstractmethod
    def read(self) -> tuple[Captioned, Mapping[str, Any]]:
        """Return images and captions by official split, and the fingerprint of the files.

        Raises:
            DataError: the files are not there, or damaged.
        """

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """List the files; no image is opened.

        Raises:
            DataError: the files are not there, or an image has too few captions.
        """
        self.check()
        found, fingerprint = self.read()
        check_counts(self.dataset_name, self.expected, {s: len(texts) for s, (_, texts) in found.items()}, self.root)
        chosen, rule = self.splits_of(
            {split: torch.zeros(len(texts), dtype=torch.int64) for split, (_, texts) in found.items() if texts}
        )
        items: dict[Part, Sequence[Item]] = {}
        caption_of = {}
        for split in SPLITS:
            of, rows = chosen[split]
            images, captions = found[of]
            rows = rows[: self.limit]
            items[Part(split, "image")] = rows_of(images, rows)
            owners, items[Part(split, "text")] = self._texts(split, [captions[row] for row in rows.tolist()])
            caption_of[split] = torch.tensor(owners, dtype=torch.int64)
        whole: dict[str, Any] = {**fingerprint, "splits": rule}
        if self.limit is not None:
            whole["limit"] = self.limit
        return DatasetInfo(self.dataset_name, whole, {}, caption_of), items

    def _texts(self, split: str, captions: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
        rows: list[int] = []
        texts: list[str] = []
        for row, every in enumerate(captions):
            said = [caption for caption in every if caption]
            if len(said) < (self.captions or 1):
                raise DataError(
                    f"dataset {self.dataset_name!r}, {split}: image {row} has {len(said)} caption(s), expected "
                    f"{self.captions or 'one or more'}; say data.captions={len(said) or 1}, or null for all of each "
                    "image"
                )
            rows += [row] * len(said[: self.captions])
            texts += said[: self.captions]
        return rows, texts


class KarpathyCaptions(CaptionedImages):
    """MSCOCO or Flickr30k in the splits of Karpathy and Fei-Fei (arXiv 1412.2306): ``dataset_coco.json``, ...

    Args:
        root: the folder of the images, as the file's ``filepath`` and ``filename`` name them.
        file: the JSON file, below ``root`` or anywhere.
        **options: of :class:`CaptionedImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(self, *, root: str | None, file: str, **options: Any) -> None:
        super().__init__(root=root, **options)
        self.file = self.root / Path(file).expanduser()

    def check(self) -> None:
        """Check that the folder and the file of captions are there.

        Raises:
            DataError: one is not.
        """
        super().check()
        if not self.file.is_file():
            raise DataError(f"data.file: there is no file {str(self.file)!r}{self.way_out()}")

    def read(self) -> tuple[Captioned, Mapping[str, Any]]:
        """Read the file; no image is opened.

        Raises:
            DataError: it is of another form, or a caption has no image.
        """
        images = karpathy_images(self.file, self.root, self.way_out())
        lines = (x for s in SPLITS for x in (s, *(file_line(self.root, one.path, self.digest) for one in images[s])))
        fingerprint = {"source": "karpathy", "digest": self.digest, "files": digest(lines)}
        found = {s: (ImageFiles([one.path for one in of]), [one.captions for one in of]) for s, of in images.items()}
        return found, fingerprint


class CaptionedFile(NamedTuple):
    """An image of Karpathy's list: its file, its captions, and its number in MSCOCO (-1: it has none)."""

    path: Path
    captions: list[str]
    number: int


def karpathy_images(file: Path, root: Path, way_out: str) -> dict[str, list[CaptionedFile]]:
    """Return the images of Karpathy's JSON by split.

    Args:
        file: the JSON file.
        root: the folder that its paths are below.
        way_out: what the error says in the end.

    Raises:
        DataError: it is of another form.
    """
    images: dict[str, list[CaptionedFile]] = {split: [] for split in SPLITS}
    try:
        for image in json.loads(file.read_text("utf-8"))["images"]:
            path = root / image.get("filepath", "") / image["filename"]
            captions = [" ".join(str(one["raw"]).split()) for one in image["sentences"]]
            split = _OFFICIAL.get(image["split"], image["split"])
            images[split].append(CaptionedFile(path, captions, int(image.get("cocoid", -1))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"data.file: {str(file)!r} is not Karpathy's JSON (images with split, filename and sentences): "
            f"{type(error).__name__}: {error}{way_out}"
        ) from error
    return images
