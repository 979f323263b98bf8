"""A folder of images, one folder a class."""

from __future__ import annotations

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
from krossfuse.data.class_lists import ClassList, is_list, named_list
from krossfuse.data.common import (
    ImageFiles,
    check_counts,
    check_fractions,
    check_split_seed,
    digest,
    make_prompt_sets,
    prompt_templates,
    required_path,
    stratified_split,
)
from krossfuse.data.folds import check_folds, draw_folds, official_splits
from krossfuse.data.labelled_images import ALL, check_labels, distinct, file_line, plain_name
from krossfuse.data.listing import EXTENSIONS, Listing, list_images
from krossfuse.data.module import BaseDataModule, Item


class ImageFolder(BaseDataModule):
    """Images in ``root/{train,val,test}/CLASS/...`` or ``root/CLASS/...``.

    Splits: what the root has as folders is taken as it is. Without ``val``, it is drawn from ``train``. With
    ``train`` and ``val`` but no ``test`` (ImageNet, Imagewoof), ``val`` is the test split, and the validation split is
    drawn from ``train``. With class folders only, ``val`` and ``test`` are drawn; or, with ``train_root``, they are the
    test split, and ``train`` and ``val`` are drawn from there (ImageNet-A, -R, -V2, -Sketch: heads are trained on
    ImageNet). Draws are stratified, by ``split_seed`` (see :func:`krossfuse.data.common.stratified_split`). The rule is
    in the fingerprint.

    The fingerprint holds a digest of the file list: path and size of each file, and its modification time
    (``digest: stat``; like make: at once, but a copy of the folder is encoded anew) or its bytes (``digest: content``:
    all files are read once a run).

    Args:
        root: the folder.
        name: of the dataset, in results.
        prompts: by prompt set, templates with ``{}``.
        class_names: YAML or JSON file ``{folder: name}``; None = the folder's name with spaces for underscores; or
            ``list:NAME`` (:mod:`krossfuse.data.class_lists`), whose labels the folders must then be, or its numbers.
        train_root: another folder of class folders, or one that has them below ``train``; what it has of the classes
            of ``root`` is trained on. None = ``root`` has all splits.
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
        train_root: str | None = None,
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
        self.class_list: ClassList | None = named_list(str(class_names)) if is_list(class_names) else None
        self.class_names = None if self.class_list else class_names
        self.train_root = None if train_root is None else Path(train_root).expanduser()
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
        for key, folder in {"root": self.root, "train_root": self.train_root}.items():
            if folder is not None and not folder.is_dir():
                raise DataError(f"data.{key}: there is no folder {str(folder)!r}{self.way_out()}")
        if self.class_names is not None and not Path(self.class_names).expanduser().exists():
            raise DataError(f"data.class_names: cannot read {self.class_names!r}: there is no such file")

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """List the files; no image is opened.

        Raises:
            DataError: no such folder, no images in it, a class without training images, a bad ``class_names`` file.
            ConfigError: folds of a folder that has a test split of its own.
        """
        self.check()
        listing, rule, official = self._split()
        if self.folds is not None and rule[TEST].startswith("folder"):
            raise official_splits(self.folds, repr(str(self.root)), ", or give a folder that has class folders only")
        folders = sorted({folder for files in listing.values() for folder, _ in files})
        check_counts(self.dataset_name, self.expected, {**official, "classes": len(folders)}, self.root)
        names = self._names(folders)
        shown = distinct(names, folders) if self.class_list else tuple(names)
        twice = [name for name, count in Counter(shown).items() if count > 1]
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
            "files": digest(line for split in listing for line in (split, *self._lines(split, listing[split]))),
        }
        label_set = LabelSet(shown, labels, make_prompt_sets(self.prompts, names))
        items = {
            Part(split, "image"): ImageFiles([self._base(split) / path for _, path in files])
            for split, files in listing.items()
        }
        fold_of: dict[str, Tensor] = {}
        if self.folds is not None:
            sizes = {split: len(files) for split, files in listing.items()}
            fold_of = draw_folds({"class": label_set}, sizes, self.folds, self.split_seed)
        return DatasetInfo(self.dataset_name, fingerprint, {"class": label_set}, fold_of=fold_of), items

    def _split(self) -> tuple[dict[str, Listing], dict[str, str], dict[str, int]]:
        """Return the files of each split, how each split came about, and what there was before any draw."""
        given = [split for split in SPLITS if (self.root / split).is_dir()]
        if self.train_root is not None:
            listing, rule = (
                {TRAIN: self._train(), TEST: self._images_below("")},
                {TRAIN: "train_root", TEST: "folder root"},
            )
            kept = {folder for folder, _ in listing[TEST]}
            listing[TRAIN] = [(folder, path) for folder, path in listing[TRAIN] if folder in kept]
            to_draw = [VAL]
        elif TRAIN in given and len(given) > 1:
            listing = {split: self._images_below(split) for split in given}
            rule = {split: f"folder {split}" for split in given}
            if TEST not in given:
                listing[TEST], rule[TEST] = listing.pop(VAL), "folder val"
            to_draw = [] if VAL in listing else [VAL]
        else:
            listing, rule, to_draw = {TRAIN: self._images_below("")}, {TRAIN: "the rest"}, [VAL, TEST]
        if not listing[TRAIN]:
            raise DataError(
                f"no images in class folders of {str(self._base(TRAIN))!r}; expected CLASS/*.jpg "
                f"or {{train,val,test}}/CLASS/*.jpg (extensions: {', '.join(EXTENSIONS)})"
            )
        official = {split: len(files) for split, files in listing.items()}
        if set(to_draw) == {VAL, TEST}:
            official = {ALL: official[TRAIN], TEST: official[TRAIN]}  # some sets are published as a test split alone
        if to_draw:
            files = listing[TRAIN]
            index = {folder: i for i, folder in enumerate(sorted({folder for folder, _ in files}))}
            labels = torch.tensor([index[folder] for folder, _ in files])
            fractions = {split: self.fractions[split] for split in to_draw}
            for split, rows in stratified_split(labels, fractions, seed=self.split_seed).items():
                listing[split] = [files[row] for row in rows.tolist()]
            drawn = f"of train, stratified, seed {self.split_seed}"
            rule.update({split: f"{fraction} {drawn}" for split, fraction in fractions.items()})
        return {split: listing[split] for split in SPLITS}, rule, official

    def _base(self, split: str) -> Path:
        return self.root if self.train_root is None or split == TEST else self.train_root

    def _train(self) -> Listing:
        assert self.train_root is not None
        below = TRAIN if (self.train_root / TRAIN).is_dir() else ""
        return self._labelled(list_images(self.train_root, below))

    def _images_below(self, below: str) -> Listing:
        return self._labelled(list_images(self.root, below))

    def _labelled(self, listing: Listing) -> Listing:
        if self.class_list is None:
            return listing
        return [(self.class_list.label(folder), path) for folder, path in listing]

    def _names(self, folders: list[str]) -> list[str]:
        if self.class_list is not None:
            check_labels(f"dataset {self.dataset_name!r}", folders, self.class_list)
            by_label = dict(zip(self.class_list.labels, self.class_list.names, strict=True))
            return [by_label[folder] for folder in folders]
        if self.class_names is None:
            return [plain_name(folder) for folder in folders]
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

    def _lines(self, split: str, files: Listing) -> list[str]:
        return [file_line(self._base(split), path, self.digest) for _, path in files]
