from __future__ import annotations

from pathlib import Path

import torch

from experiments.benchmarks.scale import DIMS, SHARD, made, measure, plot
from krossfuse.core.parts import Part
from krossfuse.core.sharded import ShardedRows


def test_made_features_are_the_same_whenever_and_however_they_are_read() -> None:
    train = made(SHARD + 100)[Part("train", "image")]
    for role, dim in DIMS.items():
        x = train[role]
        assert isinstance(x, ShardedRows)
        assert x.shape == (SHARD + 100, dim)
        assert torch.equal(x[SHARD - 5 : SHARD + 5], x[torch.arange(SHARD - 5, SHARD + 5)])
        assert len(torch.unique(x[:300], dim=0)) == 300


def test_every_stage_is_measured(tmp_path: Path) -> None:
    result = measure(SHARD + 100, 64, tmp_path)
    assert set(result["microseconds_a_row"]) == {
        *("making the features", "fusion", "SGD", "logistic regression", "k-NN", "retrieval"),
    }
    assert all(value > 0.3 for value in result["first_measurement"].values()), result
    assert result["logistic_iterations"] > 0
    plot([result], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
