from __future__ import annotations

import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes import KernelProbe, LinearProbe, RidgeProbe
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 60, "val": 24, "test": 48}


def make_space(*, rings: bool = False) -> EmbeddingSpace:
    """Return three blobs with their linear kernel, or three rings with a Gaussian one."""
    g = torch.Generator().manual_seed(0)
    labels, parts = {}, {}
    centres = torch.randn(3, 8, generator=g)
    for split, n in SIZES.items():
        y = labels[split] = torch.arange(n) % 3
        if rings:
            turn = 2 * torch.pi * torch.rand(n, generator=g)
            parts[Part(split, "image")] = (1.0 + y)[:, None] * torch.stack([turn.cos(), turn.sin()], 1)
        else:
            parts[Part(split, "image")] = centres[y] + torch.randn(n, 8, generator=g)
    labels["train"][:5] = -1
    tags = {split: torch.stack([y == 0, y != 1], 1) for split, y in labels.items()}
    sets = {"kind": LabelSet(tuple("abc"), labels), "tags": LabelSet(("p", "q"), tags, multilabel=True)}

    def kernel(a: Part, rows_a: Tensor, b: Part, rows_b: Tensor) -> Tensor:
        x, y = parts[a][rows_a], parts[b][rows_b]
        return torch.exp(-2 * torch.cdist(x, y).square()) if rings else x @ y.T

    return EmbeddingSpace(DatasetInfo("toy", {}, sets), parts, kernel)


def values(result: ProbeResult, classifier: str = "") -> dict[tuple[str, str], float]:
    return {
        (f.label_set, f.metric): f.value
        for f in result.measurements
        if not classifier or f.protocol["classifier"] == classifier
    }


@pytest.mark.parametrize("selection", ["val", "k-fold"])
def test_on_a_linear_kernel_it_is_the_linear_and_the_ridge_probe(selection: str) -> None:
    space = make_space()
    grid = [0.1, 1.0, 10.0]
    dual = KernelProbe(C=grid, alphas=grid, tol=1e-5, selection=selection).evaluate(space, seed=2)
    linear = LinearProbe(grid=grid, tol=1e-5, selection=selection).evaluate(space, seed=2)
    ridge = RidgeProbe(grid=grid, selection=selection).evaluate(space, seed=2)
    assert values(dual, "kernel logistic") == pytest.approx(values(linear), abs=1e-6)
    assert values(dual, "kernel ridge") == pytest.approx(values(ridge), abs=1e-6)
    chosen = {(f.label_set, f.protocol.get("C"), f.protocol.get("alpha")) for f in dual.measurements}
    assert chosen == {
        (f.label_set, f.protocol.get("C"), f.protocol.get("alpha")) for f in linear.measurements + ridge.measurements
    }


def test_it_separates_what_a_kernel_separates() -> None:
    space = make_space(rings=True)
    result = KernelProbe(label_sets=["kind"]).evaluate(space, seed=0)
    parts = [Part(s, "image") for s in ("train", "val")]
    y = torch.cat([space.info.label_sets["kind"].labels[p.split] for p in parts])
    machine = SVC(kernel="rbf", gamma=2.0, C=100.0).fit(torch.cat([space[p] for p in parts])[y >= 0], y[y >= 0])
    expected = machine.score(space[Part("test", "image")], space.info.label_sets["kind"].labels["test"])
    for kind in ("kernel logistic", "kernel ridge"):
        assert values(result, kind)["kind", "accuracy"] >= expected - 0.05 > 0.9
    linear = LinearProbe(label_sets=["kind"]).evaluate(space, seed=0)
    assert values(linear)["kind", "accuracy"] < 0.7


def test_bad_input_is_named() -> None:
    space = make_space()
    without = EmbeddingSpace(space.info, space.parts)
    assert not KernelProbe().applies(without)
    with pytest.raises(DataError, match="no exact kernel"):
        KernelProbe().evaluate(without, seed=0)
    with pytest.raises(DataError, match="max_items=50"):
        KernelProbe(max_items=50).evaluate(space, seed=0)
    spoilt = EmbeddingSpace(space.info, space.parts, lambda a, i, b, j: torch.full((len(i), len(j)), float("nan")))
    with pytest.raises(DataError, match="NaN"):
        KernelProbe().evaluate(spoilt, seed=0)
    with pytest.raises(ConfigError, match="did you mean 'kind'"):
        KernelProbe(label_sets=["kin"]).evaluate(space, seed=0)
    for bad in ({"classifiers": ["svm"]}, {"C": []}, {"alphas": [-1.0]}, {"n_folds": 1}, {"max_items": 0}):
        with pytest.raises(ConfigError):
            KernelProbe(**bad)  # type: ignore[arg-type]
