"""Any webdataset in CLIP_benchmark's form: ``{train,test}/0.tar, 1.tar, ...``, ``classnames.txt``, and templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from krossfuse.core.errors import DataError
from krossfuse.core.parts import SPLITS, VAL
from krossfuse.data.captions import Captioned, CaptionedImages
from krossfuse.data.common import digest
from krossfuse.data.labelled_images import LabelledImages, Source, file_line
from krossfuse.data.tars import IMAGES, Sample, TarImages, samples_of, tars_below

_FOLDERS = {"valid": VAL, "validation": VAL}
"""Other names of the folders of splits."""


class WebDataset(LabelledImages):
    """Images and labels in tars: a sample is an image (webp, jpg, png) and its label's number (``cls``).

    Class names and templates are those beside the tars (``classnames.txt``, ``zeroshot_classification_templates.txt``,
    the prompt set ``ensemble``) unless the configuration has others.

    Args:
        **options: of :class:`~krossfuse.data.labelled_images.LabelledImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = "the folder that has train and test, folders of tars"

    def read(self) -> Source:
        """List the tars; no image is read.

        Raises:
            DataError: a tar is missing, truncated or unsafe; a sample lacks its image or its label.
        """
        self.check()
        kind = _kind(self.root)
        if kind != "classification":
            other = "; say data=webdataset_captions" if kind == "retrieval" else ""
            raise DataError(f"{str(self.root)!r} is a webdataset for {kind}, not for classification{other}")
        splits, fingerprint = {}, {}
        for split, (samples, files) in _splits(self.root, self.digest).items():
            labels = torch.tensor([_label(sample) for sample in samples], dtype=torch.int64)
            splits[split] = TarImages([sample.one(IMAGES, "image") for sample in samples]), labels
            fingerprint[split] = files
        names = _lines(self.root / "classnames.txt")
        templates = [line.replace("{c}", "{}") for line in _lines(self.root / "zeroshot_classification_templates.txt")]
        top = 1 + max(int(labels.max()) for _, labels in splits.values())
        if names and top > len(names):
            raise DataError(f"{str(self.root)!r}: label {top - 1}, but classnames.txt has {len(names)} names")
        classes = names or [str(i) for i in range(top)]
        prompts = {"ensemble": templates} if templates else {}
        return Source(classes, splits, {"source": "webdataset", "tars": fingerprint}, prompts, names=classes)


class WebDatasetCaptions(CaptionedImages):
    """Images and captions in tars: a sample is an image and its captions, a line each (``txt``).

    Args:
        **options: of :class:`~krossfuse.data.captions.CaptionedImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = "the folder that has test, and perhaps train, folders of tars"

    def read(self) -> tuple[Captioned, Mapping[str, Any]]:
        """List the tars and read the captions; no image is read.

        Raises:
            DataError: a tar is missing, truncated or unsafe; a sample lacks its image or its captions.
        """
        if (kind := _kind(self.root)) != "retrieval" and (self.root / "dataset_type.txt").is_file():
            raise DataError(f"{str(self.root)!r} is a webdataset for {kind}, not for retrieval; say data=webdataset")
        found, fingerprint = {}, {}
        for split, (samples, files) in _splits(self.root, self.digest).items():
            captions = [[" ".join(line.split()) for line in sample.one(["txt"], "captions").text().splitlines()]
                        for sample in samples]  # fmt: skip
            found[split] = TarImages([sample.one(IMAGES, "image") for sample in samples]), captions
            fingerprint[split] = files
        return found, {"source": "webdataset", "tars": fingerprint}


def _splits(root: Path, how: str) -> dict[str, tuple[list[Sample], str]]:
    """Return by split the samples of its tars, and the digest that stands for the tars."""
    folders = {_FOLDERS.get(folder.name, folder.name): folder for folder in sorted(root.iterdir()) if folder.is_dir()}
    splits = {}
    for split in SPLITS:
        if split in folders:
            tars = tars_below(folders[split])
            samples = [sample for tar in tars for sample in samples_of(tar)]
            splits[split] = samples, digest(file_line(root, tar, how) for tar in tars)
    if not splits:
        raise DataError(f"{str(root)!r} has none of the folders {list(SPLITS)}, with tar files in them")
    return splits


def _label(sample: Sample) -> int:
    member = sample.one(["cls"], "label")
    text = member.text().strip()
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{member.name!r} in {member.tar!r}: label {text[:40]!r} is no number, 0 or more")
    return int(text)


def _kind(root: Path) -> str:
    return (_lines(root / "dataset_type.txt") or ["classification"])[0].lower()


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").split("\n") if line.strip()] if path.is_file() else []
