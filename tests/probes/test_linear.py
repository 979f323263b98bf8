from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes import LinearHead, LinearProbe
from krossfuse.probes.base import Measurement, ProbeResult
from krossfuse.probes.scoring import mean_average_precision
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 140, "val": 42, "test": 70, "test_far": 28}
K = 7


def make_space(dim: int = 10, noise: float = 1.2, **extra: LabelSet) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(K, dim, generator=g)
    labels, parts = {}, {}
    for split, n in SIZES.items():
        labels[split] = torch.arange(n) % K
        for modality in ("image", "text"):
            drawn = centres[labels[split]] + noise * torch.randn(n, dim, generator=g)
            parts[Part(split, modality)] = drawn / drawn.norm(dim=1, keepdim=True)  # type: ignore[arg-type]
    labels["train"][:9] = -1
    coarse = {split: torch.where(y >= 0, y % 3, -1) for split, y in labels.items() if split != "test_far"}
    sets = {
        "kind": LabelSet(tuple("abcdefg"), labels),
        "coarse": LabelSet(("x", "y", "z"), coarse),
        **extra,
    }
    return EmbeddingSpace(DatasetInfo("toy", {}, sets), parts)


def multilabel() -> LabelSet:
    rows = {split: torch.arange(n)[:, None] for split, n in SIZES.items()}
    labels = {split: torch.cat([r % K < 3, r % K == 1, r % K > 4], 1) for split, r in rows.items()}
    return LabelSet(("low", "one", "high"), labels, multilabel=True)


def one(
    result: ProbeResult, metric: str, name: str = "kind", modality: str = "image", split: str = "test"
) -> Measurement:
    (measurement,) = [
        f
        for f in result.measurements
        if (f.metric, f.label_set, f.modality, f.protocol["split"]) == (metric, name, modality, split)
    ]
    return measurement


def arrays(space: EmbeddingSpace, name: str, *splits: str) -> tuple[Any, Any]:
    x = torch.cat([space[Part(s, "image")] for s in splits])
    y = torch.cat([space.info.label_sets[name].labels[s] for s in splits])
    return x[y >= 0].double().numpy(), y[y >= 0].numpy()


@pytest.mark.parametrize("dim", [10, 400])
@pytest.mark.parametrize("name", ["kind", "coarse"])
def test_selection_and_refit_are_those_of_scikit_learn(dim: int, name: str) -> None:
    space = make_space(dim, noise=1.2 if dim == 10 else 4.0)
    grid = [0.1, 3.0, 90.0]
    result = LinearProbe(grid=grid, tol=1e-5, modalities=["image"]).evaluate(space, seed=0)
    x, y = arrays(space, name, "train")
    xv, yv = arrays(space, name, "val")
    xt, yt = arrays(space, name, "test")
    found = one(result, "accuracy", name)
    scores = [LogisticRegression(C=c, tol=1e-8, max_iter=9999).fit(x, y).score(xv, yv) for c in grid]
    assert scores[grid.index(found.protocol["C"])] == max(scores) == pytest.approx(found.protocol["selection_score"])
    final = LogisticRegression(C=found.protocol["C"], tol=1e-8, max_iter=9999).fit(*arrays(space, name, "train", "val"))
    assert found.value == pytest.approx(final.score(xt, yt))
    assert found.per_item is not None
    assert found.per_item.tolist() == (final.predict(xt) == yt).tolist()
    assert found.protocol["n_train"] == 131 + 42
    assert found.protocol["converged"]
    head = result.heads[f"{name}/image"]
    proba = head(torch.from_numpy(xt)).softmax(1).numpy()
    np.testing.assert_allclose(proba, final.predict_proba(xt), atol=1e-3)
    if name == "kind":
        top5 = np.sort(final.decision_function(xt), 1)[:, -5] <= final.decision_function(xt)[np.arange(len(yt)), yt]
        assert one(result, "top5_accuracy").value == pytest.approx(top5.mean())


def test_both_modalities_and_further_splits() -> None:
    result = LinearProbe(grid=[1.0, 10.0], extra_splits=["test_far"]).evaluate(make_space(), seed=0)
    assert set(result.heads) == {"kind/image", "kind/text", "coarse/image", "coarse/text"}
    assert one(result, "accuracy", modality="text").value > 0.5
    assert one(result, "accuracy", split="test_far").protocol["n_test"] == 28
    assert {f.protocol["split"] for f in result.measurements if f.label_set == "coarse"} == {"test"}
    head = result.heads["kind/image"]
    copy = LinearHead(torch.zeros(K, 10), torch.zeros(K))
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy.weight, head.weight)  # type: ignore[arg-type]


def test_k_fold_needs_no_validation_split_and_no_refit_needs_no_joining() -> None:
    space = make_space()
    without = EmbeddingSpace(space.info, {p: x for p, x in space.parts.items() if p.split != "val"})
    with pytest.raises(DataError, match="selection=k-fold"):
        LinearProbe().evaluate(without, seed=0)
    folds = LinearProbe(grid=[1.0, 10.0], selection="k-fold", modalities=["image"])
    result = folds.evaluate(without, seed=0)
    assert one(result, "accuracy").protocol["n_train"] == 131
    assert result.protocol["selection"] == "5-fold"
    again = folds.evaluate(without, seed=0)
    assert [f.value for f in result.measurements] == [f.value for f in again.measurements]
    assert torch.equal(result.heads["kind/image"].weight, again.heads["kind/image"].weight)  # type: ignore[arg-type]
    plain = LinearProbe(grid=[10.0], refit=False, modalities=["image"], tol=1e-5).evaluate(space, seed=0)
    x, y = arrays(space, "kind", "train")
    model = LogisticRegression(C=10.0, tol=1e-8, max_iter=9999).fit(x, y)
    assert one(plain, "accuracy").value == pytest.approx(model.score(*arrays(space, "kind", "test")))


def test_multilabel_gets_mean_average_precision() -> None:
    space = make_space(tags=multilabel())
    result = LinearProbe(grid=[1.0, 10.0], label_sets=["tags"], modalities=["image"], tol=1e-5).evaluate(space, seed=0)
    found = one(result, "mean_average_precision", "tags")
    labels = space.info.label_sets["tags"].labels
    x = torch.cat([space[Part(s, "image")] for s in ("train", "val")]).double().numpy()
    precisions = []
    for k in range(3):
        y = torch.cat([labels["train"], labels["val"]])[:, k].numpy()
        model = LogisticRegression(C=found.protocol["C"], tol=1e-8, max_iter=9999).fit(x, y)
        scores = model.decision_function(space[Part("test", "image")].double().numpy())
        precisions.append(average_precision_score(labels["test"][:, k].numpy(), scores))
    assert found.value == pytest.approx(np.mean(precisions), abs=1e-4)


def test_mean_average_precision_ranks_scores_that_a_sigmoid_would_tie() -> None:
    g = torch.Generator().manual_seed(0)
    scores, labels = 100 * torch.randn(50, 4, generator=g), torch.rand(50, 4, generator=g) < 0.3
    expected = average_precision_score(labels.numpy(), scores.numpy(), average="macro")
    assert mean_average_precision(scores, labels) == pytest.approx(expected)


def test_normalise_scales_embeddings_everywhere() -> None:
    space = make_space()
    stretch = {p: x * torch.linspace(0.1, 9, len(x))[:, None] for p, x in space.parts.items()}
    probe = {"grid": [10.0], "modalities": ["image"], "tol": 1e-5}
    plain = LinearProbe(**probe).evaluate(space, seed=0)  # type: ignore[arg-type]
    scaled = LinearProbe(normalise=True, **probe).evaluate(EmbeddingSpace(space.info, stretch), seed=0)  # type: ignore[arg-type]
    assert one(plain, "accuracy").value == one(scaled, "accuracy").value


def changed(space: EmbeddingSpace, split: str, labels: Tensor) -> EmbeddingSpace:
    old = space.info.label_sets["kind"]
    sets = {"kind": LabelSet(old.classes, {**old.labels, split: labels})}
    return EmbeddingSpace(DatasetInfo("toy", {}, sets), space.parts)


def test_bad_data_is_named() -> None:
    space = make_space()
    y = space.info.label_sets["kind"].labels["train"]
    probe = LinearProbe(grid=[1.0], modalities=["image"])
    with pytest.raises(DataError, match="class 'c'"):
        probe.evaluate(changed(space, "train", torch.where(y == 2, -1, y)), seed=0)
    with pytest.raises(DataError, match="label 9"):
        probe.evaluate(changed(space, "train", torch.where(y == 2, 9, y)), seed=0)
    with pytest.raises(DataError, match="no item of val:image has a label in 'kind'"):
        probe.evaluate(changed(space, "val", torch.full((42,), -1)), seed=0)
    lone = LabelSet(("only",), {s: torch.zeros(n, dtype=torch.int64) for s, n in SIZES.items()})
    with pytest.raises(DataError, match="one class, 'only'"):
        LinearProbe(label_sets=["lone"]).evaluate(make_space(lone=lone), seed=0)
    spoilt = dict(space.parts)
    spoilt[Part("val", "image")] = spoilt[Part("val", "image")].clone()
    spoilt[Part("val", "image")][5, 1] = float("nan")
    with pytest.raises(DataError, match=r"val:image.*row 5"):
        probe.evaluate(EmbeddingSpace(space.info, spoilt), seed=0)
    with pytest.raises(ConfigError, match="'kindd'"):
        LinearProbe(label_sets=["kindd"]).evaluate(space, seed=0)
    with pytest.raises(DataError, match="fewer than n_folds=40"):
        LinearProbe(selection="k-fold", n_folds=40).evaluate(space, seed=0)


def test_bad_configuration_is_refused() -> None:
    for bad in (
        {"grid": []},
        {"grid": [1.0, -1.0]},
        {"selection": "vall"},
        {"selection": "k-fold", "refit": False},
        {"n_folds": 1},
        {"tol": 0},
        {"max_iter": 0},
        {"block_rows": 0},
        {"modalities": ["sound"]},
    ):
        with pytest.raises(ConfigError):
            LinearProbe(**bad)  # type: ignore[arg-type]


def test_a_memory_map_is_read_as_it_is(tmp_path: Path) -> None:
    space = make_space()
    mapped = {}
    for i, (part, x) in enumerate(space.parts.items()):
        np.save(tmp_path / f"{i}.npy", x.numpy())
        array = np.load(tmp_path / f"{i}.npy", mmap_mode="c")
        mapped[part] = torch.from_numpy(array)
    whole = LinearProbe(grid=[1.0, 10.0]).evaluate(space, seed=0)
    blocked = LinearProbe(grid=[1.0, 10.0], block_rows=50).evaluate(EmbeddingSpace(space.info, mapped), seed=0)
    assert [f.value for f in whole.measurements] == [f.value for f in blocked.measurements]
