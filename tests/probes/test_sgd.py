from __future__ import annotations

import pytest
import torch

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes import LinearProbe, SGDProbe
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 200, "val": 60, "test": 120}


def make_space(scale: float = 1.0) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    labels = {split: torch.arange(n) % 4 for split, n in SIZES.items()}
    centres = torch.randn(4, 8, generator=g)
    parts = {
        Part(split, "image"): scale * (centres[y] + torch.randn(len(y), 8, generator=g)) for split, y in labels.items()
    }
    hidden = {split: torch.where(torch.arange(len(y)) % 3 == 0, -1, y % 2) for split, y in labels.items()}
    tags = {split: torch.stack([y < 2, y == 3], 1) for split, y in labels.items()}
    sets = {
        "kind": LabelSet(tuple("abcd"), labels),
        "hidden": LabelSet(("even", "odd"), hidden),
        "tags": LabelSet(("low", "high"), tags, multilabel=True),
    }
    return EmbeddingSpace(DatasetInfo("toy", {}, sets), parts)


def probe(**more: object) -> SGDProbe:
    settings: dict[str, object] = {"learning_rates": [0.3, 3.0], "weight_decays": [0.0, 1e-3], "epochs": 8}
    return SGDProbe(**(settings | {"batch_size": 64, "accelerator": "cpu"} | more))  # type: ignore[arg-type]


def test_it_comes_near_the_full_batch_probe_and_repeats_itself() -> None:
    space = make_space()
    result = probe().evaluate(space, seed=3)
    exact = {(f.label_set, f.metric): f.value for f in LinearProbe().evaluate(space, seed=3).measurements}
    found = {(f.label_set, f.metric): f.value for f in result.measurements}
    assert set(found) == set(exact)
    for key, value in found.items():
        assert value == pytest.approx(exact[key], abs=0.06), key
    again = probe().evaluate(space, seed=3)
    assert all(torch.equal(result.heads[k].weight, again.heads[k].weight) for k in result.heads)  # type: ignore[arg-type]
    assert result.measurements[0].protocol["learning_rate"] in (0.3, 3.0)


def test_the_scale_of_the_embeddings_does_not_matter() -> None:
    one = probe(label_sets=["kind"]).evaluate(make_space(), seed=0)
    other = probe(label_sets=["kind"]).evaluate(make_space(1000.0), seed=0)
    assert [f.value for f in one.measurements] == [f.value for f in other.measurements]


def test_a_rate_that_diverges_is_not_chosen() -> None:
    result = probe(learning_rates=[1.0, 1e30], label_sets=["kind"]).evaluate(make_space(), seed=0)
    assert result.measurements[0].protocol["learning_rate"] == 1.0


def test_bad_input_is_named() -> None:
    space = make_space()
    without = EmbeddingSpace(space.info, {p: x for p, x in space.parts.items() if p.split != "val"})
    with pytest.raises(DataError, match="'val'"):
        probe().evaluate(without, seed=0)
    for bad in ({"learning_rates": []}, {"weight_decays": [-1.0]}, {"momentum": 1.0}, {"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            probe(**bad)
