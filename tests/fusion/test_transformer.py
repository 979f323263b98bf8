"""The scikit-learn transformer: scikit-learn's own checks, a pipeline, a grid search, and the method behind it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.parts import Part
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.methods import RPKrossFuse
from krossfuse.fusion.transformer import KrossFuseTransformer


@parametrize_with_checks(
    [
        KrossFuseTransformer(),
        KrossFuseTransformer(alignment="published", sketch="srht", dim=8),
        KrossFuseTransformer(kernel="gaussian", dim=1100),
    ]
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def rows(bundle: FeatureBundle, split: str) -> tuple[np.ndarray, np.ndarray]:
    part = Part(split, "image")
    x = bundle[part]
    return torch.cat([x["cross_modal"], x["dino"]], 1).numpy(), bundle.info.labels("animal", part).numpy()


def test_it_is_the_method(toy_bundle: FeatureBundle) -> None:
    X, _ = rows(toy_bundle, "test")
    transformer = KrossFuseTransformer(dim=30, C=0.5, expert_weight=2.0, sketch="spectral", split=12).fit(X)
    method = RPKrossFuse(
        inputs=InputSpec(cross_modal=12, image_experts={"expert": 16}),
        dim=30,
        C=0.5,
        expert_weight=2.0,
        alignment="exact",
        sketch=type(transformer.method_.sketches["image"]),
    )
    features = {"cross_modal": torch.from_numpy(X[:, :12]), "expert": torch.from_numpy(X[:, 12:])}
    method.fit(image=features)
    fused = transformer.transform(X)
    assert np.array_equal(fused, method.encode("image", features).numpy())
    assert fused.dtype == np.float32
    texts = toy_bundle[Part("test", "text")]["cross_modal"].numpy()
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    expected = 0.5 * unit(X[:, :12]) @ unit(texts).T
    assert fused @ transformer.transform_missing(texts).T == pytest.approx(expected, abs=1e-6)
    assert list(transformer.get_feature_names_out()[:1]) == ["krossfusetransformer0"]
    again = pickle.loads(pickle.dumps(transformer))
    assert np.array_equal(again.transform(X), fused)


def test_pipeline_and_grid_search(toy_bundle: FeatureBundle) -> None:
    X, y = rows(toy_bundle, "train")
    X_test, y_test = rows(toy_bundle, "test")
    pipeline = make_pipeline(KrossFuseTransformer(split=12), LogisticRegression(max_iter=200))
    assert clone(pipeline).fit(X, y).score(X_test, y_test) > 0.8
    grid = {
        "krossfusetransformer__dim": [20, 40],
        "krossfusetransformer__C": [0.1, "cv"],
        "krossfusetransformer__sketch": ["spectral", "uniform"],
        "krossfusetransformer__alignment": ["exact"],
    }
    search = GridSearchCV(
        make_pipeline(KrossFuseTransformer(split=12), RidgeClassifier()), grid, cv=2, error_score="raise"
    )
    search.fit(X, y)
    assert search.score(X_test, y_test) > 0.8
    assert search.best_params_["krossfusetransformer__dim"] in (20, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 28}, "split=28"),
        ({"split": 1.5}, "split=1.5"),
        ({"sketch": "spectrul"}, "did you mean 'spectral'"),
        ({"kernel": "cosin"}, "did you mean 'cosine'"),
        ({"dim": 14}, "dim=14"),
        ({"C": "cv"}, "needs labels"),
        ({"C": 0.0}, "C=0.0"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str, toy_bundle: FeatureBundle) -> None:
    X, _ = rows(toy_bundle, "test")
    transformer = KrossFuseTransformer(**options)
    with pytest.raises(ValueError, match=message):
        transformer.fit(X)


@pytest.mark.parametrize("alignment", ["exact", "offset", "published"])
def test_rows_without_a_part(alignment: str, toy_bundle: FeatureBundle) -> None:
    X, _ = rows(toy_bundle, "test")
    transformer = KrossFuseTransformer(dim=40, split=12, alignment=alignment).fit(X)
    bad = X.copy()
    bad[3, 12:] = 0
    bad[5, :12] = 0
    fused = transformer.transform(bad)
    assert np.array_equal(fused[3], transformer.transform_missing(X[3:4, :12])[0])
    assert not fused[5].any()
    others = np.delete(np.arange(len(X)), [3, 5])
    assert fused[others] == pytest.approx(transformer.transform(X)[others], abs=1e-6)
    with pytest.raises(ValueError, match="28 columns, the cross-modal part has 12"):
        transformer.transform_missing(X)
