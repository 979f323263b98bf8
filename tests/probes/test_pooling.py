"""Folds' measurements pooled: values by hand, scores in the order of the items, no leakage."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Part
from krossfuse.data.common import make_prompts
from krossfuse.features.folds import Fold, folds_of
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.clustering import Clustering
from krossfuse.probes.few_shot import FewShot
from krossfuse.probes.knn import KNN
from krossfuse.probes.linear import LinearProbe
from krossfuse.probes.pooling import merged, pool
from krossfuse.probes.retrieval import Retrieval
from krossfuse.probes.scoring import mean_per_class
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.text_probe import TextProbe
from krossfuse.probes.zero_shot import ZeroShot

N = {TRAIN: 60, VAL: 18, TEST: 33}


def made(k: int, *, shuffled: bool = False, unlabelled: int = 0, seed: int = 0) -> FeatureBundle:
    """Three blurred classes, a caption an image, in k folds; with ``shuffled`` labels that have to do with nothing."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(N.values())
    classes = torch.arange(n) % 3
    labels = classes[torch.randperm(n, generator=generator)] if shuffled else classes.clone()
    labels[:unlabelled] = -1
    centre = torch.eye(3, 6)[classes] * 1.5
    image, text = (centre + torch.randn(n, 6, generator=generator) for _ in range(2))
    fold = torch.randperm(n, generator=generator) % k
    sizes = list(N.values())
    features, by_split, fold_of = {}, {}, {}
    for split, x, t, y, f in zip(
        SPLITS, image.split(sizes), text.split(sizes), labels.split(sizes), fold.split(sizes), strict=True
    ):
        features[Part(split, "image")] = {"cross_modal": x}
        features[Part(split, "text")] = {"cross_modal": t}
        by_split[split], fold_of[split] = y, f
    captions = {split: torch.arange(size) for split, size in N.items()}
    info = DatasetInfo("blurred", {}, {"class": LabelSet(("a", "b", "c"), by_split)}, captions, fold_of)
    return FeatureBundle(info, "pair", features)


def spaces(folds: list[Fold]) -> list[EmbeddingSpace]:
    return [
        EmbeddingSpace(fold.bundle.info, {part: roles["cross_modal"] for part, roles in fold.bundle.features.items()})
        for fold in folds
    ]


def pooled(probe: Probe, folds: list[Fold]) -> ProbeResult:
    return pool([probe.evaluate(space, seed=0) for space in spaces(folds)], folds)


def named(result: ProbeResult, metric: str) -> Measurement:
    return next(m for m in result.measurements if m.metric == metric)


def one_nearest(bundle: FeatureBundle) -> tuple[Tensor, Tensor]:
    """By hand: whether the nearest item of the other folds has the item's class; and the classes."""
    x = torch.cat([bundle[Part(split, "image")]["cross_modal"] for split in SPLITS])
    y = torch.cat([bundle.info.label_sets["class"].labels[split] for split in SPLITS])
    fold = torch.cat([bundle.info.fold_of[split] for split in SPLITS])
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    similar = (unit @ unit.T).masked_fill((fold[:, None] == fold) | (y < 0)[None, :], -2)
    return (y[similar.argmax(1)] == y)[y >= 0], y[y >= 0]


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("unlabelled", [0, 5])
def test_pooled_accuracy_is_that_by_hand_item_by_item(k: int, unlabelled: int) -> None:
    bundle = made(k, unlabelled=unlabelled)
    result = pooled(KNN(ks=[1], temperature=None), folds_of(bundle))
    hits, labels = one_nearest(bundle)
    accuracy = named(result, "accuracy")
    assert accuracy.per_item is not None
    assert torch.equal(accuracy.per_item.bool(), hits)
    assert accuracy.value == pytest.approx(float(hits.double().mean()))
    assert named(result, "mean_per_class_accuracy").value == pytest.approx(mean_per_class(hits.float(), labels))
    assert accuracy.protocol["n_test"] == sum(N.values()) - unlabelled
    assert accuracy.protocol["pooled"] == "items"
    assert result.protocol["folds"] == k


def test_a_probe_that_remembers_its_training_is_no_better_than_chance_on_shuffled_labels() -> None:
    hits: list[Tensor] = []
    for seed in range(12):
        bundle = made(3, shuffled=True, seed=seed)
        result = pooled(KNN(ks=[1]), folds_of(bundle))
        hits.append(named(result, "accuracy").per_item)  # type: ignore[arg-type]
    n = torch.cat(hits)
    assert abs(float(n.mean()) - 1 / 3) < 4 * (2 / 9 / len(n)) ** 0.5
    # The same probe on items that it has seen: all right.
    x = {Part(split, "image"): bundle[Part(TRAIN, "image")]["cross_modal"] for split in SPLITS}
    y = dict.fromkeys(SPLITS, bundle.info.label_sets["class"].labels[TRAIN])
    seen = EmbeddingSpace(DatasetInfo("seen", {}, {"class": LabelSet(("a", "b", "c"), y)}), x)
    assert named(KNN(ks=[1]).evaluate(seen, seed=0), "accuracy").value == 1.0


def test_zero_shot_of_all_items_does_not_depend_on_the_folds() -> None:
    values = []
    for k in (2, 5):
        bundle = made(k)
        prompts = {"default": make_prompts(["{}"], ["a", "b", "c"])}
        sets = {"class": replace(bundle.info.label_sets["class"], prompts=prompts)}
        features = {**bundle.features, Part.prompts("class", "default"): {"cross_modal": torch.eye(3, 6)}}
        bundle = FeatureBundle(replace(bundle.info, label_sets=sets), "pair", features)
        values.append(named(pooled(ZeroShot(), folds_of(bundle)), "accuracy"))
    x = torch.cat([bundle[Part(split, "image")]["cross_modal"] for split in SPLITS])
    right = x[:, :3].argmax(1) == torch.arange(len(x)) % 3
    for measured in values:
        assert measured.per_item is not None
        assert torch.equal(measured.per_item.bool(), right)


def test_a_linear_probe_keeps_its_heads_and_lists_what_each_fold_chose() -> None:
    folds = folds_of(made(3))
    result = pooled(LinearProbe(modalities=["image"]), folds)
    assert set(result.heads) == {f"class/image/fold {i}" for i in (1, 2, 3)}
    hits = []
    for i, fold in enumerate(folds, 1):
        head = result.heads[f"class/image/fold {i}"]
        part = Part(TEST, "image")
        hits.append(head(fold.bundle[part]["cross_modal"]).argmax(1) == fold.bundle.info.labels("class", part))
    order = torch.cat([fold.places["image"] for fold in folds]).argsort()
    accuracy = named(result, "accuracy")
    assert accuracy.per_item is not None
    assert torch.equal(accuracy.per_item.bool(), torch.cat(hits)[order])
    sizes = [sum(len(f.bundle[Part(s, "image")]["cross_modal"]) for s in (TRAIN, VAL)) for f in folds]
    n_train = accuracy.protocol["n_train"]
    assert (n_train if isinstance(n_train, list) else [n_train] * 3) == sizes


def test_retrieval_asks_every_item_once_in_the_gallery_of_its_fold() -> None:
    folds = folds_of(made(3))
    result = pooled(Retrieval(ks=[1]), folds)
    recall = next(m for m in result.measurements if m.metric == "recall@1" and m.modality == "text->image")
    by_hand = torch.zeros(sum(N.values()))
    for fold in folds:
        x, t = (fold.bundle[Part(TEST, modality)]["cross_modal"].double() for modality in ("image", "text"))
        by_hand[fold.places["text"]] = ((t @ x.T).argmax(1) == torch.arange(len(t))).float()
    assert recall.per_item is not None
    assert torch.equal(recall.per_item, by_hand)
    ranks = [m for m in result.measurements if m.metric == "median_rank"]
    assert all(m.per_item is None and m.protocol["pooled"] == "mean of folds" for m in ranks)


def test_clusterings_are_averaged_start_by_start() -> None:
    folds = folds_of(made(2))
    probe = Clustering(methods=["kmeans"], n_seeds=2, n_init=1)
    result = pooled(probe, folds)
    each = [probe.evaluate(space, seed=0) for space in spaces(folds)]
    nmi = [m for m in result.measurements if m.metric == "nmi"]
    assert [m.protocol["subset_seed"] for m in nmi] == [0, 1]
    for start, measured in enumerate(nmi):
        values = [
            m.value for r in each for m in r.measurements if m.metric == "nmi" and m.protocol["subset_seed"] == start
        ]
        assert measured.value == pytest.approx(sum(values) / 2)


def test_few_shots_are_pooled_by_subset() -> None:
    result = pooled(FewShot(shots=[1, 2], forms=["I"], n_seeds=2), folds_of(made(3)))
    accuracies = [m for m in result.measurements if m.metric == "accuracy"]
    assert [(m.protocol["shots"], m.protocol["subset_seed"]) for m in accuracies] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(m.per_item is not None and len(m.per_item) == sum(N.values()) for m in accuracies)
    assert set(result.drawn) == {"fold 1", "fold 2", "fold 3"}


def test_a_set_for_k_fold_is_cut_by_the_folds_alone() -> None:
    bundle = made(3)
    bundle = replace(bundle, info=replace(bundle.info, fingerprint={"protocol": "k-fold"}))
    result = pooled(TextProbe(), folds_of(bundle))
    accuracy = named(result, "accuracy")
    assert result.protocol["evaluation"] == "splits"
    assert accuracy.protocol["pooled"] == "items"
    assert accuracy.per_item is not None
    assert len(accuracy.per_item) == sum(N.values())


def test_scores_on_further_splits_are_averaged_item_by_item_and_others_have_none() -> None:
    folds = folds_of(made(2))

    def of(split: str, value: float) -> ProbeResult:
        m = Measurement("accuracy", value, "image", "class", {"split": split}, torch.tensor([value, value]))
        return ProbeResult([m], {})

    away = named(pool([of("test_other", 1.0), of("test_other", 0.0)], folds), "accuracy")
    assert away.value == 0.5
    assert away.per_item is not None
    assert away.per_item.tolist() == [0.5, 0.5]
    val = named(pool([of(VAL, 1.0), of(VAL, 0.0)], folds), "accuracy")
    assert val.value == 0.5
    assert val.per_item is None, "validation items are in several turns, each time others"


def test_what_only_some_folds_measured_is_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    folds = folds_of(made(2))
    one = ProbeResult([Measurement("nmi", 0.5, "image", "class")], {})
    with caplog.at_level(logging.WARNING):
        assert pool([one, ProbeResult([], {})], folds).measurements == []
    assert "nmi of class is left out: it could be measured in 1 of 2 folds" in caplog.text


def test_descriptions_keep_what_they_agree_on() -> None:
    assert merged([{"C": 1.0, "dim": 3}, {"C": 2.0, "dim": 3, "edge": True}]) == {
        "C": [1.0, 2.0],
        "dim": 3,
        "edge": [None, True],
    }
