from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes import TextProbe
from krossfuse.probes.base import Measurement, ProbeResult
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.text_probe import folds_with_holdout

SIZES = {"train": 90, "val": 20, "test": 40}


def make_space(protocol: str | None = None, noise: float = 1.0) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=g)
    labels, parts = {}, {}
    for split, n in SIZES.items():
        labels[split] = torch.arange(n) % 3
        parts[Part(split, "text")] = 2 * (centres[labels[split]] + noise * torch.randn(n, 8, generator=g))
    labels["train"][:5] = -1
    binary = {split: torch.where(y >= 0, y % 2, -1) for split, y in labels.items()}
    sets = {"topic": LabelSet(("a", "b", "c"), labels), "tone": LabelSet(("bad", "good"), binary)}
    return EmbeddingSpace(DatasetInfo("toy", {} if protocol is None else {"protocol": protocol}, sets), parts)


def unit(x: torch.Tensor) -> np.ndarray:
    return (x / x.norm(dim=1, keepdim=True)).numpy()


def measurements(result: ProbeResult, metric: str, label_set: str = "topic") -> list[Measurement]:
    return [f for f in result.measurements if (f.metric, f.label_set) == (metric, label_set)]


def test_folds_cover_every_labelled_row_once_and_are_stratified() -> None:
    labels = torch.tensor([-1, *([0, 1, 2, 2] * 25)])
    folds = folds_with_holdout(labels, n_folds=5, holdout=0.1, seed=3)
    assert torch.cat([test for *_, test in folds]).sort().values.tolist() == list(range(1, 101))
    for fit, select, test in folds:
        assert not set(fit.tolist()) & set(select.tolist())
        assert not (set(fit.tolist()) | set(select.tolist())) & set(test.tolist())
        assert torch.bincount(labels[test]).tolist() == [5, 5, 10]
        assert torch.bincount(labels[select]).tolist() == [2, 2, 4]
    again = folds_with_holdout(labels, n_folds=5, holdout=0.1, seed=3)
    assert all(torch.equal(a, b) for one, two in zip(folds, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(folds[0][2], folds_with_holdout(labels, n_folds=5, holdout=0.1, seed=4)[0][2])


@pytest.mark.parametrize("label_set", ["topic", "tone"])
def test_every_fold_is_that_of_scikit_learn(label_set: str) -> None:
    space = make_space()
    result = TextProbe(grid=[3.0], tol=1e-6).evaluate(space, seed=1)
    x = unit(torch.cat([space[Part(s, "text")] for s in SIZES]))
    y = torch.cat([space.info.label_sets[label_set].labels[s] for s in SIZES])
    hits = np.full(len(y), np.nan)
    by_fold = []
    for fit, select, test in folds_with_holdout(y, n_folds=5, holdout=0.1, seed=1):
        train = torch.cat([fit, select]).numpy()
        model = LogisticRegression(C=3.0, tol=1e-8, max_iter=5000).fit(x[train], y.numpy()[train])
        hits[test.numpy()] = model.predict(x[test.numpy()]) == y.numpy()[test.numpy()]
        by_fold.append(float(hits[test.numpy()].mean()))
    (accuracy,) = measurements(result, "accuracy", label_set)
    np.testing.assert_array_equal(accuracy.per_item.numpy(), hits[y.numpy() >= 0])  # type: ignore[union-attr]
    assert [f.value for f in measurements(result, "fold_accuracy", label_set)] == pytest.approx(by_fold)
    assert [f.protocol["subset_seed"] for f in measurements(result, "fold_accuracy", label_set)] == list(range(5))
    assert accuracy.protocol["fold_accuracies"] == pytest.approx(by_fold)


def test_official_splits_are_used_where_the_dataset_has_them() -> None:
    space = make_space("splits", noise=2.0)
    result = TextProbe(grid=[0.1, 10.0], tol=1e-6).evaluate(space, seed=0)
    assert result.protocol["evaluation"] == "splits"
    assert not measurements(result, "fold_accuracy")
    labels = space.info.label_sets["topic"].labels
    keep = labels["train"] >= 0
    x = {s: unit(space[Part(s, "text")]) for s in SIZES}
    x["train"], y = x["train"][keep.numpy()], {**labels, "train": labels["train"][keep]}

    def fit(C: float, *splits: str) -> LogisticRegression:
        model = LogisticRegression(C=C, tol=1e-8, max_iter=5000)
        return model.fit(np.concatenate([x[s] for s in splits]), np.concatenate([y[s].numpy() for s in splits]))

    (accuracy,) = measurements(result, "accuracy")
    C = accuracy.protocol["selected_C"]
    scores = {c: fit(c, "train").score(x["val"], y["val"].numpy()) for c in (0.1, 10.0)}
    assert scores[C] == max(scores.values())
    assert accuracy.value == pytest.approx(fit(C, "train", "val").score(x["test"], y["test"].numpy()))
    assert TextProbe(protocol="k-fold").evaluate(space, seed=0).protocol["evaluation"] == "k-fold"


def test_the_seed_decides_the_folds() -> None:
    space = make_space(noise=2.0)
    a, b, c = (TextProbe().evaluate(space, seed=seed) for seed in (0, 0, 1))
    assert [f.value for f in a.measurements] == [f.value for f in b.measurements] != [f.value for f in c.measurements]


def test_bad_input_is_named() -> None:
    space = make_space()
    assert TextProbe().applies(space)
    assert not TextProbe().applies(replace(space, parts={Part("test", "text"): space[Part("test", "text")]}))
    labels = space.info.label_sets["topic"].labels
    rare = {s: torch.where(torch.arange(len(y)) < 4, y.clamp(min=0), 0) for s, y in labels.items()}
    info = replace(space.info, label_sets={"topic": LabelSet(("a", "b", "c"), rare)})
    with pytest.raises(DataError, match=r"'b' \(label 1\) has 2 labelled items, but 5 are needed"):
        TextProbe(label_sets=["topic"]).evaluate(replace(space, info=info), seed=0)
    assert not TextProbe().applies(replace(space, info=info))
    no_val = {p: x for p, x in space.parts.items() if p.split != "val"}
    with pytest.raises(DataError, match="val:text"):
        TextProbe(protocol="splits").evaluate(replace(space, parts=no_val), seed=0)
    with pytest.raises(ConfigError, match="'topics'"):
        TextProbe(label_sets=["topics"]).evaluate(space, seed=0)
    broken = space[Part("val", "text")].clone()
    broken[3, 1] = float("nan")
    with pytest.raises(DataError, match=r"val:text .* row 3"):
        TextProbe().evaluate(replace(space, parts={**space.parts, Part("val", "text"): broken}), seed=0)
    for bad in ({"n_folds": 1}, {"holdout": 1.5}, {"grid": []}, {"protocol": "kfold"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            TextProbe(**bad)  # type: ignore[arg-type]


def pairs_of_texts(noise: float = 0.3) -> EmbeddingSpace:
    """Texts about four topics; a pair is labelled by whether both are about the same one."""
    g = torch.Generator().manual_seed(0)
    centres, labels, parts, compared = torch.randn(4, 8, generator=g), {}, {}, {}
    for split, n in SIZES.items():
        topics = torch.randint(0, 4, (2, n), generator=g)
        topics[1, ::2] = topics[0, ::2]
        labels[split] = (topics[0] == topics[1]).long()
        parts[Part(split, "text")] = 3 * (centres[topics.flatten()] + noise * torch.randn(2 * n, 8, generator=g))
        compared[split] = torch.arange(2 * n).view(2, n).T
    sets = {"class": LabelSet(("different", "paraphrase"), labels)}
    return EmbeddingSpace(DatasetInfo("pairs", {"protocol": "splits"}, sets, compared=compared), parts)


@pytest.mark.parametrize("normalise", [True, False])
def test_pairs_of_texts_are_scikit_learns(normalise: bool) -> None:
    space = pairs_of_texts()
    result = TextProbe(grid=[0.3, 10.0], tol=1e-7, normalise=normalise).evaluate(space, seed=0)
    x, y = {}, space.info.label_sets["class"].labels
    for split, n in SIZES.items():
        rows = space[Part(split, "text")].double()
        rows = rows / rows.norm(dim=1, keepdim=True) if normalise else rows
        u, v = rows[:n], rows[n:]
        x[split] = torch.cat([(u - v).abs(), u * v * (8**0.5 if normalise else 1)], 1).numpy()
    best = max(
        (LogisticRegression(C=C, tol=1e-10, max_iter=9999).fit(x["train"], y["train"]).score(x["val"], y["val"]), -C)
        for C in (0.3, 10.0)
    )
    (accuracy,) = measurements(result, "accuracy", "class")
    selected = accuracy.protocol["selected_C"]
    both = LogisticRegression(C=selected, tol=1e-10, max_iter=9999).fit(
        np.concatenate([x["train"], x["val"]]), torch.cat([y["train"], y["val"]])
    )
    assert selected in (0.3, 10.0)
    alone = LogisticRegression(C=selected, tol=1e-10, max_iter=9999).fit(x["train"], y["train"])
    assert alone.score(x["val"], y["val"]) == best[0]
    assert accuracy.value == pytest.approx(both.score(x["test"], y["test"]))
    assert accuracy.protocol["n_test"] == 40
    assert accuracy.value > 0.8


def test_other_probes_leave_pairs_of_texts_alone() -> None:
    from krossfuse.probes import KNN, LinearProbe

    for probe in (LinearProbe(modalities=["text"]), KNN(modalities=["text"])):
        assert "labels are of pairs of texts, which text_probe can take" in str(probe.why_not(pairs_of_texts()))
    info = pairs_of_texts().info
    assert info.labels("class", Part("test", "text")).tolist() == [-1] * 80
