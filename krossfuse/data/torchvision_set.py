"""Image sets that torchvision reads: MNIST and its like, CIFAR, SVHN, Food-101, Flowers-102, Pets, DTD, ..."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from krossfuse.core.errors import ConfigError, DataError, check_choice
from krossfuse.core.parts import TEST, TRAIN, VAL
from krossfuse.data.common import ImageFiles, digest
from krossfuse.data.folds import official_splits
from krossfuse.data.labelled_images import ALL, LabelledImages, Source, file_line

_FLAG = {TRAIN: {"train": True}, TEST: {"train": False}}
_TWO = {TRAIN: {"split": "train"}, TEST: {"split": "test"}}
_THREE = {TRAIN: {"split": "train"}, VAL: {"split": "val"}, TEST: {"split": "test"}}

Read = Callable[[Any], Any]


@dataclass(frozen=True)
class Layout:
    """How one of torchvision's classes is asked for its splits, and where it keeps what it has listed.

    Attributes:
        splits: by official split, the arguments of its constructor.
        labels: gives the labels.
        files: gives the paths of the images; None: pixels are in memory (``data``).
        classes: gives the names of the classes; None: they are known from a list alone.
        ordered: whether the files are always listed in the same order.
    """

    splits: Mapping[str, Mapping[str, Any]]
    labels: Read = lambda data: data.targets
    files: Read | None = None
    classes: Read | None = lambda data: data.classes
    ordered: bool = True


def _listed(splits: Mapping[str, Mapping[str, Any]], **more: Any) -> Layout:
    return Layout(splits, **{"labels": lambda data: data._labels, "files": lambda data: data._image_files, **more})


def _samples(name: str) -> dict[str, Read]:
    return {
        "labels": lambda data: [label for _, label in getattr(data, name)],
        "files": lambda data: [path for path, _ in getattr(data, name)],
    }


def _caltech_files(data: Any) -> list[str]:
    folder = os.path.join(data.root, "101_ObjectCategories")
    return [
        os.path.join(folder, data.categories[label], f"image_{number:04d}.jpg")
        for label, number in zip(data.y, data.index, strict=True)
    ]


# What torchvision keeps under a name with an underscore is its own affair; a test reads every one of these sets.
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100"), Layout(_FLAG)),
    "SVHN": Layout(_TWO, labels=lambda data: data.labels, classes=None),
    "Food101": _listed(_TWO),
    "Flowers102": _listed(_THREE, classes=None),  # torchvision below 0.23 does not know their names
    "DTD": _listed(_THREE),
    "FGVCAircraft": _listed(_THREE),
    "OxfordIIITPet": _listed({TRAIN: {"split": "trainval"}, TEST: {"split": "test"}}, files=lambda data: data._images),
    "GTSRB": _listed(_TWO, classes=None, **_samples("_samples")),
    "StanfordCars": _listed(_TWO, **_samples("_samples")),
    "EuroSAT": _listed({ALL: {}}, **_samples("samples")),
    "SUN397": _listed({ALL: {}}, ordered=False),
    "Caltech101": _listed(
        {ALL: {}}, labels=lambda data: data.y, files=_caltech_files, classes=lambda data: data.categories
    ),
}
DATASETS = tuple(LAYOUTS)


class TorchvisionDataset(LabelledImages):
    """One of torchvision's image sets, in its official splits; what they lack is drawn.

    Args:
        dataset: class name in ``torchvision.datasets``, one of ``DATASETS``.
        root: folder as torchvision lays it out.
        download: whether to download what is absent.
        options: more arguments of torchvision's class (``partition`` of DTD, ``annotation_level`` of FGVCAircraft).
        name: of the dataset, in results; None = ``dataset`` in lower case.
        **options_of_images: see :class:`~krossfuse.data.labelled_images.LabelledImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(
        self,
        *,
        dataset: str,
        root: str | None,
        download: bool = False,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options_of_images: Any,
    ) -> None:
        self.dataset = check_choice("data.dataset", dataset, DATASETS)
        self.what = f"torchvision's root of {dataset}"
        super().__init__(root=root, name=name or dataset.lower(), **options_of_images)
        if not isinstance(download, bool):
            raise ConfigError(f"data.download={download!r} must be true or false")
        self.download = download
        self.options = dict(options or {})
        if self.folds is not None and ALL not in LAYOUTS[dataset].splits:
            raise official_splits(self.folds, repr(self.dataset_name), "")

    def check(self) -> None:
        """Check that the folder is there, unless it is to be downloaded.

        Raises:
            DataError: it is not.
        """
        if not self.download and not self.root.is_dir():
            raise DataError(
                f"data.root: there is no folder {str(self.root)!r}; set data.root to torchvision's root of "
                f"{self.dataset}, or data.download=true{self.way_out()}"
            )
        holds = self.root / self.about.get("holds", "")
        if not self.download and not holds.exists():
            raise DataError(
                f"torchvision cannot read {self.dataset} below {str(self.root)!r}: there is no {str(holds)!r}; "
                f"set data.root to the folder that has it, or data.download=true{self.way_out()}"
            )

    def read(self) -> Source:
        """Let torchvision list the set.

        Raises:
            DataError: the files are not there, or damaged.
            ConfigError: ``options`` that torchvision does not know.
        """
        from torchvision import datasets

        layout = LAYOUTS[self.dataset]
        make = getattr(datasets, self.dataset)
        self.check()  # some of torchvision's classes make the folder otherwise
        try:
            listed = {
                split: make(str(self.root), **arguments, **self.options, download=self.download)
                for split, arguments in layout.splits.items()
            }
        except TypeError as error:
            raise ConfigError(f"data.options={self.options}: torchvision's {self.dataset}: {error}") from error
        except (RuntimeError, OSError, ValueError, AssertionError, KeyError) as error:
            raise DataError(
                f"torchvision cannot read {self.dataset} below {str(self.root)!r}: {error}; "
                f"set data.root to the folder that has it, or data.download=true{self.way_out()}"
            ) from error
        first = next(iter(listed.values()))
        if layout.classes is not None:
            classes = [str(name) for name in layout.classes(first)]
        elif self.class_list is not None:
            classes = list(self.class_list.names)
        else:
            classes = self.class_names or [str(i) for i in range(1 + max(int(x) for x in layout.labels(first)))]
        splits: dict[str, tuple[Sequence[Any], torch.Tensor]] = {}
        for split, data in listed.items():
            labels = torch.as_tensor(np.asarray(layout.labels(data)), dtype=torch.int64)
            images: Sequence[Any] = _Pixels(data)
            if layout.files is not None:
                paths = [str(path) for path in layout.files(data)]
                if not layout.ordered:
                    order = sorted(range(len(paths)), key=paths.__getitem__)
                    paths, labels = [paths[row] for row in order], labels[order]
                images = ImageFiles(paths)
            splits[split] = images, labels
        fingerprint: dict[str, Any] = {"source": f"torchvision/{self.dataset}"}
        if self.options:
            fingerprint["options"] = dict(self.options)
        if layout.files is None:
            fingerprint["sha256"] = {split: _sha256(data.data) for split, data in listed.items()}
        else:
            fingerprint["digest"] = self.digest
            fingerprint["files"] = digest(self._lines(splits))
        return Source(classes, splits, fingerprint)

    def _lines(self, splits: Mapping[str, tuple[Sequence[Any], torch.Tensor]]) -> list[str]:
        root = Path(os.path.abspath(self.root))
        lines = []
        for split, (images, labels) in splits.items():
            lines += [split, digest(map(str, labels.tolist()))]
            assert isinstance(images, ImageFiles)
            lines += [file_line(root, os.path.abspath(path), self.digest) for path in images.paths]
        return lines


class _Pixels(Sequence[Image]):
    """Images that torchvision holds in memory, as RGB."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        image: Image = self.dataset[index][0]
        return image.convert("RGB")

    def content(self, index: int) -> bytes:
        """Return the bytes of the stored pixels."""
        return np.ascontiguousarray(self.dataset.data[index]).tobytes()


def _sha256(data: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()
