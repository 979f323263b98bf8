"""Folds as views of a bundle: nothing of a fold is in its own training, captions go with their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Part
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.features.folds import fold_sizes, folds_of
from krossfuse.features.regroup import regroup

SIZES = {TRAIN: 20, VAL: 8, TEST: 12}


def numbered(folds: int) -> FeatureBundle:
    """A bundle whose features are the items' places among all; two captions an image, the second ones backwards."""
    first, features, captions, labels = 0, {}, {}, {}
    for split, n in SIZES.items():
        places = torch.arange(first, first + n)
        captions[split] = torch.cat([torch.arange(n), torch.arange(n).flip(0)])
        features[Part(split, "image")] = {"cross_modal": places[:, None].float(), "expert": -places[:, None].float()}
        features[Part(split, "text")] = {"cross_modal": places[captions[split]][:, None].float()}
        labels[split] = places % 2
        first += n
    features[Part.prompts("class", "default")] = {"cross_modal": torch.tensor([[7.0], [8.0]])}
    features[Part("test_other", "image")] = {"cross_modal": torch.full((3, 1), 99.0), "expert": torch.full((3, 1), 9.0)}
    labels["test_other"] = torch.tensor([0, 1, 0])
    fold_of = {split: features[Part(split, "image")]["cross_modal"][:, 0].long() // 2 % folds for split in SIZES}
    partly = LabelSet(("x", "y"), {TRAIN: labels[TRAIN], TEST: labels[TEST]})
    info = DatasetInfo(
        "numbered", {"v": 1}, {"class": LabelSet(("a", "b"), labels), "partly": partly}, captions, fold_of
    )
    return FeatureBundle(info, "pair", features)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_the_folds_are_a_partition_and_no_item_is_in_its_own_training(k: int) -> None:
    bundle = numbered(k)
    folds = folds_of(bundle)
    assert len(folds) == k
    tested = []
    for number, fold in enumerate(folds):
        places = {s: fold.bundle[Part(s, "image")]["cross_modal"][:, 0].long() for s in SPLITS}
        assert torch.equal(places[TEST], fold.places["image"])
        every = torch.cat([places[s] for s in SPLITS])
        assert every.sort().values.tolist() == list(range(40))
        assert set(places[VAL].tolist()) <= set(range(20, 28)), "validation items are the dataset's own"
        assert not set(places[TRAIN].tolist()) & set(range(20, 28))
        for split in SPLITS:
            part = Part(split, "image")
            assert torch.equal(fold.bundle.info.labels("class", part), places[split] % 2)
            assert torch.equal(fold.bundle[part]["expert"], -fold.bundle[part]["cross_modal"])
            texts = fold.bundle[Part(split, "text")]["cross_modal"][:, 0].long()
            assert torch.equal(texts, places[split][fold.bundle.info.caption_of[split]])
            assert len(texts) == 2 * len(places[split])
        sizes = {part: len(x["cross_modal"]) for part, x in bundle.features.items()}
        assert fold_sizes(bundle.info, sizes, number) == {
            part: len(x["cross_modal"]) for part, x in fold.bundle.features.items()
        }
        assert fold.bundle.info.fold_of == {}
        tested.append(places[TEST])
    assert torch.cat(tested).sort().values.tolist() == list(range(40))
    texts = torch.cat([fold.places["text"] for fold in folds])
    assert texts.sort().values.tolist() == list(range(80))


def test_what_is_no_fold_stays_whole() -> None:
    bundle = numbered(3)
    for fold in folds_of(bundle):
        for part in (Part.prompts("class", "default"), Part("test_other", "image")):
            assert fold.bundle[part] == bundle[part]
        labels = fold.bundle.info.label_sets["partly"].labels[TEST]
        assert ((labels < 0) == ((fold.places["image"] >= 20) & (fold.places["image"] < 28))).all()
        assert bundle.info.fold_of, "the bundle itself is unchanged"


def test_without_folds_there_are_none() -> None:
    bundle = numbered(2)
    info = DatasetInfo("plain", {}, bundle.info.label_sets, bundle.info.caption_of)
    assert folds_of(FeatureBundle(info, "pair", bundle.features)) == []


def test_texts_without_captions_cannot_be_cut() -> None:
    bundle = numbered(2)
    info = DatasetInfo("lost", {}, bundle.info.label_sets)
    with pytest.raises(DataError, match="does not say which text of 'train' describes which image"):
        regroup(info, bundle.features, {TEST: {TRAIN: torch.arange(3)}})


def write(path: Path, n: int = 30) -> str:
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array(["cat", "dog", "otter"])}
    for split, rows in {"train": n, "test": n // 2}.items():
        arrays[f"{split}/image/clip"] = rng.normal(size=(rows, 8))
        arrays[f"{split}/text/clip"] = rng.normal(size=(rows, 8))
        arrays[f"{split}/image/dino"] = rng.normal(size=(rows, 12))
        arrays[f"{split}/labels"] = np.arange(rows) % 3
    np.savez(path, **arrays)
    return str(path)


def test_a_file_of_embeddings_has_folds(tmp_path: Path) -> None:
    bundle = EmbeddingsFile(path=write(tmp_path / "mine.npz"), folds=3).bundle()
    assert torch.bincount(torch.cat(list(bundle.info.fold_of.values()))).tolist() == [15, 15, 15]
    plain = EmbeddingsFile(path=write(tmp_path / "mine.npz")).bundle()
    for part, roles in plain.features.items():
        assert all(torch.equal(x, bundle[part][role]) for role, x in roles.items())
    folds = folds_of(bundle)
    assert [len(fold.bundle[Part(TEST, "image")]["dino"]) for fold in folds] == [15, 15, 15]
    with pytest.raises(
        DataError, match=r"data\.folds=16 is more than the 15 item\(s\) of class 'cat' of label set 'class'"
    ):
        EmbeddingsFile(path=write(tmp_path / "mine.npz"), folds=16).bundle()
    with pytest.raises(ConfigError, match=r"data\.folds=1 must be"):
        EmbeddingsFile(path=str(tmp_path / "mine.npz"), folds=1)
