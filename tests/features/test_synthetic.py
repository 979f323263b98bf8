"""Drawn features: the statistics that were asked for, and the same bits again."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from krossfuse.core.errors import ConfigError
from krossfuse.core.parts import CROSS_MODAL, SPLITS, Part
from krossfuse.features.synthetic import EXPERT, SyntheticFeatures


def cosines(source: SyntheticFeatures) -> torch.Tensor:
    unit = normalize(source.bundle()[Part("train", "image")][CROSS_MODAL].double(), dim=1)
    return (unit @ unit.T)[*torch.triu_indices(len(unit), len(unit), 1)]


@pytest.mark.parametrize("cone", [0.0, 0.5, 0.9])
def test_the_cone_is_the_mean_cosine(cone: float) -> None:
    assert float(cosines(SyntheticFeatures(items=800, cone=cone)).mean()) == pytest.approx(cone, abs=0.03)


def test_tails_and_spectra() -> None:
    def kurtosis(**options: float) -> float:
        x = SyntheticFeatures(items=800, **options).bundle()[Part("train", "image")][EXPERT].double()
        z = x - x.mean(0)
        return float((z.pow(4).mean(0) / z.square().mean(0).square()).median())

    assert kurtosis() < 3.5 < 10 < kurtosis(tail=3.0)
    shares = []
    for decay in (0.0, 0.7):
        x = SyntheticFeatures(items=800, decay=decay).bundle()[Part("train", "image")][CROSS_MODAL].double()
        spectrum = torch.linalg.svdvals(x - x.mean(0)).square()
        shares.append(float(spectrum[:5].sum() / spectrum.sum()))
    assert shares[0] + 0.1 < shares[1]


def test_each_view_knows_something_and_noise_nothing() -> None:
    def nearest(role: str, **options: object) -> float:
        source = SyntheticFeatures(items=800, spread=0.8, **options)  # type: ignore[arg-type]
        bundle = source.bundle()
        x = [normalize(bundle[Part(split, "image")][role], dim=1) for split in ("test", "train")]
        labels = [source.info.labels("class", Part(split, "image")) for split in ("test", "train")]
        return float((labels[1][(x[0] @ x[1].T).argmax(1)] == labels[0]).double().mean())

    assert min(nearest(CROSS_MODAL), nearest(EXPERT)) > 0.6
    assert nearest(EXPERT, noise=(0.0, 1.0)) < 0.15
    assert nearest(CROSS_MODAL, noise=(0.0, 1.0)) > 0.6


def test_the_same_bits_again_and_other_draws() -> None:
    one, two, other = (SyntheticFeatures(items=400, split_seed=seed) for seed in (0, 0, 1))
    for split in SPLITS:
        part = Part(split, "image")
        for role in (CROSS_MODAL, EXPERT):
            assert torch.equal(one.bundle()[part][role], two.bundle()[part][role])
            assert not torch.equal(one.bundle()[part][role], other.bundle()[part][role])
        assert len(one.info.labels("class", part)) == len(one.bundle()[part][EXPERT])
    assert one.info.fingerprint != other.info.fingerprint


@pytest.mark.parametrize(
    "options", [{"items": 100}, {"cone": 1.0}, {"tail": 0.0}, {"noise": (0.1,)}, {"noise": (2.0, 0.0)}, {"decay": -1.0}]
)
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"data.{next(iter(options))}"):
        SyntheticFeatures(**options)  # type: ignore[arg-type]
