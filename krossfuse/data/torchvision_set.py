"""Small image sets that torchvision reads: MNIST and its like, CIFAR."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Part
from krossfuse.data.common import (
    check_fractions,
    check_split_seed,
    make_prompt_sets,
    prompt_templates,
    required_path,
    stratified_split,
)
from krossfuse.data.folds import check_folds, official_splits
from krossfuse.data.module import BaseDataModule, Item

DATASETS = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")


class TorchvisionDataset(BaseDataModule):
    """One of torchvision's in-memory image sets; its official test split, and validation drawn from train.

    Args:
        dataset: class name in ``torchvision.datasets``, one of ``DATASETS``.
        root: folder as torchvision lays it out.
        download: whether to download what is absent.
        class_names: in the order of the labels; None = torchvision's own.
        prompts: by prompt set, templates with ``{}``.
        val_fraction: share of train that is the validation split, stratified.
        split_seed: of that draw (not the run's seed).
        folds: refused unless None: the test split is official. (So that a study of folds says so here.)
        limit: at most so many items a split, the first of each class in turn; None = all.
        name: of the dataset, in results; None = ``dataset`` in lower case.
        **loader: ``batch_size`` and ``num_workers``, see the base.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(
        self,
        *,
        dataset: str,
        root: str | None,
        download: bool = False,
        class_names: Sequence[str] | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        folds: int | None = None,
        limit: int | None = None,
        name: str | None = None,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.dataset = check_choice("data.dataset", dataset, DATASETS)
        self.root = required_path("root", root, f"torchvision's root of {dataset}")
        self.download = download
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.prompts = prompt_templates(prompts)
        self.val_fraction = val_fraction
        check_fractions({VAL: val_fraction})
        self.split_seed = check_split_seed(split_seed)
        if limit is not None:
            check_positive("data.limit", limit, integer=True)
        self.limit = limit
        self.dataset_name = str(name or dataset.lower())
        if check_folds(folds) is not None:
            raise official_splits(folds, repr(self.dataset_name), "")

    def check(self) -> None:
        """Check that the folder is there, unless it is to be downloaded.

        Raises:
            DataError: it is not.
        """
        if not self.download and not self.root.is_dir():
            raise DataError(
                f"data.root: there is no folder {str(self.root)!r}; set data.root to torchvision's root of "
                f"{self.dataset}, or data.download=true"
            )

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """Read the arrays.

        Raises:
            DataError: the files are not there, or damaged.
            ConfigError: ``class_names`` of another length than the classes.
        """
        from torchvision import datasets

        try:
            official = {
                train: getattr(datasets, self.dataset)(str(self.root), train=train, download=self.download)
                for train in (True, False)
            }
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            raise DataError(
                f"torchvision cannot read {self.dataset} below {str(self.root)!r}: {error}; "
                f"set data.root to the folder that has it, or data.download=true"
            ) from error
        classes = list(official[True].classes)
        if self.class_names is not None and len(self.class_names) != len(classes):
            raise ConfigError(
                f"data.class_names has {len(self.class_names)} names, "
                f"but {self.dataset} has {len(classes)} classes: {classes}"
            )
        names = self.class_names or classes
        targets = {train: torch.as_tensor(data.targets, dtype=torch.int64) for train, data in official.items()}
        rows = stratified_split(targets[True], {VAL: self.val_fraction}, seed=self.split_seed)
        rows[TEST] = torch.arange(len(targets[False]))
        if self.limit is not None:
            rows = {split: of[_first_of_each(targets[split != TEST][of], self.limit)] for split, of in rows.items()}
        labels = {split: targets[split != TEST][rows[split]] for split in SPLITS}
        fingerprint: dict[str, Any] = {
            "source": f"torchvision/{self.dataset}",
            "sha256": {name: _sha256(official[train].data) for name, train in ((TRAIN, True), (TEST, False))},
            "splits": {VAL: f"{self.val_fraction} of train, stratified, seed {self.split_seed}", TEST: "official"},
        }
        if self.limit is not None:
            fingerprint["limit"] = self.limit
        info = DatasetInfo(
            self.dataset_name,
            fingerprint,
            {"class": LabelSet(tuple(names), labels, make_prompt_sets(self.prompts, names))},
        )
        return info, {Part(s, "image"): _Images(official[s != TEST], rows[s].tolist()) for s in SPLITS}


def _first_of_each(labels: Tensor, limit: int) -> Tensor:
    """Return at most ``limit`` rows, ascending: the first of each class, then the second of each, ...

    >>> _first_of_each(torch.tensor([0, 0, 0, 1, 0, 1]), 3).tolist()
    [0, 1, 3]
    """
    rank = torch.empty_like(labels)
    for label in torch.unique(labels):
        own = (labels == label).nonzero().flatten()
        rank[own] = torch.arange(len(own))
    return rank.argsort(stable=True)[:limit].sort().values


class _Images(Sequence[Image]):
    """Some rows of a torchvision dataset as RGB images."""

    def __init__(self, dataset: Any, rows: list[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        image: Image = self.dataset[self.rows[index]][0]
        return image.convert("RGB")

    def content(self, index: int) -> bytes:
        """Return the bytes of the stored pixels."""
        return np.ascontiguousarray(self.dataset.data[self.rows[index]]).tobytes()


def _sha256(data: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()
