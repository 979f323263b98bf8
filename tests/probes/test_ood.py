from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.probes import OutOfDistribution, ZeroShot
from krossfuse.probes.base import Measurement, ProbeResult
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 90, "val": 30, "test": 60, "test_sketch": 45, "test_paint": 20}
PROMPTS = Part.prompts("class", "plain")


def make_space() -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 12, generator=g)
    labels, parts = {}, {}
    for split, n in SIZES.items():
        labels[split] = torch.arange(n) % 3
        shift = 1.5 if split.startswith("test_") else 0.0
        noise = torch.randn(n, 12, generator=g)
        parts[Part(split, "image")] = centres[labels[split]] + noise + shift * torch.randn(12, generator=g)
    labels["test_sketch"][:4] = -1
    labels["test_paint"] %= 2
    parts[PROMPTS] = centres + 0.2 * torch.randn(3, 12, generator=g)
    prompts = Prompts(("a", "b", "c"), torch.arange(3))
    info = DatasetInfo("toy", {}, {"class": LabelSet(("a", "b", "c"), labels, {"plain": prompts})})
    return EmbeddingSpace(info, parts)


def measurement(result: ProbeResult, form: str, split: str, metric: str = "accuracy") -> Measurement:
    (one,) = [
        f
        for f in result.measurements
        if (f.metric, f.protocol["form"], f.protocol.get("split")) == (metric, form, split)
    ]
    return one


def test_the_linear_head_is_that_of_scikit_learn_on_every_split() -> None:
    space = make_space()
    labels = space.info.label_sets["class"].labels
    result = OutOfDistribution(grid=[0.01, 1.0], tol=1e-6).evaluate(space, seed=0)
    x = {split: space[Part(split, "image")].numpy() for split in SIZES}
    y = {split: labels[split].numpy() for split in SIZES}

    def fit(C: float, *splits: str) -> LogisticRegression:
        model = LogisticRegression(C=C, tol=1e-8, max_iter=5000)
        return model.fit(np.concatenate([x[s] for s in splits]), np.concatenate([y[s] for s in splits]))

    val = {C: fit(C, "train").score(x["val"], y["val"]) for C in (0.01, 1.0)}
    C = measurement(result, "linear", "test").protocol["C"]
    assert val[C] == max(val.values())
    model = fit(C, "train", "val")
    for split in ("test", "test_sketch", "test_paint"):
        keep = y[split] >= 0
        theirs = model.score(x[split][keep], y[split][keep])
        assert measurement(result, "linear", split).value == pytest.approx(theirs)
    head = result.heads["class/image/linear"]
    own = (head(space[Part("test", "image")]).argmax(1) == labels["test"]).float().mean()
    assert measurement(result, "linear", "test").value == pytest.approx(float(own))


def test_the_zero_shot_head_is_the_zero_shot_probe() -> None:
    space = make_space()
    result = OutOfDistribution(heads=["zero_shot"]).evaluate(space, seed=0)
    alone = ZeroShot(extra_splits=["test_sketch", "test_paint"]).evaluate(space, seed=0)
    for f in alone.measurements:
        assert measurement(result, "zero_shot", f.protocol["split"], f.metric).value == f.value


def test_the_mean_over_shifted_splits_leaves_the_own_test_split_out() -> None:
    result = OutOfDistribution().evaluate(make_space(), seed=0)
    for form in ("linear", "zero_shot"):
        (mean,) = [f for f in result.measurements if f.metric == "shifted_accuracy" and f.protocol["form"] == form]
        away = [measurement(result, form, split).value for split in ("test_sketch", "test_paint")]
        assert mean.value == pytest.approx(sum(away) / 2)
        assert mean.value < measurement(result, form, "test").value


def test_bad_input_is_named() -> None:
    space = make_space()
    assert OutOfDistribution().applies(space)
    own = replace(space, parts={p: x for p, x in space.parts.items() if not p.split.startswith("test_")})
    assert not OutOfDistribution().applies(own)
    with pytest.raises(DataError, match="no shifted test set"):
        OutOfDistribution().evaluate(own, seed=0)
    with pytest.raises(DataError, match="test_clip:image"):
        OutOfDistribution(splits=["test_clip"]).evaluate(space, seed=0)
    label_set = space.info.label_sets["class"]
    without = {**label_set.labels, "train": torch.arange(90) % 2}
    info = replace(space.info, label_sets={"class": replace(label_set, labels=without)})
    with pytest.raises(DataError, match=r"'c' \(label 2\) has 0 training items"):
        OutOfDistribution().evaluate(replace(space, info=info), seed=0)
    broken = space[Part("test_paint", "image")].clone()
    broken[6] = float("nan")
    with pytest.raises(DataError, match=r"test_paint:image .* row 6"):
        OutOfDistribution().evaluate(replace(space, parts={**space.parts, Part("test_paint", "image"): broken}), seed=0)
    with pytest.raises(ConfigError, match="'val'"):
        OutOfDistribution(splits=["val"])
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        OutOfDistribution(heads=["liner"])
