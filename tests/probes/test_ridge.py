from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from krossfuse.core.errors import ConfigError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes import RidgeProbe
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 90, "val": 30, "test": 60}


def make_space(dim: int) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    labels = {split: torch.arange(n) % 6 for split, n in SIZES.items()}
    centres = torch.randn(6, dim, generator=g)
    noise = 1.5 * (dim / 20) ** 0.5
    parts = {
        Part(split, "image"): centres[y] + noise * torch.randn(len(y), dim, generator=g) for split, y in labels.items()
    }
    hidden = {split: torch.where(torch.arange(len(y)) % 7 == 0, -1, y % 3) for split, y in labels.items()}
    pair = {split: y % 2 for split, y in labels.items()}
    tags = {split: torch.stack([y < 2, y > 3], 1) for split, y in labels.items()}
    sets = {
        "kind": LabelSet(tuple("abcdef"), labels),
        "hidden": LabelSet(tuple("xyz"), hidden),
        "pair": LabelSet(("even", "odd"), pair),
        "tags": LabelSet(("low", "high"), tags, multilabel=True),
    }
    return EmbeddingSpace(DatasetInfo("toy", {}, sets), parts)


@pytest.mark.parametrize("dim", [20, 200])
def test_every_set_is_scored_as_by_scikit_learn(dim: int) -> None:
    space = make_space(dim)
    grid = [0.01, 1.0, 100.0]
    result = RidgeProbe(grid=grid, block_rows=32).evaluate(space, seed=0)

    def data(name: str, *splits: str) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.cat([space.info.label_sets[name].labels[s] for s in splits])
        return torch.cat([space[Part(s, "image")] for s in splits])[y >= 0].double(), y[y >= 0]

    for name in ("kind", "hidden", "pair"):
        (found,) = [f for f in result.measurements if (f.metric, f.label_set) == ("accuracy", name)]
        scores = [RidgeClassifier(alpha=a).fit(*data(name, "train")).score(*data(name, "val")) for a in grid]
        alpha = found.protocol["alpha"]
        assert scores[grid.index(alpha)] == max(scores) == pytest.approx(found.protocol["selection_score"])
        model = RidgeClassifier(alpha=alpha).fit(*data(name, "train", "val"))
        x, y = data(name, "test")
        assert found.per_item is not None
        assert found.per_item.tolist() == (model.predict(x) == y.numpy()).tolist()
        scores_of_head = result.heads[f"{name}/image"](x)
        own = torch.from_numpy(model.decision_function(x))
        mine = scores_of_head[:, 1] if name == "pair" else scores_of_head
        torch.testing.assert_close(mine.double(), own, atol=1e-4, rtol=0)
    (tags,) = [f for f in result.measurements if f.label_set == "tags"]
    assert tags.metric == "mean_average_precision"
    assert tags.value > 0.6


def test_k_fold() -> None:
    result = RidgeProbe(grid=[0.1, 10.0], selection="k-fold", n_folds=3, label_sets=["kind"]).evaluate(
        make_space(20), seed=1
    )
    assert result.protocol["selection"] == "3-fold"
    assert result.measurements[0].protocol["n_train"] == 120


def test_bad_configuration_is_refused() -> None:
    for bad in ({"grid": [0.0]}, {"grid": []}, {"selection": "test"}):
        with pytest.raises(ConfigError):
            RidgeProbe(**bad)  # type: ignore[arg-type]
