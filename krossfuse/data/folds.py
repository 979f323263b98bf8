"""Folds: all items of a small dataset are tested, each by heads and a fusion that have not seen it.

The items of train, val and test together are dealt to k folds. In a fold's turn its items are the test split; of the
others, those of the dataset's own validation split are the validation split and all the rest is the training split.
So there is one draw of validation items, whatever the fold, and nothing else is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, VAL, Part


def check_folds(folds: int | None) -> int | None:
    """Return the option ``folds`` of a dataset.

    Raises:
        ConfigError: it is neither None nor a whole number from 2 on.
    """
    if folds is not None and (isinstance(folds, bool) or not isinstance(folds, int) or folds < 2):
        raise ConfigError(f"data.folds={folds!r} must be a whole number, 2 or more, or null: the splits as they are")
    return folds


def deal(strata: Iterable[Sequence[Sequence[int]]], n: int, folds: int) -> Tensor:
    """Deal items to folds, stratum by stratum, so that a stratum's shares and the folds are as even as they can be.

    Each group of a stratum, in the order given, goes whole to the fold that has the fewest items of the stratum; among
    equals, to the one with the fewest items at all; then to the next in turn, each stratum beginning one further.

    Args:
        strata: each a sequence of groups, a group being the positions of items that must stay together.
        n: number of items.
        folds: number of folds.

    Returns:
        (n,) int64, the fold of each item.

    >>> deal([[[0], [1], [2]], [[3, 4], [5]], [[6], [7]]], 8, 2).tolist()
    [0, 1, 0, 1, 1, 0, 0, 1]
    """
    out = torch.full((n,), -1, dtype=torch.int64)
    total = [0] * folds
    for turn, groups in enumerate(strata):
        filled = [0] * folds
        for group in groups:
            fold = min(range(folds), key=lambda f: (filled[f], total[f], (f - turn) % folds))
            out[list(group)] = fold
            filled[fold] += len(group)
            total[fold] += len(group)
    return out


def draw_folds(
    label_sets: Mapping[str, LabelSet], sizes: Mapping[str, int], folds: int, seed: int
) -> dict[str, Tensor]:
    """Draw folds of single items, stratified by the first label set that has one label an item.

    A class's items are shuffled by the seed, its validation items go first (so that they are spread over the folds
    too), and :func:`deal` deals them. Items without a label are a class here.

    Args:
        label_sets: of the dataset.
        sizes: by split, the number of items.
        folds: number of folds.
        seed: of the shuffle (CPU generator), the one of the dataset's splits.

    Returns:
        ``DatasetInfo.fold_of``.

    Raises:
        DataError: a class has fewer items than there are folds.
    """
    splits = [split for split in SPLITS if split in sizes]
    single = next((name for name, s in label_sets.items() if not s.multilabel), None)
    none = {split: torch.full((sizes[split],), -1, dtype=torch.int64) for split in splits}
    labels = torch.cat([none[s] if single is None else label_sets[single].labels.get(s, none[s]) for s in splits])
    later = torch.cat([torch.full((sizes[split],), split != VAL) for split in splits])
    generator = torch.Generator().manual_seed(seed)
    strata = []
    for label in torch.unique(labels).tolist():
        rows = torch.nonzero(labels == label).flatten()
        if label >= 0 and single is not None and len(rows) < folds:
            raise DataError(
                f"data.folds={folds} is more than the {len(rows)} item(s) of class "
                f"{label_sets[single].classes[label]!r} of label set {single!r}; take fewer folds"
            )
        rows = rows[torch.randperm(len(rows), generator=generator)]
        rows = rows[later[rows].int().argsort(stable=True)]
        strata.append([[row] for row in rows.tolist()])
    return by_split(deal(strata, len(labels), folds), {split: sizes[split] for split in splits})


def by_split(fold: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the fold of each item by split, from that of all items, the splits following one another."""
    return dict(zip(sizes, torch.split(fold, list(sizes.values())), strict=True))


def official_splits(folds: int | None, where: str, way_out: str) -> ConfigError:
    """Return the error of folds where the dataset brings a test split of its own."""
    return ConfigError(
        f"data.folds={folds} tests every item, but {where} has a test split of its own, which is to be kept; say "
        f"data.folds=null{way_out}"
    )


def check_fold_of(info: DatasetInfo, sizes: Mapping[Part, int]) -> None:
    """Check that the folds are folds of the items, and that each leaves enough to train and to validate on.

    Args:
        info: the dataset.
        sizes: number of items of each part, without the prompt parts.

    Raises:
        DataError: they are not, or do not.
    """
    if not info.fold_of:
        return
    where, k = f"dataset {info.name!r}", info.n_folds
    modality = "image" if any(part.modality == "image" for part in sizes) else "text"
    wanted = {split: sizes[Part(split, modality)] for split in SPLITS if Part(split, modality) in sizes}  # type: ignore[arg-type]
    given = {split: len(fold) for split, fold in info.fold_of.items()}
    if given != wanted or any(fold.dtype != torch.int64 for fold in info.fold_of.values()):
        raise DataError(f"{where}: fold_of must be one int64 an item of {wanted}, got {given}")
    counts = torch.bincount(torch.cat(list(info.fold_of.values())).clamp_min(0), minlength=k)
    if k < 2 or any(len(fold) and int(fold.min()) < 0 for fold in info.fold_of.values()) or bool((counts == 0).any()):
        raise DataError(
            f"{where}: there must be two folds or more, numbered from 0 on, none empty; items {counts.tolist()}"
        )
    for fold in range(k):
        if VAL in info.fold_of and bool((info.fold_of[VAL] == fold).all()):
            raise DataError(
                f"{where}: all {given[VAL]} validation item(s) are in fold {fold + 1} of {k}, which leaves none to "
                "select on; take fewer folds, or a larger validation split"
            )
        for name, s in info.label_sets.items():
            _check_trained(where, name, s, info.fold_of, fold, k)


def _check_trained(where: str, name: str, s: LabelSet, fold_of: Mapping[str, Tensor], fold: int, k: int) -> None:
    seen = torch.zeros(len(s.classes), dtype=torch.int64)
    for split, of_split in fold_of.items():
        if split == VAL or split not in s.labels:
            continue
        labels = s.labels[split][of_split != fold]
        seen += labels.sum(0) if s.multilabel else torch.bincount(labels[labels >= 0], minlength=len(s.classes))
    if empty := [s.classes[i] for i in torch.nonzero(seen == 0).flatten().tolist()]:
        raise DataError(
            f"{where}, label set {name!r}: fold {fold + 1} of {k} leaves no training item of {len(empty)} class(es): "
            f"{empty[:10]}; take fewer folds, or leave these classes out"
        )
