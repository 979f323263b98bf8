from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes import KNN
from krossfuse.probes.base import Measurement, ProbeResult
from krossfuse.probes.knn import nearest, vote
from krossfuse.probes.space import EmbeddingSpace

CLASSES = ("ant", "bee", "cat", "dog")


def make_space(seed: int = 0, dim: int = 6) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, dim, generator=g)
    labels, parts = {}, {}
    for split, n in (("train", 60), ("val", 30), ("test", 40), ("test_far", 20)):
        labels[split] = torch.arange(n) % 4
        parts[Part(split, "image")] = centres[labels[split]] + 1.2 * torch.randn(n, dim, generator=g).double()
    labels["test"][::7] = -1
    return EmbeddingSpace(DatasetInfo("toy", {}, {"class": LabelSet(CLASSES, labels)}), parts)


def measurement(result: ProbeResult, metric: str, split: str = "test") -> Measurement:
    (one,) = [f for f in result.measurements if f.metric == metric and f.protocol["split"] == split]
    return one


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, 60),
    metric=st.sampled_from(["cosine", "euclidean"]),
    temperature=st.sampled_from([None, 0.1]),
    block=st.integers(1, 70),
)
def test_parity_with_scikit_learn(seed: int, k: int, metric: str, temperature: float | None, block: int) -> None:
    space = make_space(seed)
    probe = KNN(ks=[k], metric=metric, temperature=temperature, refit=False, block_rows=block)  # type: ignore[arg-type]
    ours = measurement(probe.evaluate(space, seed=0), "accuracy")

    def weigh(distances: np.ndarray) -> np.ndarray:
        assert temperature is not None
        scores = 1 - distances if metric == "cosine" else -(distances**2) / 2
        return np.exp(scores / temperature)

    theirs = KNeighborsClassifier(
        k, metric=metric, algorithm="brute", weights="uniform" if temperature is None else weigh
    )
    theirs.fit(space[Part("train", "image")].numpy(), space.info.label_sets["class"].labels["train"].numpy())
    truth = space.info.label_sets["class"].labels["test"]
    predicted = theirs.predict(space[Part("test", "image")][truth >= 0].numpy())
    assert ours.per_item is not None
    np.testing.assert_array_equal(ours.per_item.numpy(), predicted == truth[truth >= 0].numpy())


def test_k_is_chosen_on_validation_and_the_gallery_refitted() -> None:
    space = make_space(3)
    labels = space.info.label_sets["class"].labels
    by_hand = {}
    for k in (1, 5, 20):
        theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        theirs.fit(space[Part("train", "image")].numpy(), labels["train"].numpy())
        by_hand[k] = theirs.score(space[Part("val", "image")].numpy(), labels["val"].numpy())
    result = KNN(ks=[20, 1, 5], temperature=None).evaluate(space, seed=0)
    protocol = measurement(result, "accuracy").protocol
    assert protocol["selected_k"] == max(by_hand, key=lambda k: by_hand[k])
    assert protocol["val_accuracy"] == pytest.approx(max(by_hand.values()))
    assert protocol["n_train"] == 90
    one = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(
        torch.cat([space[Part("train", "image")], space[Part("val", "image")]]).numpy(),
        torch.cat([labels["train"], labels["val"]]).numpy(),
    )
    keep = labels["test"] >= 0
    expected = one.score(space[Part("test", "image")][keep].numpy(), labels["test"][keep].numpy())
    assert measurement(result, "1nn_accuracy").value == pytest.approx(expected)


def test_extra_splits_use_the_same_gallery() -> None:
    result = KNN(extra_splits=["test_far"]).evaluate(make_space(), seed=0)
    assert measurement(result, "accuracy", "test_far").protocol["n_test"] == 20


def test_equal_neighbours_keep_the_order_of_the_gallery() -> None:
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    scores, places = nearest(torch.tensor([[1.0, 0.0]]), gallery, 3, block_rows=2)
    assert places.tolist() == [[1, 2, 3]]
    votes = vote(scores, torch.tensor([[2, 0, 1]]), 3, temperature=None)
    assert votes.tolist() == [[1, 1, 1]]


def test_bad_input_is_named() -> None:
    space = make_space()
    assert KNN().applies(space)
    assert not KNN(modalities=["text"]).applies(space)
    with pytest.raises(DataError, match=r"k=91 .* 90 gallery"):
        KNN(ks=[91]).evaluate(space, seed=0)
    label_set = space.info.label_sets["class"]
    without = {**label_set.labels, "train": torch.arange(60) % 3}
    info = replace(space.info, label_sets={"class": replace(label_set, labels=without)})
    with pytest.raises(DataError, match=r"'dog' \(label 3\) has 0 training items"):
        KNN().evaluate(replace(space, info=info), seed=0)
    no_val = {p: x for p, x in space.parts.items() if p.split != "val"}
    with pytest.raises(DataError, match="give one k"):
        KNN().evaluate(replace(space, parts=no_val), seed=0)
    assert KNN(ks=[1]).evaluate(replace(space, parts=no_val), seed=0).measurements
    broken = space[Part("train", "image")].clone()
    broken[7] = float("nan")
    with pytest.raises(DataError, match="row 7"):
        KNN().evaluate(replace(space, parts={**space.parts, Part("train", "image"): broken}), seed=0)
    with pytest.raises(ConfigError, match="'klass'"):
        KNN(label_sets=["klass"]).evaluate(space, seed=0)
    with pytest.raises(ConfigError, match="temperature=0"):
        KNN(temperature=0)
    with pytest.raises(ConfigError, match="metric"):
        KNN(metric="dot")  # type: ignore[arg-type]
