"""What image sets with one label an image share: class names, splits that are drawn, counts that are checked."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, did_you_mean
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.class_lists import ClassList, is_list, named_list
from krossfuse.data.common import ImageFiles, check_counts, make_prompt_sets, prompt_templates
from krossfuse.data.files import ALL as ALL
from krossfuse.data.files import ImagesInFiles
from krossfuse.data.folds import check_folds, draw_folds, official_splits
from krossfuse.data.module import Item


@dataclass(frozen=True)
class Source:
    """What lies in the files.

    Attributes:
        classes: as the files name them, in the order of the labels.
        splits: by official split (``train``, ``val``, ``test``; or ``all``), the images and their labels, (n,) int64.
        fingerprint: of the files.
        prompts: by prompt set, templates that the files bring; those of the configuration stand before them.
        names: names of the classes as the files have them for prompts; None: made from ``classes``.
        texts: by the same splits, the texts that come with each image, one or more; empty: there are none.
    """

    classes: Sequence[str]
    splits: Mapping[str, tuple[Sequence[Any], Tensor]]
    fingerprint: Mapping[str, Any]
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    names: Sequence[str] | None = None
    texts: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)


class LabelledImages(ImagesInFiles):
    """Images with one label each; a subclass says in :meth:`read` what lies in its files.

    Splits that are not official are drawn, stratified by class; of ``limit`` images the first of each class in turn.

    Args:
        class_names: in the order of the labels, or ``list:NAME`` (:mod:`krossfuse.data.class_lists`); None = those of
            the files, with blanks for underscores.
        prompts: by prompt set, templates with ``{}``, or ``list:NAME``.
        folds: test all images, in so many folds (:mod:`krossfuse.data.folds`), drawn by ``split_seed``; for sources
            without official splits.
        **options: of :class:`~krossfuse.data.files.ImagesInFiles`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str] | str | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
        folds: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.class_list: ClassList | None = None
        self.class_names: list[str] | None = None
        if is_list(class_names):
            self.class_list = named_list(str(class_names))
        elif isinstance(class_names, str):
            raise ConfigError(f"data.class_names={class_names!r} must be a list of names, list:NAME, or null")
        elif class_names is not None:
            self.class_names = [str(one) for one in class_names]
        self.prompts = prompt_templates(prompts)
        self.folds = check_folds(folds)

    @abstractmethod
    def read(self) -> Source:
        """List what lies in the files; pixels may stay where they are.

        Raises:
            DataError: the files are not there, or damaged.
        """

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """List the files, name the classes, draw what is not official.

        Raises:
            DataError: the files are not there, or not those of the published set.
            ConfigError: class names that are not those of the labels, or folds of official splits.
        """
        source = self.read()
        found = {split: len(labels) for split, (_, labels) in source.splits.items()}
        check_counts(self.dataset_name, self.expected, {**found, "classes": len(source.classes)}, self.root)
        names = self._names(source)
        if self.folds is not None and set(source.splits) != {ALL}:
            raise official_splits(self.folds, repr(self.dataset_name), "")
        chosen, rule = self.splits_of({split: labels for split, (_, labels) in source.splits.items()})
        items: dict[Part, Sequence[Item]] = {}
        labels: dict[str, Tensor] = {}
        caption_of: dict[str, Tensor] = {}
        for split in SPLITS:
            of, rows = chosen[split]
            images, every = source.splits[of]
            if self.limit is not None:
                rows = rows[first_of_each(every[rows], self.limit)]
            items[Part(split, "image")] = rows_of(images, rows)
            labels[split] = every[rows]
            if source.texts:
                chosen_texts = [source.texts[of][row] for row in rows.tolist()]
                items[Part(split, "text")] = [text for texts in chosen_texts for text in texts]
                counts = torch.tensor([len(texts) for texts in chosen_texts])
                caption_of[split] = torch.arange(len(rows)).repeat_interleave(counts)
        fingerprint: dict[str, Any] = {**source.fingerprint, "splits": rule}
        if self.limit is not None:
            fingerprint["limit"] = self.limit
        prompts = make_prompt_sets({**source.prompts, **self.prompts}, names)
        label_sets = {"class": LabelSet(distinct(names, source.classes), labels, prompts)}
        fold_of: dict[str, Tensor] = {}
        if self.folds is not None:
            fold_of = draw_folds(label_sets, {s: len(of) for s, of in labels.items()}, self.folds, self.split_seed)
        return DatasetInfo(self.dataset_name, fingerprint, label_sets, caption_of, fold_of), items

    def _names(self, source: Source) -> list[str]:
        where = f"dataset {self.dataset_name!r}"
        if self.class_list is not None:
            if self.class_list.labels:
                check_labels(where, source.classes, self.class_list)
                by_label = dict(zip(self.class_list.labels, self.class_list.names, strict=True))
                return [by_label[self.class_list.label(label)] for label in source.classes]
            names: Sequence[str] = self.class_list.names
        elif self.class_names is not None:
            names = self.class_names
        else:
            return list(source.names or (plain_name(label) for label in source.classes))
        if len(names) != len(source.classes):
            raise ConfigError(
                f"data.class_names has {len(names)} names, but {where} has {len(source.classes)} classes: "
                f"{list(source.classes)[:20]}"
            )
        return list(names)


def check_labels(where: str, classes: Sequence[str], known: ClassList) -> None:
    """Check that the classes of some files are exactly those of a published list.

    Raises:
        DataError: they are not; the message names some of each side.
    """
    labels = [known.label(label) for label in classes]
    if strange := [label for label in labels if label not in known.labels]:
        raise DataError(
            f"{where}: class {strange[0]!r} is not one of the {len(known.labels)} of list:{known.name}"
            f"{did_you_mean(strange[0], known.labels)} ({len(strange)} such); say data.class_names=null if they are "
            "yours"
        )
    if missing := [label for label in known.labels if label not in set(labels)]:
        raise DataError(
            f"{where}: {len(missing)} of the {len(known.labels)} classes of list:{known.name} have no images: "
            f"{missing[:10]}; say data.class_names=null if that is meant"
        )


def plain_name(label: str) -> str:
    """Return a class's name from its label in the files: blanks for underscores.

    >>> plain_name("baby_back_ribs")
    'baby back ribs'
    """
    return label.replace("_", " ")


def distinct(names: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Return class names of which no two are the same: a name of several classes is followed by the label.

    Two pairs of ImageNet's classes have one published name each; prompts keep it.

    >>> distinct(["missile", "crane", "missile"], ["n03773504", "n02012849", "n04008634"])
    ('missile (n03773504)', 'crane', 'missile (n04008634)')
    """
    counts = Counter(names)
    return tuple(f"{n} ({label})" if counts[n] > 1 else n for n, label in zip(names, labels, strict=True))


def file_line(root: Path, path: str | Path, digest: str) -> str:
    """Return what stands for a file in a fingerprint: its path below ``root``, and its size and time or its bytes.

    Raises:
        DataError: it cannot be read.
    """
    full = root / path
    below = full.relative_to(root).as_posix() if full.is_relative_to(root) else full.as_posix()
    try:
        if digest == "content":
            with open(full, "rb") as stream:
                return f"{below} {hashlib.file_digest(stream, 'sha256').hexdigest()}"
        stat = full.stat()
    except OSError as error:
        raise DataError(f"cannot read image {str(full)!r}: {error}") from error
    return f"{below} {stat.st_size} {stat.st_mtime_ns}"


def first_of_each(labels: Tensor, limit: int) -> Tensor:
    """Return at most ``limit`` rows, ascending: the first of each class, then the second of each, ...

    >>> first_of_each(torch.tensor([0, 0, 0, 1, 0, 1]), 3).tolist()
    [0, 1, 3]
    """
    rank = torch.empty_like(labels)
    for label in torch.unique(labels):
        own = (labels == label).nonzero().flatten()
        rank[own] = torch.arange(len(own))
    return rank.argsort(stable=True)[:limit].sort().values


def rows_of(images: Sequence[Any], rows: Tensor) -> Sequence[Item]:
    """Return some rows of a sequence of images, still lazy; what it tells of files and contents stays."""
    chosen: list[int] = rows.tolist()
    if isinstance(images, ImageFiles):
        return ImageFiles([images.paths[row] for row in chosen])
    return _RowsWithContent(images, chosen) if hasattr(images, "content") else _Rows(images, chosen)


class _Rows(Sequence[Item]):
    """Some rows of another sequence."""

    def __init__(self, of: Sequence[Any], rows: list[int]) -> None:
        self.of, self.rows = of, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        item: Item = self.of[self.rows[index]]
        return item


class _RowsWithContent(_Rows):
    """The same, of a sequence that knows the bytes of its items."""

    def content(self, index: int) -> bytes:
        """Return the stored bytes of an item."""
        read: Callable[[int], bytes] = self.of.content  # type: ignore[attr-defined]
        return read(self.rows[index])
