"""The benchmark of C=cv: its peer against refitting every fold, and the rows that it promises."""

from __future__ import annotations

import json

import pytest
import torch

from experiments.benchmarks import selection
from experiments.benchmarks.selection import brute_force, main, measure, quality, samples, terms_of
from krossfuse.features.synthetic import SyntheticFeatures
from krossfuse.fusion.cross_validation import cross_validate


def test_brute_force_is_the_best_of_refitted_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    cross, expert, labels = (x[:60] for x in samples(SyntheticFeatures(items=120, classes=3).bundle()))
    monkeypatch.setattr(selection, "GRID", (0.1, 1.0, 10.0))
    terms = terms_of(cross, expert)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    fold_of = torch.empty_like(order)
    fold_of[order[labels[order].sort(stable=True).indices]] = torch.arange(60) % 5
    y = torch.nn.functional.one_hot(labels).double()
    y = y - y.mean(0)
    scores = {}
    for C in selection.GRID:
        for a in (0.5, 2.0):
            kernel = (C * terms.cross + (a + terms.within) * terms.expert).double()
            for ridge in selection.RIDGES:
                noisy = kernel + ridge * kernel.diagonal().mean() * torch.eye(60)
                predicted = torch.empty_like(y)
                for fold in range(5):
                    kept = fold_of != fold
                    predicted[~kept] = kernel[~kept][:, kept] @ torch.linalg.solve(noisy[kept][:, kept], y[kept])
                accuracy = float((predicted.argmax(1) == labels).double().mean())
                scores[C, a, ridge] = (accuracy, -float((y - predicted).square().mean()))
    assert brute_force(terms, labels, (0.5, 2.0)) == max(scores, key=scores.__getitem__)[:2]


def test_rows() -> None:
    rows = measure(SyntheticFeatures(items=100, classes=3).bundle(), [40, 100], repeats=1)
    json.dumps(rows)
    assert [(row["rows"], row["joint"], row["candidates"]) for row in rows] == [
        (40, False, 7), (40, True, 21), (100, False, 7), (100, True, 21),
    ]  # fmt: skip
    for row in rows:
        assert row["ratio"] == pytest.approx(row["peer_seconds"] / row["seconds"])
        assert row["floor_seconds"] > 0
        assert ("held_out_accuracy" in row["ours"]) == (row["rows"] < 100)


def test_ours_is_no_worse_where_there_is_no_basis() -> None:
    """What both chose is measured by leaving one out; ours is the best of that where nothing is left out of it."""
    for row in measure(SyntheticFeatures(items=90, classes=3).bundle(), [90], repeats=1):
        assert row["ours"]["loss"] <= row["peer"]["loss"]


def test_quality_is_that_of_the_choice_alone() -> None:
    cross, expert, labels = samples(SyntheticFeatures(items=120, classes=3).bundle())
    found = quality(cross, expert, labels, 80, 1.0, 2.0)
    grid = cross_validate(terms_of(cross[:80], expert[:80]), labels[:80], weights=(2.0,), basis=80)
    assert found["loss"] == grid.record["C_loss"]["1"]
    assert found["held_out_accuracy"] > 1 / 3


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["selection", "--rows", "40", "--repeats", "1"])
    main()
    assert {row["rows"] for row in json.loads(capsys.readouterr().out)} == {40}
