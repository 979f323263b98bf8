"""A folder of images, one folder a class."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from krossfuse.core.errors import DataError, check_choice, did_you_mean
from krossfuse.core.files import check_regular
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Part
from krossfuse.data.common import (
    ImageFiles,
    check_fractions,
    check_split_seed,
    digest,
    make_prompt_sets,
    prompt_templates,
    required_path,
    stratified_split,
)
from krossfuse.data.folds import check_folds, draw_folds, official_splits
from krossfuse.data.listing import EXTENSIONS, Listing, list_images
from krossfuse.data.module import BaseDataModule, Item


class ImageFolder(BaseDataModule):
    """Images in ``root/{train,val,test}/CLASS/...`` or ``root/CLASS/...``.

    Splits: what the root has as folders is taken as it is. Without ``val``, it is drawn from ``train``. With
    ``train`` and ``val`` but no ``test`` (ImageNet, Imagewoof), ``val`` is the test split, and the validation split is
    drawn from ``train``. With class folders only, ``val`` and ``test`` are drawn. Draws are stratified, by
    ``split_seed`` (see :func:`krossfuse.data.common.stratified_split`). The rule is in the fingerprint.

    The fingerprint holds a digest of the file list: path and size of each file, and its modification time
    (``digest: stat``; like make: at once, but a copy of the folder is encoded anew) or its bytes (``digest: content``:
    all files are read once a run).

    Args:
        root: the folder.
        name: of the dataset, in results.
        prompts: by prompt set, templates with ``{}``.
        class_names: YAML or JSON file ``{folder: name}``; None = the folder's name with spaces for underscores.
        val_fraction: share of a drawn validation split.
        test_fraction: share of a drawn test split.
        split_seed: of drawn splits and folds (not the run's seed).
        folds: test all images, in so many folds (:mod:`krossfuse.data.folds`); None = the splits. For class folders
            only.
        digest: ``stat`` or ``content``.
        **loader: ``batch_size`` and ``num_workers``, see the base.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(
        self,
        *,
        root: str | None,
        name: str = "image_folder",
        prompts: Mapping[str, Sequence[str]] | None = None,
        class_names: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        folds: int | None = None,
        digest: str = "stat",
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.root = required_path("root", root, "the folder that has one folder a class")
        self.dataset_name = str(name)
        self.prompts = prompt_templates(prompts)
        self.class_names = class_names
        self.fractions = {VAL: val_fraction, TEST: test_fraction}
        check_fractions(self.fractions)
        self.split_seed = check_split_seed(split_seed)
        self.folds = check_folds(folds)
        self.digest = check_choice("data.digest", digest, ("stat", "content"))

    def check(self) -> None:
        """Check that the folder is there, and the file of class names.

        Raises:
            DataError: it is not.
        """
        if not self.root.is_dir():
            raise DataError(f"data.root: there is no folder {str(self.root)!r}")
        if self.class_names is not None and not Path(self.class_names).expanduser().exists():
            raise DataError(f"data.class_names: cannot read {self.class_names!r}: there is no such file")

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """List the files; no image is opened.

        Raises:
            DataError: no such folder, no images in it, a class without training images, a bad ``class_names`` file.
            ConfigError: folds of a folder that has a test split of its own.
        """
        self.check()
        listing, rule = self._split()
        if self.folds is not None and rule[TEST].startswith("folder"):
            raise official_splits(self.folds, repr(str(self.root)), ", or give a folder that has class folders only")
        folders = sorted({folder for files in listing.values() for folder, _ in files})
        names = self._names(folders)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            of = {
                name: [folder for folder, other in zip(folders, names, strict=True) if other == name] for name in twice
            }
            raise DataError(
                f"data.root: {len(twice)} class name(s) stand for several folders: {dict(list(of.items())[:5])}; give "
                "each folder its own name by data.class_names=FILE, or make them one folder"
            )
        index = {folder: i for i, folder in enumerate(folders)}
        labels = {
            split: torch.tensor([index[folder] for folder, _ in files], dtype=torch.int64)
            for split, files in listing.items()
        }
        fingerprint = {
            "source": "image_folder",
            "splits": rule,
            "digest": self.digest,
            "files": digest(line for split in listing for line in (split, *map(self._line, listing[split]))),
        }
        label_set = LabelSet(tuple(names), labels, make_prompt_sets(self.prompts, names))
        items = {
            Part(split, "image"): ImageFiles([self.root / path for _, path in files])
            for split, files in listing.items()
        }
        fold_of: dict[str, Tensor] = {}
        if self.folds is not None:
            sizes = {split: len(files) for split, files in listing.items()}
            fold_of = draw_folds({"class": label_set}, sizes, self.folds, self.split_seed)
        return DatasetInfo(self.dataset_name, fingerprint, {"class": label_set}, fold_of=fold_of), items

    def _split(self) -> tuple[dict[str, Listing], dict[str, str]]:
        """Return the files of each split and how each split came about."""
        given = [split for split in SPLITS if (self.root / split).is_dir()]
        if TRAIN in given and len(given) > 1:
            listing = {split: list_images(self.root, split) for split in given}
            rule = {split: f"folder {split}" for split in given}
            if TEST not in given:
                listing[TEST], rule[TEST] = listing.pop(VAL), "folder val"
            to_draw = [] if VAL in listing else [VAL]
        else:
            listing, rule, to_draw = {TRAIN: list_images(self.root, "")}, {TRAIN: "the rest"}, [VAL, TEST]
        if not listing[TRAIN]:
            raise DataError(
                f"no images in class folders of {str(self.root)!r}; expected CLASS/*.jpg "
                f"or {{train,val,test}}/CLASS/*.jpg (extensions: {', '.join(EXTENSIONS)})"
            )
        if to_draw:
            files = listing[TRAIN]
            index = {folder: i for i, folder in enumerate(sorted({folder for folder, _ in files}))}
            labels = torch.tensor([index[folder] for folder, _ in files])
            fractions = {split: self.fractions[split] for split in to_draw}
            for split, rows in stratified_split(labels, fractions, seed=self.split_seed).items():
                listing[split] = [files[row] for row in rows.tolist()]
            drawn = f"of train, stratified, seed {self.split_seed}"
            rule.update({split: f"{fraction} {drawn}" for split, fraction in fractions.items()})
        return {split: listing[split] for split in SPLITS}, rule

    def _names(self, folders: list[str]) -> list[str]:
        if self.class_names is None:
            return [folder.replace("_", " ") for folder in folders]
        path = Path(self.class_names).expanduser()
        try:
            check_regular(path)
            mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"data.class_names: cannot read {str(path)!r}: {error}") from error
        if not isinstance(mapping, dict):
            raise DataError(f"data.class_names: {str(path)!r} must hold a mapping {{folder: name}}")
        by_folder = {str(folder): str(name) for folder, name in mapping.items()}
        for folder in folders:
            if folder not in by_folder:
                near = did_you_mean(folder, by_folder)
                raise DataError(f"data.class_names: {str(path)!r} has no name for folder {folder!r}{near}")
        return [by_folder[folder] for folder in folders]

    def _line(self, file: tuple[str, str]) -> str:
        path = self.root / file[1]
        try:
            if self.digest == "content":
                with open(path, "rb") as stream:
                    return f"{file[1]} {hashlib.file_digest(stream, 'sha256').hexdigest()}"
            stat = path.stat()
        except OSError as error:
            raise DataError(f"cannot read image {str(path)!r}: {error}") from error
        return f"{file[1]} {stat.st_size} {stat.st_mtime_ns}"
