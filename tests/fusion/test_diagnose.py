"""The diagnostic: figures against brute force, the closed-form scaling, the search, the command."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import Part
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.diagnose import diagnose
from krossfuse.fusion.methods import PCAConcatenation, RPKrossFuse
from krossfuse.fusion.sketches import SpectralSketch

EXACT = partial(RPKrossFuse, alignment="exact", dim=60)


@pytest.fixture(scope="module")
def image_bundle(toy_bundle: FeatureBundle) -> FeatureBundle:
    """The toy set with an expert on the image side alone."""
    features = {
        part: {role: x for role, x in roles.items() if role != "minilm"} for part, roles in toy_bundle.features.items()
    }
    return FeatureBundle(toy_bundle.info, "toy_image", features)


def test_figures_are_brute_forces(image_bundle: FeatureBundle) -> None:
    report = diagnose(image_bundle, partial(RPKrossFuse, dim=60, alignment="published", C=0.5), seeds=3)
    image, text = image_bundle[Part("test", "image")], image_bundle[Part("test", "text")]
    own = {k: torch.nn.functional.normalize(v["cross_modal"], dim=1) for k, v in (("i", image), ("t", text))}
    expected = []
    for seed in range(3):
        method = RPKrossFuse(inputs=InputSpec(cross_modal=12, image_experts={"dino": 16}), dim=60, C=0.5, seed=seed)
        x, t = method.encode("image", image), method.encode("text", text)
        off = ~torch.eye(64, dtype=torch.bool)
        exact = method.kernel("image", image, "image", image)
        cross = 0.5 * own["i"] @ own["t"].T
        expected.append(
            (
                float(((x @ x.T - exact)[off] ** 2).mean().sqrt() / (exact[off] ** 2).mean().sqrt()),
                float(((x @ t.T - cross) ** 2).mean().sqrt() / (cross**2).mean().sqrt()),
                float(((x @ t.T).argmax(1) == cross.argmax(1)).float().mean()),
            )
        )
    for value, brute in zip(
        (report.rmse_image_image, report.rmse_image_text, report.zero_shot_agreement),
        np.array(expected).T,
        strict=True,
    ):
        assert value is not None
        assert value.mean == pytest.approx(brute.mean(), rel=1e-4)
        half = 4.302653 * brute.std(ddof=1) / math.sqrt(3)  # Student's 97.5% quantile of 2 degrees of freedom
        assert value.high - value.low == pytest.approx(2 * half, rel=1e-3)
    assert report.interval_over == "seeds"
    assert (report.n_images, report.n_texts) == (64, 64)


def test_exact_alignment_loses_no_decision(image_bundle: FeatureBundle) -> None:
    report = diagnose(image_bundle, EXACT, seeds=2)
    assert report.zero_shot_agreement is not None
    assert report.zero_shot_agreement.mean == 1
    assert report.rmse_image_text is not None
    assert report.rmse_image_text.mean < 1e-6
    assert report.config["alignment"] == "exact"
    json.dumps(report.to_dict())


def test_deterministic_methods_have_intervals_over_items(image_bundle: FeatureBundle) -> None:
    report = diagnose(image_bundle, partial(EXACT, sketch=SpectralSketch))
    assert report.interval_over == "items"
    assert report.rmse_image_image is not None
    assert report.rmse_image_image.low < report.rmse_image_image.mean < report.rmse_image_image.high
    whole = diagnose(image_bundle, partial(EXACT, dim=12 + 12 * 16, sketch=SpectralSketch)).rmse_image_image
    assert whole is not None
    assert whole.mean < 1e-5


@pytest.mark.parametrize("target", [0.1, 0.03])
def test_the_smallest_dimension_meets_the_target(target: float, image_bundle: FeatureBundle) -> None:
    spectral = partial(EXACT, sketch=SpectralSketch)
    report = diagnose(image_bundle, spectral, target=target)
    assert report.smallest_dim is not None
    at, below = (
        diagnose(image_bundle, partial(spectral, dim=report.smallest_dim - step)).rmse_image_image for step in (0, 1)
    )
    assert at is not None
    assert below is not None
    assert at.mean == report.smallest_dim_error <= target < below.mean


def test_the_search_follows_the_scaling_of_random_sketches(image_bundle: FeatureBundle) -> None:
    one = diagnose(image_bundle, EXACT, seeds=6).rmse_image_image
    assert one is not None
    report = diagnose(image_bundle, EXACT, seeds=6, target=one.mean / 2)
    assert report.smallest_dim is not None
    assert (report.smallest_dim - 12) / (60 - 12) == pytest.approx(4, rel=0.3)  # half the error: four times l
    assert diagnose(image_bundle, EXACT, seeds=1, target=1e-6, max_dim=200).smallest_dim is None


def test_features_without_a_bundle(image_bundle: FeatureBundle) -> None:
    features = {"image": image_bundle[Part("train", "image")], "text": image_bundle[Part("train", "text")]}
    report = diagnose(features, partial(EXACT, sketch=SpectralSketch), max_rows=50)
    assert (report.n_images, report.n_texts) == (50, 50)
    alone = diagnose({"image": features["image"]}, EXACT, seeds=2)
    assert alone.rmse_image_text is None
    assert alone.zero_shot_agreement is None


def test_bad_input(image_bundle: FeatureBundle) -> None:
    with pytest.raises(ConfigError, match="seeds=0"):
        diagnose(image_bundle, EXACT, seeds=0)
    with pytest.raises(ConfigError, match="target=0"):
        diagnose(image_bundle, EXACT, target=0)
    with pytest.raises(ConfigError, match="no exact kernel"):
        diagnose(image_bundle, lambda inputs, seed: PCAConcatenation(inputs=inputs, dim=4))
    one = {role: x[:2] for role, x in image_bundle[Part("test", "image")].items()}
    with pytest.raises(DataError, match="two samples"):
        diagnose({"image": one}, EXACT, seeds=1)
