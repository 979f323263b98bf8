"""Bad features and bad options: each ends soon, and the message names the thing and the way out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from krossfuse import probes
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.metrics import Metric, declare
from krossfuse.core.parts import Part
from krossfuse.probes.base import Measurement, Probe
from krossfuse.probes.rows import normalised, unit_rows
from krossfuse.probes.selection import Selection, k_folds
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 54, "val": 27, "test": 54, "test_far": 27}
IMAGES, TEXTS = Part("train", "image"), Part("train", "text")


def make_space(change: Callable[[Tensor], Tensor] = lambda x: x, dim: int = 64) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(3, dim, generator=g)
    labels = {split: torch.arange(n) % 3 for split, n in SIZES.items()}
    parts = {
        Part(split, modality): centres[y] + torch.randn(len(y), dim, generator=g)
        for split, y in labels.items()
        for modality in ("image", "text")
    }
    parts[Part.prompts("kind", "plain")] = centres + 0.1 * torch.randn(3, dim, generator=g)  # type: ignore[index]
    prompts = {"plain": Prompts(("a", "b", "c"), torch.arange(3))}
    sets = {"kind": LabelSet(("ant", "bee", "cat"), labels, prompts)}
    info = DatasetInfo("toy", {}, sets, {split: torch.arange(n) for split, n in SIZES.items()})
    changed = {part: change(x) for part, x in parts.items()}
    return EmbeddingSpace(info, changed, reference=parts)  # type: ignore[arg-type]


def every_probe() -> list[Probe]:
    return [
        probes.Agreement(),
        probes.Clustering(methods=["kmeans", "spectral", "kernel_kmeans"], n_seeds=1),
        probes.FederatedProbe(clients=6, epsilon=8.0, rounds=2),
        probes.FederatedProbe(clients=6, sigma=1.0, rounds=2, normalise=False),
        probes.FewShot(shots=[2], n_seeds=1),
        probes.FewShot(shots=[2], n_seeds=1, normalise=False, classifier="ridge"),
        probes.KNN(ks=[1, 3]),
        probes.KNN(ks=[1, 3], metric="euclidean"),
        probes.KernelProbe(),
        probes.LinearProbe(),
        probes.LinearProbe(normalise=True, selection="k-fold"),
        probes.OutOfDistribution(),
        probes.Retrieval(),
        probes.RidgeProbe(),
        probes.SGDProbe(epochs=2, batch_size=16),
        probes.TextProbe(),
        probes.ZeroShot(),
    ]


@pytest.mark.parametrize("probe", every_probe(), ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_works_in_every_probe(probe: Probe, dtype: torch.dtype) -> None:
    space = make_space(lambda x: x.to(dtype))

    def kernel(a: Part, rows_a: Tensor, b: Part, rows_b: Tensor) -> Tensor:
        return space[a][rows_a].float() @ space[b][rows_b].float().T

    own = {part: x.float() for part, x in space.parts.items()}
    halves, whole = (probe.evaluate(replace(space, kernel=kernel, parts=parts), seed=0) for parts in (space.parts, own))
    assert halves.measurements
    for half, full in zip(halves.measurements, whole.measurements, strict=True):
        assert half.metric == full.metric
        assert half.value == pytest.approx(full.value, abs=0.05)


@pytest.mark.parametrize("value", [0.0, 1e-3, 0.125, 0.3, 1.0, 3e3])
@pytest.mark.parametrize("dim", [64, 200])
def test_constant_features_end_the_linear_probe_and_it_says_why(
    value: float, dim: int, caplog: pytest.LogCaptureFixture
) -> None:
    space = make_space(lambda x: torch.full_like(x, value), dim)
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        result = probes.LinearProbe(modalities=["image"]).evaluate(space, seed=0)
    assert time.perf_counter() - start < 10
    assert result.measurements[0].value == pytest.approx(1 / 3)
    assert result.measurements[0].protocol["ended"] in ("constant features", "rounding")
    assert "linear_probe of 'toy', 'kind', image: the features" in caplog.text


def test_the_edge_of_the_grid_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    space = make_space()
    named = replace(space, info=replace(space.info, name="edge"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            result = probes.LinearProbe(grid=[1e-6, 1e-5], modalities=["image"]).evaluate(named, seed=0)
    assert result.measurements[0].protocol["selected_at_edge"] is True
    assert caplog.text.count("of 'edge', 'kind', image: the best C is") == 1
    inside = probes.LinearProbe(grid=[1.0], modalities=["image"]).evaluate(named, seed=0)
    assert "selected_at_edge" not in inside.measurements[0].protocol
    selection = Selection(grid=[3, 1, 2])
    assert selection.grid == (1, 2, 3)
    assert selection.edge(1, "C", "it") == {}
    assert selection.edge(2, "C", "it") == {"selected_at_edge": True}


@pytest.mark.parametrize("size", [1e30, 1e-30])
@pytest.mark.parametrize("probe", every_probe(), ids=lambda p: p.name)
def test_sizes_at_the_ends_of_float32_work_or_are_named_as_what_they_are(probe: Probe, size: float) -> None:
    space = make_space(lambda x: x * size)
    plain = make_space()
    if isinstance(probe, probes.KernelProbe):
        return
    try:
        result = probe.evaluate(space, seed=0)
    except DataError as error:
        message = str(error)
    else:
        for ours, theirs in zip(result.measurements, probe.evaluate(plain, seed=0).measurements, strict=True):
            assert ours.value == pytest.approx(theirs.value, abs=0.02), ours.metric
        return
    assert "scale the embeddings" in message
    assert ":image" in message or ":text" in message
    assert "NaN" not in message
    assert "zero vector" not in message


def test_rows_are_scaled_whatever_their_size() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([1e30, 1e-30, 1.0, 1e-15, 0.0])[:, None]
    expected = torch.nn.functional.normalize(x, dim=1)
    torch.testing.assert_close(normalised(x * sizes)[:4], expected[:4])
    assert not normalised(x * sizes)[4].any()
    torch.testing.assert_close(unit_rows((x * sizes)[:4], "x", dtype=None), expected[:4])
    with pytest.raises(DataError, match=r"train:image has a zero vector in row 9"):
        unit_rows(x * sizes, IMAGES, rows=torch.arange(5, 10))
    assert torch.equal(normalised(x), expected)


NAN_PROBES = [p for p in every_probe() if not isinstance(p, probes.KernelProbe)]


@pytest.mark.parametrize("probe", NAN_PROBES, ids=lambda p: p.name)
def test_a_bad_row_is_named_with_split_and_modality(probe: Probe) -> None:
    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        x[1] = float("nan")
        return x

    space = make_space(spoil)
    with pytest.raises(DataError, match=r"(train|val|test|plain):(image|text)\S* .*NaN.*row 1"):
        probe.evaluate(space, seed=0)


def test_a_kernel_that_is_none_when_asked_is_no_kernel() -> None:
    space = make_space()
    nothing = replace(space, kernel=lambda *_: None)
    assert nothing.exact_kernel() is None
    assert "no exact kernel" in str(probes.KernelProbe().why_not(nothing))
    with pytest.raises(DataError, match="use the linear probe"):
        probes.KernelProbe().evaluate(nothing, seed=0)
    probe = probes.Clustering(methods=["spectral", "kernel_kmeans"], n_seeds=1)
    own, none = (probe.evaluate(s, seed=0) for s in (space, nothing))
    assert none.protocol["kernel"] == "embedding"
    assert [m.value for m in own.measurements] == [m.value for m in none.measurements]


@pytest.mark.parametrize("probe", [probes.LinearProbe, probes.RidgeProbe, probes.KernelProbe, probes.KNN])
def test_devices(probe: Callable[..., Probe]) -> None:
    space = make_space()

    def kernel(a: Part, rows_a: Tensor, b: Part, rows_b: Tensor) -> Tensor:
        return space[a][rows_a] @ space[b][rows_b].T

    held = replace(space, kernel=kernel)
    plain = probe().evaluate(held, seed=0)
    for device in ("auto", "cpu"):
        other = probe(device=device).evaluate(held, seed=0)
        if device == "cpu" or not torch.cuda.is_available():
            assert [m.value for m in other.measurements] == [m.value for m in plain.measurements]
    with pytest.raises(ConfigError, match="device='gpuu'.*'auto'"):
        probe(device="gpuu")
    with pytest.raises(ConfigError, match=r"device='cuda:99'.*CUDA devices here"):
        probe(device="cuda:99").evaluate(held, seed=0)


@pytest.mark.gpu
@pytest.mark.parametrize("probe", [probes.LinearProbe, probes.RidgeProbe, probes.KernelProbe, probes.KNN])
def test_a_gpu_gives_the_measurements_of_the_cpu(probe: Callable[..., Probe]) -> None:
    space = make_space()

    def kernel(a: Part, rows_a: Tensor, b: Part, rows_b: Tensor) -> Tensor:
        return space[a][rows_a] @ space[b][rows_b].T

    held = replace(space, kernel=kernel)
    one, other = (probe(device=device).evaluate(held, seed=0) for device in ("cpu", "auto"))
    for a, b in zip(one.measurements, other.measurements, strict=True):
        assert a.value == pytest.approx(b.value, abs=0.02)


def test_a_measurement_is_of_a_declared_metric_and_within_its_bounds() -> None:
    with pytest.raises(ConfigError, match="'acuracy' is not declared"):
        Measurement("acuracy", 0.5, "image")
    with pytest.raises(DataError, match="'accuracy' cannot be 1.5"):
        Measurement("accuracy", 1.5, "image")
    with pytest.raises(DataError, match="nan"):
        Measurement("nmi", float("nan"), "image")
    declare(Metric(name="fpr95_of_a_test", better="lower", high=1.0))
    assert Measurement("fpr95_of_a_test", 0.05, "image").value == 0.05


def test_similarities_without_ranks_are_refused() -> None:
    space = make_space()
    flat = {part: torch.ones_like(x) if part.modality == "text" else x for part, x in space.parts.items()}
    with pytest.raises(DataError, match="equally similar to all texts in the fused space"):
        probes.Agreement().evaluate(replace(space, parts=flat), seed=0)
    with pytest.raises(DataError, match="two images and two texts"):
        probes.Agreement(max_items=1).evaluate(space, seed=0)


def test_folds_name_the_class_that_is_too_small() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [-1])
    with pytest.raises(DataError, match="class 'bee' has 2 items to select on, fewer than n_folds=3"):
        k_folds(labels, 3, 0, classes=["ant", "bee"])
    folds = k_folds(labels, 2, 0)
    assert torch.cat(folds).sort().values.tolist() == list(range(8))


def test_a_multilabel_split_without_any_class_is_named() -> None:
    space = make_space()
    tags = {split: torch.stack([y == 0, y != 1], 1) for split, y in space.info.label_sets["kind"].labels.items()}
    tags["test"] = torch.zeros_like(tags["test"])
    info = replace(space.info, label_sets={"tags": LabelSet(("low", "high"), tags, multilabel=True)})
    with pytest.raises(DataError, match="no item of test:image has a class of label set 'tags'"):
        probes.RidgeProbe(modalities=["image"]).evaluate(replace(space, info=info), seed=0)
