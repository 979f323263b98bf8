"""Folds: every item is in one, classes are spread evenly, the same every time, and bad ones are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Part
from krossfuse.data.common import check_info
from krossfuse.data.folds import check_folds, deal, draw_folds
from krossfuse.data.image_folder import ImageFolder
from krossfuse.data.openmoji import OpenMoji, assign_folds, split_emoji
from krossfuse.data.text import SentEval, TextFiles
from krossfuse.data.torchvision_set import TorchvisionDataset
from krossfuse.data.typographic import TypographicAttack


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(2, 5))
def test_dealing_is_even_in_each_stratum_and_in_all(classes: list[int], folds: int) -> None:
    labels = torch.tensor(classes)
    strata = [[[row] for row in torch.nonzero(labels == c).flatten().tolist()] for c in sorted(set(classes))]
    dealt = deal(strata, len(labels), folds)
    assert dealt.min() >= 0
    every = torch.bincount(dealt, minlength=folds)
    assert every.max() - every.min() <= 1
    for c in set(classes):
        counts = torch.bincount(dealt[labels == c], minlength=folds)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("folds", [2, 3, 4, 5])
def test_drawn_folds_are_stratified_by_class_and_spread_the_validation_items(folds: int) -> None:
    labels = {TRAIN: torch.arange(70) % 7, VAL: torch.arange(21) % 7, TEST: torch.arange(28) % 7}
    sets = {"class": LabelSet(tuple("abcdefg"), labels)}
    sizes = {split: len(y) for split, y in labels.items()}
    dealt = draw_folds(sets, sizes, folds, 3)
    assert {split: len(of) for split, of in dealt.items()} == sizes
    every, of_class = torch.cat(list(dealt.values())), torch.cat(list(labels.values()))
    for c in range(7):
        counts = torch.bincount(every[of_class == c], minlength=folds)
        assert counts.max() - counts.min() <= 1
        val = torch.bincount(dealt[VAL][labels[VAL] == c], minlength=folds)
        assert val.max() - val.min() <= 1
    again, other = draw_folds(sets, sizes, folds, 3), draw_folds(sets, sizes, folds, 4)
    assert all(torch.equal(dealt[split], again[split]) for split in dealt)
    assert any(not torch.equal(dealt[split], other[split]) for split in dealt)


@pytest.mark.parametrize("folds", [2, 3, 4, 5])
def test_openmoji_is_cut_into_even_folds_that_keep_families(folds: int) -> None:
    data = OpenMoji(folds=folds)
    info = data.info
    assert info.n_folds == folds
    sizes = {split: len(data.items(Part(split, "image"))) for split in SPLITS}
    assert sum(sizes.values()) == 764
    assert {split: len(of) for split, of in info.fold_of.items()} == sizes
    counts = torch.bincount(torch.cat([info.fold_of[split] for split in SPLITS]))
    assert counts.max() - counts.min() <= 1
    splits = split_emoji()
    homes: dict[str, set[int]] = {}
    for split in SPLITS:
        for emoji, fold in zip(splits[split], info.fold_of[split].tolist(), strict=True):
            homes.setdefault(emoji.family, set()).add(fold)
    assert all(len(of_family) == 1 for of_family in homes.values())
    groups = torch.cat([info.label_sets["group"].labels[split] for split in SPLITS])
    every = torch.cat([info.fold_of[split] for split in SPLITS])
    for group in range(9):  # families of up to 25 emoji keep a group from being cut more evenly
        shares = torch.bincount(every[groups == group], minlength=folds) / (groups == group).sum()
        assert float((shares - 1 / folds).abs().max()) < 0.12


def test_the_folds_of_openmoji_are_these() -> None:
    emoji = [e for split in SPLITS for e in split_emoji()[split]]
    dealt = assign_folds(emoji, 3)
    assert torch.bincount(dealt).tolist() == [255, 254, 255]
    assert torch.equal(dealt, assign_folds(emoji, 3))
    names = {emoji[i].name: int(dealt[i]) for i in range(len(emoji))}
    assert [names[e.name] for e in split_emoji()[TEST][:12]] == FIRST


def test_folds_change_no_feature_and_no_split() -> None:
    with_folds, without = OpenMoji(folds=3), OpenMoji()
    assert not without.info.fold_of
    for part in without.parts():
        assert with_folds.part_fingerprint(part) == without.part_fingerprint(part)
    assert TypographicAttack(base=with_folds).info.fold_of.keys() == set(SPLITS)


@pytest.mark.parametrize("folds", [1, 0, -3, 2.5, True, "3"])
def test_what_is_no_number_of_folds(folds: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.folds=.* must be a whole number, 2 or more, or null"):
        check_folds(folds)
    with pytest.raises(ConfigError, match=r"data\.folds"):
        OpenMoji(folds=folds)


def test_a_folder_of_classes_has_folds_and_one_with_a_test_split_has_none(
    folder_of_images: Callable[[dict[str, int]], Path], tmp_path: Path
) -> None:
    root = folder_of_images({"cat": 10, "dog": 12})
    data = ImageFolder(root=str(root), folds=4, num_workers=0)
    counts = torch.bincount(torch.cat([data.info.fold_of[split] for split in SPLITS]))
    assert counts.tolist() == [6, 6, 5, 5]
    plain = ImageFolder(root=str(root), num_workers=0)
    assert [data.part_fingerprint(p) for p in data.parts()] == [plain.part_fingerprint(p) for p in plain.parts()]
    with pytest.raises(DataError, match=r"data\.folds=11 is more than the 10 item\(s\) of class 'cat'"):
        ImageFolder(root=str(root), folds=11, num_workers=0).setup()


def test_an_official_test_split_is_kept(folder_of_images: Callable[[dict[str, int]], Path], tmp_path: Path) -> None:
    root = folder_of_images({"train/cat": 6, "train/dog": 6, "test/cat": 3, "test/dog": 3})
    with pytest.raises(ConfigError, match=r"data\.folds=3 tests every item, but .* has a test split of its own"):
        ImageFolder(root=str(root), folds=3, num_workers=0).setup()
    with pytest.raises(ConfigError, match="'TREC' has a test split of its own"):
        SentEval(task="TREC", root=str(tmp_path), folds=3)
    with pytest.raises(ConfigError, match="'mnist' has a test split of its own"):
        TorchvisionDataset(dataset="MNIST", root=str(tmp_path), folds=3)


def test_texts_of_one_file_have_folds(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("".join(f"{i % 2} text number {i}\n" for i in range(40)))
    data = TextFiles(files={"all": "all.txt"}, root=str(tmp_path), folds=5)
    assert Counter(torch.cat(list(data.info.fold_of.values())).tolist()) == dict.fromkeys(range(5), 8)


def test_copies_in_two_folds_are_said(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("".join(f"{i % 2} text number {i % 20}\n" for i in range(40)))
    with pytest.raises(DataError, match=r"identical items in two folds: \d+ of 20 items of fold 1 are in fold 2 too"):
        TextFiles(files={"all": "all.txt"}, root=str(tmp_path), folds=2, duplicates="error").setup()


def info_of(fold_of: dict[str, torch.Tensor], classes: int = 2) -> tuple[DatasetInfo, dict[Part, int]]:
    labels = {split: torch.arange(4) % classes for split in SPLITS}
    info = DatasetInfo("own", {}, {"class": LabelSet(tuple("abcd"[:classes]), labels)}, fold_of=fold_of)
    return info, {Part(split, "image"): 4 for split in SPLITS}


def test_folds_of_a_dataset_of_ones_own_are_checked() -> None:
    good = {split: torch.tensor([0, 1, 1, 0]) for split in SPLITS}
    check_info(*info_of(good))
    with pytest.raises(DataError, match="fold_of must be one int64 an item"):
        check_info(*info_of({**good, TEST: torch.tensor([0, 1])}))
    with pytest.raises(DataError, match="two folds or more, numbered from 0 on, none empty"):
        check_info(*info_of({split: torch.zeros(4, dtype=torch.int64) for split in SPLITS}))
    with pytest.raises(DataError, match="two folds or more, numbered from 0 on, none empty"):
        check_info(*info_of({split: torch.tensor([0, 2, 2, 0]) for split in SPLITS}))
    with pytest.raises(DataError, match=r"all 4 validation item\(s\) are in fold 1 of 2"):
        check_info(*info_of({**good, VAL: torch.zeros(4, dtype=torch.int64)}))
    with pytest.raises(DataError, match=r"fold 1 of 2 leaves no training item of 1 class\(es\): \['a'\]"):
        check_info(*info_of({**good, TRAIN: torch.tensor([0, 1, 0, 1]), TEST: torch.tensor([0, 1, 0, 1])}))


FIRST = [2, 1, 2, 0, 1, 2, 0, 2, 2, 1, 2, 0]
"""Folds of the first twelve test emoji, so that a change of the rule is seen: it makes other measurements of them."""
