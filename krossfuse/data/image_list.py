"""Image sets whose own annotation files say which image is of which class and split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from krossfuse.core.errors import DataError, check_choice
from krossfuse.core.parts import TEST, TRAIN, VAL
from krossfuse.data.common import ImageFiles, digest
from krossfuse.data.labelled_images import LabelledImages, Source, file_line, plain_name

Rows = list[tuple[str, int]]
"""Path and label of each image."""


class ImageList(LabelledImages):
    """Images by a list in the form of the data set.

    * ``coop``: the splits of the few-shot field (Zhou et al., arXiv 2109.01134), ``split_zhou_NAME.json``:
      ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``.
    * ``cub``: CUB-200-2011's ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt``, ``classes.txt``.
    * ``dogs``: Stanford Dogs' ``train_list.mat`` and ``test_list.mat``: ``file_list`` and ``labels``, from 1 on.

    Args:
        form: ``coop``, ``cub`` or ``dogs``.
        root: the folder of the data set.
        images: folder of the images below ``root``.
        file: the list, below ``root`` (``coop``); None: what the form says.
        **options: see :class:`~krossfuse.data.labelled_images.LabelledImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(self, *, form: str, images: str = "", file: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.form = check_choice("data.form", form, FORMS)
        self.images, self.file = images, file

    def check(self) -> None:
        """Check that the folders and the list are there.

        Raises:
            DataError: one is not.
        """
        super().check()
        for below in (self.images, self.file or ""):
            if not (self.root / below).exists():
                raise DataError(f"data.root: {str(self.root)!r} has no {below!r}{self.way_out()}")

    def read(self) -> Source:
        """Read the lists; no image is opened.

        Raises:
            DataError: a list is missing, or is not of its form; an image that it names is not there.
        """
        self.check()
        try:
            classes, names, rows = FORMS[self.form](self)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"dataset {self.dataset_name!r}: the lists in {str(self.root)!r} are not of the form {self.form!r}: "
                f"{type(error).__name__}: {error}{self.way_out()}"
            ) from error
        lines: list[str] = []
        splits = {}
        for split, of_split in rows.items():
            labels = torch.tensor([label for _, label in of_split], dtype=torch.int64)
            splits[split] = ImageFiles([self.root / path for path, _ in of_split]), labels
            lines += [split, *(f"{label} {file_line(self.root, path, self.digest)}" for path, label in of_split)]
        fingerprint = {"source": f"image_list/{self.form}", "digest": self.digest, "files": digest(lines)}
        return Source(classes, splits, fingerprint, names=names)

    def _coop(self) -> tuple[list[str], list[str], Mapping[str, Rows]]:
        read = json.loads((self.root / str(self.file)).read_text("utf-8"))
        rows = {split: [(f"{self.images}/{path}", int(label)) for path, label, _ in read[split]]
                for split in (TRAIN, VAL, TEST)}  # fmt: skip
        named = {(int(label), str(name)) for of_split in read.values() for _, label, name in of_split}
        classes = dict(sorted(named))
        if len(classes) < len(named) or list(classes) != list(range(len(classes))):
            raise ValueError(f"{len(named)} names for the labels {list(classes)[:5]}...; each label has one, from 0 on")
        return list(classes.values()), [plain_name(name) for name in classes.values()], rows

    def _cub(self) -> tuple[list[str], list[str], Mapping[str, Rows]]:
        paths, labels, training = (
            dict(_words(self.root / f"{name}.txt")) for name in ("images", "image_class_labels", "train_test_split")
        )
        classes = [name for _, name in _words(self.root / "classes.txt")]
        rows: dict[str, Rows] = {TRAIN: [], TEST: []}
        for image, path in paths.items():
            rows[TRAIN if training[image] == "1" else TEST].append(
                (f"{self.images}/{path}", range(1, len(classes) + 1).index(int(labels[image])))
            )
        # 001.Black_footed_Albatross
        return classes, [plain_name(name.partition(".")[2]) for name in classes], rows

    def _dogs(self) -> tuple[list[str], list[str], Mapping[str, Rows]]:
        from scipy.io import loadmat

        rows: dict[str, Rows] = {}
        named: dict[int, str] = {}
        for split in (TRAIN, TEST):
            read = loadmat(self.root / f"{split}_list.mat", variable_names=["file_list", "labels"])
            # n02085620-Chihuahua/n02085620_5927.jpg
            paths = [str(path[0]) for path in read["file_list"].ravel()]
            labels = [int(label) - 1 for label in read["labels"].ravel()]
            rows[split] = [(f"{self.images}/{path}", label) for path, label in zip(paths, labels, strict=True)]
            for path, label in zip(paths, labels, strict=True):
                folder = path.partition("/")[0]
                if named.setdefault(label, folder) != folder:
                    raise ValueError(f"label {label + 1} is of the folders {named[label]!r} and {folder!r}")
        if sorted(named) != list(range(len(named))):
            raise ValueError(f"the labels {sorted(named)[:5]}... are not those from 1 to {len(named)}")
        classes = [named[label] for label in range(len(named))]
        return classes, [plain_name(name.partition("-")[2]) for name in classes], rows


FORMS: Mapping[str, Callable[[ImageList], tuple[list[str], list[str], Mapping[str, Rows]]]] = {
    "coop": ImageList._coop,
    "cub": ImageList._cub,
    "dogs": ImageList._dogs,
}


def _words(path: Path) -> list[tuple[str, str]]:
    """Return number and word of each line."""
    lines = [line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [(number, word.strip()) for number, word in lines]
