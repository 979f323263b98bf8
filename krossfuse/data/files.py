"""What image sets in files share, with labels or captions: where they lie, and which splits are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, check_choice, check_positive
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL
from krossfuse.data.common import check_fractions, check_split_seed, required_path, stratified_split
from krossfuse.data.module import BaseDataModule

ALL = "all"
"""The split of a source that has no official ones."""

RowsOf = dict[str, tuple[str, Tensor]]
"""By split, the official split that its items are taken from, and their rows there."""


def check_split_names(splits: Mapping[str, str] | None) -> dict[str, str]:
    """Return the option ``splits``: by split, the data set's own name of it.

    Raises:
        ConfigError: a split that is not one of ours.
    """
    for split in splits or {}:
        check_choice("data.splits", split, (*SPLITS, ALL))
    return {str(split): str(name) for split, name in (splits or {}).items()}


class ImagesInFiles(BaseDataModule):
    """Images in files or behind a library that reads them, by official split.

    Official splits are kept. Without ``val``, it is drawn from ``train``; with ``train`` and ``val`` but no ``test``,
    ``val`` is the test split; of a source without official splits, or with one alone, ``val`` and ``test`` are drawn.
    Draws are stratified, by ``split_seed`` (:func:`krossfuse.data.common.stratified_split`).

    Args:
        root: where the files lie.
        name: of the dataset, in results.
        val_fraction: share of a drawn validation split.
        test_fraction: share of a drawn test split.
        split_seed: of drawn splits (not the run's seed).
        limit: at most so many images a split; None = all.
        digest: how a changed file is seen: ``stat`` (size and time) or ``content`` (reads every file).
        **loader: of the base.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = "the folder of the files"

    def __init__(
        self,
        *,
        root: str | None,
        name: str,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        limit: int | None = None,
        digest: str = "stat",
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.root = required_path("root", root, self.what)
        self.dataset_name = str(name)
        self.fractions = {VAL: val_fraction, TEST: test_fraction}
        check_fractions(self.fractions)
        self.split_seed = check_split_seed(split_seed)
        if limit is not None:
            check_positive("data.limit", limit, integer=True)
        self.limit = limit
        self.digest = check_choice("data.digest", digest, ("stat", "content"))

    def check(self) -> None:
        """Check that the folder is there.

        Raises:
            DataError: it is not.
        """
        if not self.root.is_dir():
            raise DataError(f"data.root: there is no folder {str(self.root)!r}{self.way_out()}")

    def splits_of(self, official: Mapping[str, Tensor]) -> tuple[RowsOf, dict[str, str]]:
        """Decide which items are of which split.

        Args:
            official: by official split (or ``all``), (n,) int64, the class of each item: what a draw is stratified by.

        Returns:
            The rows of each split, and how each split came about (part of the fingerprint).

        Raises:
            DataError: the official splits leave nothing to train or to test on.
        """
        given: RowsOf = {split: (split, torch.arange(len(labels))) for split, labels in official.items()}
        rule = dict.fromkeys(given, "official")
        if TRAIN in given and VAL in given and TEST not in given:
            given[TEST], rule[TEST] = given.pop(VAL), "official val"
        if len(given) == 1:  # all, or one split alone
            (of,) = given
            to_draw, rule = self.fractions, {TRAIN: "the rest"}
        elif TRAIN not in given or TEST not in given:
            raise DataError(
                f"dataset {self.dataset_name!r}: the splits {list(given)} in {str(self.root)!r} leave nothing to train "
                f"or to test on; there must be train and test, or one split alone"
            )
        else:
            of, to_draw = TRAIN, ({} if VAL in given else {VAL: self.fractions[VAL]})
        if to_draw:
            for split, rows in stratified_split(official[of], to_draw, seed=self.split_seed).items():
                given[split] = (of, rows)
            rule.pop(of, None)
            drawn = f"of {of}, stratified, seed {self.split_seed}"
            rule.update({split: f"{fraction} {drawn}" for split, fraction in to_draw.items()})
        return {split: given[split] for split in SPLITS}, rule
