"""The folds of a dataset as views of its features: nothing is encoded again, and what is stored stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import DataError
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Modality, Part
from krossfuse.data.common import check_info
from krossfuse.features.regroup import regroup


@dataclass(frozen=True)
class Fold:
    """One fold's turn.

    Attributes:
        bundle: the features under the splits of this turn: ``test`` the fold's items, ``val`` the dataset's own
            validation items of the other folds, ``train`` all others. Class texts and further splits are the whole's.
        places: by modality, (n_test,) int64: where each row of ``test`` stands among all items of train, val and test.
    """

    bundle: FeatureBundle
    places: Mapping[Modality, Tensor]


def fold_rows(info: DatasetInfo, fold: int) -> dict[str, dict[str, Tensor]]:
    """Return by new split and old split the rows of the items in the turn of ``fold``."""
    mine = {split: torch.nonzero(of == fold).flatten() for split, of in info.fold_of.items()}
    others = {split: torch.nonzero(of != fold).flatten() for split, of in info.fold_of.items()}
    return {
        TRAIN: {split: rows for split, rows in others.items() if split != VAL},
        **({VAL: {VAL: others[VAL]}} if VAL in others else {}),
        TEST: mine,
    }


def fold_sizes(info: DatasetInfo, sizes: Mapping[Part, int], fold: int) -> dict[Part, int]:
    """Return the number of items of each part in the turn of ``fold``, from those of the parts as they are."""
    changed = {part: n for part, n in sizes.items() if part.split not in info.fold_of}
    main: Modality = "image" if any(part.modality == "image" for part in sizes) else "text"
    for new, of_old in fold_rows(info, fold).items():
        changed[Part(new, main)] = sum(map(len, of_old.values()))
        if main == "image" and info.caption_of:
            described = (torch.isin(info.caption_of[split], rows) for split, rows in of_old.items())
            changed[Part(new, "text")] = sum(int(of_split.sum()) for of_split in described)
    return changed


def folds_of(bundle: FeatureBundle) -> list[Fold]:
    """Return the folds of a dataset, in their order; none where its splits are used as they are.

    The rows of each split follow one another in the order of train, val, test and of the rows there. The features are
    copied, once a fold.

    Raises:
        DataError: the folds are none of these items (a feature source of one's own), or leave too little.
    """
    info = bundle.info
    if not info.fold_of:
        return []
    sizes = {part: len(next(iter(x.values()))) for part, x in bundle.features.items() if "/" not in part.split}
    check_info(info, sizes, splits=[split for split in SPLITS if split in info.fold_of])
    starts: dict[Modality, dict[str, int]] = {}
    for modality in ("image", "text"):
        first = 0
        for split in info.fold_of:
            starts.setdefault(modality, {})[split] = first
            first += sizes.get(Part(split, modality), 0)
    made = []
    for fold in range(info.n_folds):
        rows = fold_rows(info, fold)
        new, features = regroup(info, bundle.features, rows)
        # A set that comes as one file is not cut once more: the folds are the cut.
        protocol = {"protocol": "splits"} if "protocol" in info.fingerprint else {}
        new = replace(new, fingerprint={**info.fingerprint, **protocol, "fold": f"{fold + 1} of {info.n_folds}"})
        places: dict[Modality, Tensor] = {}
        main: Modality = "image" if Part(TEST, "image") in features else "text"
        places[main] = torch.cat([starts[main][split] + r for split, r in rows[TEST].items()])
        if main == "image" and Part(TEST, "text") in features:
            texts = [
                starts["text"][split] + torch.nonzero(torch.isin(info.caption_of[split], r)).flatten()
                for split, r in rows[TEST].items()
            ]
            places["text"] = torch.cat(texts)
        try:
            of_turn = {part: len(next(iter(x.values()))) for part, x in features.items() if "/" not in part.split}
            check_info(new, of_turn, splits=list(rows))
        except DataError as error:
            raise DataError(f"fold {fold + 1} of {info.n_folds}: {error}") from None
        made.append(Fold(replace(bundle, info=new, features=features), places))
    return made
