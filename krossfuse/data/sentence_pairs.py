"""Pairs of sentences with a label: whether one says what the other does (MRPC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from krossfuse.core.errors import DataError
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
from krossfuse.data.module import BaseDataModule, Item
from krossfuse.data.text import check_there, read_text

FILES: Mapping[str, str] = {TRAIN: "msr_paraphrase_train.txt", TEST: "msr_paraphrase_test.txt"}
CLASSES = ("different", "paraphrase")
_COLUMNS = 5


class SentencePairs(BaseDataModule):
    """MRPC, the Microsoft Research Paraphrase Corpus, in the files that SentEval takes; text parts only, no prompts.

    A file has a line of headings, then a line a pair: label (0 or 1), two numbers, the two sentences, with tabs between
    and no quoting. The text part of a split has the first sentences of its pairs, then the second ones;
    ``info.compared`` says which two a label is of. Validation pairs are drawn from the training ones, stratified.

    Args:
        root: folder of the files.
        name: of the dataset, in results.
        val_fraction: share of the drawn validation split.
        split_seed: of the draw (not the run's seed).
        **loader: of the base.

    Raises:
        ConfigError: a bad value, or no root.
    """

    def __init__(
        self,
        *,
        root: str | None,
        name: str = "MRPC",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.root = required_path("root", root, "the folder of the text files")
        self.dataset_name = str(name)
        self.fractions = {VAL: val_fraction}
        check_fractions(self.fractions)
        self.split_seed = check_split_seed(split_seed)

    def check(self) -> None:
        """Check that the files are there.

        Raises:
            DataError: one is not.
        """
        check_there(self.root, FILES, self.way_out())

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """Read the files.

        Raises:
            DataError: a missing file, a line that is no pair with a label, other counts than the published ones.
        """
        self.check()
        pairs = {split: _read(self.root / file) for split, file in FILES.items()}
        labels = {split: torch.tensor([label for label, _, _ in of], dtype=torch.int64) for split, of in pairs.items()}
        counts = {split: len(of) for split, of in pairs.items()}
        check_counts(self.dataset_name, self.expected, {**counts, "classes": len(CLASSES)}, self.root)
        every, of_every = pairs[TRAIN], labels[TRAIN]
        for split, rows in stratified_split(of_every, self.fractions, seed=self.split_seed).items():
            pairs[split], labels[split] = [every[row] for row in rows.tolist()], of_every[rows]
        share = f"{self.fractions[VAL]} of {FILES[TRAIN]}, stratified, seed {self.split_seed}"
        rule = {TRAIN: f"the rest of {FILES[TRAIN]}", VAL: share, TEST: FILES[TEST]}
        texts = {split: [pair[i] for i in (1, 2) for pair in pairs[split]] for split in SPLITS}
        fingerprint = {
            "source": "sentence_pairs",
            "protocol": "splits",
            "splits": rule,
            "texts": digest(str(text) for split in SPLITS for text in (split, *texts[split])),
        }
        compared = {split: torch.arange(2 * len(pairs[split])).view(2, -1).T.contiguous() for split in SPLITS}
        label_sets = {"class": LabelSet(CLASSES, labels)}
        info = DatasetInfo(self.dataset_name, fingerprint, label_sets, compared=compared)
        return info, {Part(split, "text"): [str(text) for text in texts[split]] for split in SPLITS}


def _read(path: Path) -> list[tuple[int, str, str]]:
    """Return label and both sentences of each line but the first."""
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if number == 1 or not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != _COLUMNS or fields[0] not in ("0", "1"):
            raise DataError(
                f"{str(path)!r}, line {number}: expected label (0 or 1), two numbers and two sentences with tabs "
                f"between, got {line.strip()[:80]!r}"
            )
        pairs.append((int(fields[0]), fields[3].strip(), fields[4].strip()))
    if not pairs:
        raise DataError(f"{str(path)!r} has no pairs after its line of headings")
    return pairs
