from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from few_shot_toys import PROMPTS, TEST, TRAIN, VAL, accuracies, make_space, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import Part
from krossfuse.probes import FewShot
from krossfuse.probes.solvers import fit_ridge_batch
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.subsets import FewShotSubset


def expected(
    space: EmbeddingSpace, subset: FewShotSubset, form: str, classifier: str, C: float, text_weight: float
) -> float:
    """The same problem with scikit-learn; each class has two texts."""
    labels = space.info.label_sets["class"].labels
    x, y = [unit(space[TRAIN][subset.train])], [labels["train"][subset.train].numpy()]
    weight = [np.ones(len(subset.train))]
    if form == "T":
        x, y, weight = [], [], []
    if form != "I":
        x.append(unit(space[PROMPTS]))
        y.append(space.info.label_sets["class"].prompts["plain"].owner.numpy())
        weight.append(np.full(8, text_weight / 2))
    model: Any = (
        RidgeClassifier(alpha=1 / C) if classifier == "ridge" else LogisticRegression(C=C, tol=1e-8, max_iter=5000)
    )
    model.fit(np.concatenate(x), np.concatenate(y), sample_weight=np.concatenate(weight))
    return float(model.score(unit(space[TEST]), labels["test"].numpy()))


@pytest.mark.parametrize("classifier", ["logistic", "ridge"])
@pytest.mark.parametrize(
    ("form", "text_weight"), [("I", 1.0), ("texts as samples", 3.0), ("texts as samples", "balanced"), ("T", None)]
)
def test_every_problem_of_a_batch_is_that_of_scikit_learn(classifier: Any, form: str, text_weight: Any) -> None:
    space = make_space()
    probe = FewShot(
        shots=[1, 3, 5], n_seeds=2, forms=[form], classifier=classifier, grid=[10.0], text_weight=text_weight
    )
    found = accuracies(probe.evaluate(space, seed=0))
    assert len(found) == 6
    for subset in probe.subsets(space, "class"):
        weight = subset.shots if text_weight == "balanced" else text_weight or 2.0
        theirs = expected(space, subset, form, classifier, 10.0, weight)
        assert found[subset.shots, form, subset.seed] == pytest.approx(theirs, abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(5, 12), classes=st.integers(2, 4))
def test_ridge_against_scikit_learn(seed: int, n: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(n, 7)), rng.uniform(0.2, 3, n)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    padded = torch.zeros(2, n + 3, 7, dtype=torch.float64)
    padded[:, :n] = torch.from_numpy(x)
    labels, weights = torch.zeros(2, n + 3, dtype=torch.int64), torch.zeros(2, n + 3, dtype=torch.float64)
    labels[:, :n], weights[:, :n] = torch.from_numpy(y), torch.from_numpy(weight)
    w, b = fit_ridge_batch(padded, labels, weights, [0.5, 4.0], classes)
    for c, C in enumerate((0.5, 4.0)):
        theirs = RidgeClassifier(alpha=1 / C).fit(x, y, sample_weight=weight)
        ours = x @ w[1, c].numpy().T + b[1, c].numpy()
        scores = theirs.decision_function(x)
        np.testing.assert_allclose(ours[:, 1] if classes == 2 else ours, scores, atol=1e-8)


def test_regularisation_is_chosen_on_the_validation_shots() -> None:
    space = make_space(noise=2.0)
    probe = FewShot(shots=[4], n_seeds=3, forms=["I"], classifier="ridge", grid=[1e-3, 1.0, 1e3])
    labels = space.info.label_sets["class"].labels
    result = probe.evaluate(space, seed=0)
    chosen = {f.protocol["subset_seed"]: f.protocol for f in result.measurements if f.label_set == "class"}
    for subset in probe.subsets(space, "class"):
        best = max(
            RidgeClassifier(alpha=1 / C)
            .fit(unit(space[TRAIN][subset.train]), labels["train"][subset.train].numpy())
            .score(unit(space[VAL][subset.val]), labels["val"][subset.val].numpy())
            for C in (1e-3, 1.0, 1e3)
        )
        assert chosen[subset.seed]["val_accuracy"] == pytest.approx(best)
        assert chosen[subset.seed]["subset_digest"] == subset.digest


def test_texts_help_when_shots_are_few() -> None:
    forms = ["I", "I+T", "texts as samples", "Tip-Adapter", "Tip-Adapter-F"]
    found = accuracies(FewShot(shots=[1], classifier="ridge", forms=forms).evaluate(make_space(noise=1.5), seed=0))
    mean = {form: np.mean([found[1, form, s] for s in range(1, 6)]) for form in forms}
    for form in forms[1:]:
        assert mean[form] > mean["I"] + 0.05


def test_captions_of_the_shots_can_be_the_texts() -> None:
    space = make_space()
    probe = FewShot(
        shots=[2],
        n_seeds=1,
        forms=["texts as samples"],
        texts="captions",
        text_weight=None,
        classifier="ridge",
        grid=[1.0],
    )
    (measurement, _) = [f for f in probe.evaluate(space, seed=0).measurements if f.label_set == "class"]
    (subset,) = probe.subsets(space, "class")
    labels = space.info.label_sets["class"].labels
    y = labels["train"][subset.train].numpy()
    texts = unit(space[Part("train", "text")][subset.train])
    theirs = RidgeClassifier(alpha=1.0).fit(np.concatenate([unit(space[TRAIN][subset.train]), texts]), [*y, *y])
    assert measurement.value == pytest.approx(theirs.score(unit(space[TEST]), labels["test"].numpy()))
    assert measurement.protocol["n_texts"] == 8


def test_label_sets_without_enough_items_are_left_out_unless_named() -> None:
    space = make_space()
    result = FewShot(shots=[1, 16], n_seeds=1, classifier="ridge").evaluate(space, seed=0)
    assert {f.label_set for f in result.measurements} == {"class"}
    with pytest.raises(DataError, match=r"'ant' \(label 0\) has 2 train items, but 16 shots need 16"):
        FewShot(shots=[16], label_sets=["rare"], forms=["I"]).evaluate(space, seed=0)


def test_forms_need_their_texts() -> None:
    space = make_space()
    images = replace(space, parts={part: x for part, x in space.parts.items() if part.modality == "image"})
    result = FewShot(shots=[1], n_seeds=1, classifier="ridge").evaluate(images, seed=0)
    assert {f.protocol["form"] for f in result.measurements} == {"I"}
    assert not FewShot(forms=["T"]).applies(images)
    assert not FewShot().applies(replace(space, parts={PROMPTS: space[PROMPTS]}))


def test_bad_input_is_named() -> None:
    space = make_space()
    with pytest.raises(ConfigError, match="'fancy'"):
        FewShot(shots=[1], prompt_set="fancy").evaluate(space, seed=0)
    with pytest.raises(ConfigError, match="'klass'"):
        FewShot(label_sets=["klass"]).evaluate(space, seed=0)
    broken = space[TRAIN].clone()
    broken[:] = float("nan")
    with pytest.raises(DataError, match="train:image has NaN"):
        FewShot(shots=[1]).evaluate(replace(space, parts={**space.parts, TRAIN: broken}), seed=0)
    with pytest.raises(ConfigError, match="did you mean 'I"):
        FewShot(forms=["IT"])
    with pytest.raises(ConfigError, match="grid"):
        FewShot(grid=[1.0, -1.0])
    with pytest.raises(ConfigError, match="shots=0"):
        FewShot(shots=[0])
    with pytest.raises(ConfigError, match="did you mean 'texts as samples'"):
        FewShot(forms=["text as samples"])
    with pytest.raises(ConfigError, match="tau=-1"):
        FewShot(tau=-1)
    with pytest.raises(ConfigError, match="did you mean 'rule'"):
        FewShot(tau="rules")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="head_C=0"):
        FewShot(head_C=0)
    with pytest.raises(ConfigError, match="beta"):
        FewShot(beta=[])
    with pytest.raises(ConfigError, match="text_weight"):
        FewShot(text_weight="balance")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="split='val'"):
        FewShot(split="val")
