"""Propagation and its baselines, against dense algebra and on real features."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.fusion.kernels import CentredKernel
from krossfuse.probes import Propagation, TransCLIP, ZeroShot, ZLaP
from krossfuse.probes.base import Measurement, Probe
from krossfuse.probes.graph_kernels import KERNELS
from krossfuse.probes.space import EmbeddingSpace

CLASSES, DIM, EXPERT = 6, 12, 9
SIZES = {"train": 40, "val": 15, "test": 30}
PROMPTS = Part.prompts("class", "plain")


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def make_space(seed: int = 0, *, noise: float = 1.2, expert: bool = True) -> EmbeddingSpace:
    """Images whose texts say little and whose expert says more; the embedding is the cross-modal one."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIM, generator=g, dtype=torch.float64)
    other = torch.randn(CLASSES, EXPERT, generator=g, dtype=torch.float64)
    labels, parts, parents = {}, {}, {}
    for split, n in SIZES.items():
        labels[split] = torch.randint(-1, CLASSES, (n,), generator=g)
        y, part = labels[split].clamp_min(0), Part(split, "image")
        parts[part] = unit(centres[y] + noise * torch.randn(n, DIM, generator=g, dtype=torch.float64))
        parents[part] = {"cross_modal": parts[part]}
        if expert:
            parents[part]["expert"] = other[y] + 0.4 * torch.randn(n, EXPERT, generator=g, dtype=torch.float64)
    parts[PROMPTS] = unit(centres + 0.8 * torch.randn(CLASSES, DIM, generator=g, dtype=torch.float64))
    prompts = Prompts(tuple("abcdef"), torch.arange(CLASSES), ("{}",))
    info = DatasetInfo("toy", {}, {"class": LabelSet(tuple("abcdef"), labels, {"plain": prompts})})
    reference = dict(parts)
    return EmbeddingSpace(info, parts, reference=reference, parents=parents)


def measurement(probe: Probe, space: EmbeddingSpace, metric: str = "accuracy") -> Measurement:
    (one,) = [m for m in probe.evaluate(space, seed=0).measurements if m.metric == metric]
    return one


def images(space: EmbeddingSpace, splits: tuple[str, ...] = ("train", "val", "test")) -> Tensor:
    return torch.cat([space[Part(split, "image")] for split in splits])


def dense_kernel(space: EmbeddingSpace, kernel: str, fit: tuple[str, ...]) -> Tensor:
    if kernel == "fused":
        x = unit(images(space))
        return x @ x.T

    def parent(role: str) -> Tensor:
        every = torch.cat([space.parents[Part(split, "image")][role] for split in SIZES])
        seen = torch.cat([space.parents[Part(split, "image")][role] for split in fit])
        return CentredKernel(every.shape[1]).fit(seen).kernel(every, every)

    p, g = parent("cross_modal"), parent("expert")
    return {"cross_modal": p, "expert": g, "sum": (p + g) / 2, "product": ((1 + p) * (1 + g) - 1) / 3}[kernel]


def dense_propagation(
    space: EmbeddingSpace, kernel: str, mode: str, *, k: int = 5, power: float = 3, alpha: float = 0.7
) -> Tensor:
    """The scores of the test items by the formulas of docs/mathematics.md, section 8, written down as they stand."""
    n, n_test = sum(SIZES.values()), SIZES["test"]
    m = n if mode == "transductive" else n - n_test
    gram = dense_kernel(space, kernel, tuple(SIZES) if mode == "transductive" else ("train", "val"))
    s = unit(images(space)) @ unit(space[PROMPTS]).T
    x = s - 0.5 * s[:m].mean(0)
    sd = torch.stack([(row - row.mean()).square().mean().sqrt() for row in x[:m]]).mean()
    start = torch.exp(2 * x / sd)
    start = start / start.sum(1, keepdim=True)
    directed = torch.zeros(m, m, dtype=torch.float64)
    for i in range(m):
        others = sorted((j for j in range(m) if j != i), key=lambda j: -float(gram[i, j]))[:k]
        for j in others:
            directed[i, j] = max(float(gram[i, j]), 0.0) ** power
    weights = (directed + directed.T) / 2
    scale = weights.sum(1).rsqrt()
    system = torch.eye(m, dtype=torch.float64) - alpha * scale[:, None] * weights * scale
    spread = (1 - alpha) * torch.linalg.inv(system) @ start[:m]
    if mode == "transductive":
        return spread[-n_test:]
    out = []
    for i in range(m, n):
        near = sorted(range(m), key=lambda j: -float(gram[i, j]))[:k]
        w = torch.tensor([max(float(gram[i, j]), 0.0) ** power for j in near], dtype=torch.float64)
        out.append((1 - alpha) * start[i] + alpha * (w / w.sum()) @ spread[near])
    return torch.stack(out)


class Scores:
    """Catches what a probe's ``classify`` returns."""

    def __init__(self, probe: Any) -> None:
        self.inner, self.values = probe.classify, torch.empty(0)
        probe.classify = self

    def __call__(self, *args: Any) -> Any:
        values, record = self.inner(*args)
        self.values = torch.from_numpy(values)
        return values, record


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", ["transductive", "inductive"])
def test_propagation_against_the_formulas_written_down(kernel: str, mode: str) -> None:
    space = make_space(1)
    probe = Propagation(kernel=kernel, mode=mode, block_rows=13)  # type: ignore[arg-type]
    caught = Scores(probe)
    accuracy = measurement(probe, space)
    expected = dense_propagation(space, kernel, mode)
    torch.testing.assert_close(caught.values[-SIZES["test"] :], expected, atol=1e-6, rtol=0)
    labels = space.info.label_sets["class"].labels["test"]
    hits = (expected.argmax(1) == labels)[labels >= 0]
    assert accuracy.per_item is not None
    assert accuracy.per_item.tolist() == hits.float().tolist()
    assert accuracy.protocol["n_graph"] == (85 if mode == "transductive" else 55)
    assert accuracy.protocol["cg_residual"] <= 1e-10


def test_before_is_zero_shot_and_the_counts_add_up() -> None:
    space = make_space(2)
    result = Propagation(kernel="product", splits=["test", "train"]).evaluate(space, seed=0)
    by_metric = {m.metric: m for m in result.measurements}
    zero_shot = [
        m for m in ZeroShot(extra_splits=["train"]).evaluate(space, seed=0).measurements if m.metric == "accuracy"
    ]
    before, after = by_metric["zero_shot_accuracy"].per_item, by_metric["accuracy"].per_item
    assert before is not None
    assert after is not None
    # The tested splits lie together in the order in which they are named.
    assert before.tolist() == [hit for m in zero_shot for hit in m.per_item.tolist()]  # type: ignore[union-attr]
    told = by_metric["accuracy"].protocol
    assert told["split"] == "test+train"
    assert told["graph_splits"] == "train+val+test"
    assert told["corrected"] == int(((after == 1) & (before == 0)).sum()) > 0
    assert told["spoiled"] == int(((after == 0) & (before == 1)).sum())
    assert told["errors_before"] - told["errors_after"] == told["corrected"] - told["spoiled"]
    removed = by_metric["errors_removed"].value
    assert removed == pytest.approx((told["corrected"] - told["spoiled"]) / told["errors_before"])
    assert told["n_test"] == len(before)
    assert told["p_value"] < 0.05
    assert by_metric["accuracy"].value > by_metric["zero_shot_accuracy"].value
    assert set(by_metric) == {
        "accuracy", "mean_per_class_accuracy", "top5_accuracy", "zero_shot_accuracy", "errors_removed"
    }  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), kernel=st.sampled_from(KERNELS))
def test_the_order_of_the_items_changes_nothing(seed: int, kernel: str) -> None:
    space = make_space(seed)
    g = torch.Generator().manual_seed(seed + 1)
    order = {split: torch.randperm(n, generator=g) for split, n in SIZES.items()}
    label_set = space.info.label_sets["class"]
    labels = {split: label_set.labels[split][rows] for split, rows in order.items()}
    parts, parents = dict(space.parts), {}
    for split, rows in order.items():
        part = Part(split, "image")
        parts[part] = parts[part][rows]
        parents[part] = {role: x[rows] for role, x in space.parents[part].items()}
    info = replace(space.info, label_sets={"class": replace(label_set, labels=labels)})
    shuffled = replace(space, info=info, parts=parts, parents=parents)
    one = measurement(Propagation(kernel=kernel), space).per_item
    other = measurement(Propagation(kernel=kernel), shuffled).per_item
    assert one is not None
    assert other is not None
    tested = label_set.labels["test"] >= 0
    place = torch.full((SIZES["test"],), -1)
    place[tested] = torch.arange(int(tested.sum()))
    kept = place[order["test"]]
    assert other.tolist() == one[kept[kept >= 0]].tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 7.0, 1e4]), kernel=st.sampled_from(KERNELS))
def test_scales_of_features_change_nothing(seed: int, scale: float, kernel: str) -> None:
    space = make_space(seed)
    scaled = replace(
        space,
        parts={part: scale * x for part, x in space.parts.items()},
        parents={part: {role: scale * x for role, x in roles.items()} for part, roles in space.parents.items()},
    )
    for mode in ("transductive", "inductive"):
        probe = Propagation(kernel=kernel, mode=mode)  # type: ignore[arg-type]
        assert measurement(probe, scaled).value == measurement(probe, space).value


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), gain=st.floats(0.2, 6.0), mode=st.sampled_from(["transductive", "inductive"]))
def test_without_neighbours_and_centring_it_is_zero_shot(seed: int, gain: float, mode: str) -> None:
    space = make_space(seed)
    probe = Propagation(alpha=0, centring=0, gain=gain, mode=mode)  # type: ignore[arg-type]
    after, before = measurement(probe, space), measurement(ZeroShot(), space)
    assert after.per_item is not None
    assert before.per_item is not None
    assert after.per_item.tolist() == before.per_item.tolist()
    assert after.protocol["corrected"] == after.protocol["spoiled"] == 0
    assert after.protocol["p_value"] == 1.0


def test_classes_without_a_text_stay_in_the_graph_but_are_not_measured() -> None:
    space = make_space(3)
    label_set = space.info.label_sets["class"]
    some = replace(
        space,
        info=replace(
            space.info,
            label_sets={"class": replace(label_set, prompts={"plain": Prompts(tuple("ad"), torch.tensor([0, 3]))})},
        ),
        parts={**space.parts, PROMPTS: space[PROMPTS][[0, 3]]},
        reference={},
    )
    told = measurement(Propagation(kernel="product", splits=["train", "test"]), some).protocol
    labels = torch.cat([label_set.labels["train"], label_set.labels["test"]])
    inside = (labels == 0) | (labels == 3)
    assert told["n_classes"] == 2
    assert told["n_classes_without_text"] == 4
    assert told["n_test"] == int(inside.sum())
    assert told["n_items_without_text"] == int((labels >= 0).sum() - inside.sum())
    assert told["n_graph"] == sum(SIZES.values())


def test_faiss_gives_the_measurements_of_the_exact_search() -> None:
    pytest.importorskip("faiss")
    space = make_space(4)
    for kernel in ("fused", "cross_modal", "sum"):
        for mode in ("transductive", "inductive"):
            exact = measurement(Propagation(kernel=kernel, mode=mode), space)  # type: ignore[arg-type]
            other = Propagation(kernel=kernel, mode=mode, index="faiss", faiss_factory="Flat")  # type: ignore[arg-type]
            assert measurement(other, space).per_item.tolist() == exact.per_item.tolist()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"index=faiss .* kernel=product"):
        Propagation(kernel="product", index="faiss")


def dense_zlap(image: Tensor, texts: Tensor, *, k: int, gamma: float, alpha: float) -> Tensor:
    """(n + classes, classes) by dense algebra, an image's neighbours counting itself, as published."""
    n, classes = len(image), len(texts)
    weights = image.new_zeros(n + classes, n + classes)
    for columns, similarity, power in (
        (slice(classes, None), image @ image.T, 1.0),
        (slice(0, classes), image @ texts.T, gamma),
    ):
        near = similarity.topk(min(k, similarity.shape[1]), dim=1)
        weights[classes:, columns] = torch.zeros_like(similarity).scatter(
            1, near.indices, near.values.clamp_min(0) ** power
        )
    weights = weights + weights.T
    weights.fill_diagonal_(0)
    degrees = weights.sum(1)
    scale = torch.where(degrees > 0, degrees, torch.ones_like(degrees)).rsqrt()
    system = torch.eye(n + classes, dtype=image.dtype) - alpha * scale[:, None] * weights * scale
    return torch.linalg.inv(system)[:, :classes]


def test_zlap_against_dense_algebra() -> None:
    space = make_space(5)
    texts = unit(space[PROMPTS])
    caught = Scores(probe := ZLaP())
    measurement(probe, space)
    expected = dense_zlap(unit(images(space)), texts, k=5, gamma=5, alpha=0.3)[CLASSES:]
    torch.testing.assert_close(caught.values, expected, atol=1e-8, rtol=0)
    caught = Scores(probe := ZLaP(mode="inductive", neighbours=4, gamma=2.0, alpha=0.5))
    measurement(probe, space)
    seen, new = unit(images(space, ("train", "val"))), unit(images(space, ("test",)))
    nodes = dense_zlap(seen, texts, k=4, gamma=2, alpha=0.5)
    expected = torch.zeros(len(new), CLASSES, dtype=torch.float64)
    for i, x in enumerate(new):
        for similarity, offset, power in ((texts @ x, 0, 2.0), (seen @ x, CLASSES, 1.0)):
            near = similarity.topk(4)
            for value, j in zip(near.values, near.indices, strict=True):
                expected[i] += value.clamp_min(0) ** power * nodes[offset + int(j)]
    torch.testing.assert_close(caught.values, expected, atol=1e-8, rtol=0)


def test_transclip_against_its_updates_written_down() -> None:
    space = make_space(6)
    caught = Scores(probe := TransCLIP(iterations=3))
    measurement(probe, space)
    x, texts = unit(images(space)), unit(space[PROMPTS])
    n, dim = x.shape
    prior = (100 * x @ texts.T).softmax(1)
    gram = (x @ x.T).fill_diagonal_(-2.0)
    near = gram.topk(3, dim=1)
    affinity = torch.zeros(n, n, dtype=torch.float64).scatter(1, near.indices, near.values.clamp_min(0))
    z = prior.clone()
    mu = torch.zeros(CLASSES, dim, dtype=torch.float64)
    for c in range(CLASSES):
        for i in z[:, c].topk(8).indices.tolist():
            mu[c] += z[i, c] * x[i]
    mu, sigma = unit(mu), torch.full((dim,), 1 / dim, dtype=torch.float64)
    for step in range(4):
        likelihood = torch.stack([-((x - m).square() / sigma).sum(1) / 2 for m in mu], 1)
        for _ in range(5):
            inner = likelihood + 50 / 6 * (affinity @ z + affinity.T @ z)
            z = prior * torch.exp((inner - inner.amax(1, keepdim=True)) / 50)
            z = z / z.sum(1, keepdim=True)
        if step < 3:
            mu = unit(z.T @ x)
            sigma = torch.stack([z[:, c] @ (x - mu[c]).square() for c in range(CLASSES)]).sum(0) / n
    torch.testing.assert_close(caught.values, z, atol=1e-8, rtol=0)
    with pytest.raises(ConfigError, match="mode=transductive and kernel=fused"):
        TransCLIP(mode="inductive")


def test_what_is_missing_is_said_with_the_way_out() -> None:
    space = make_space()
    held = replace(space, parents={})
    assert Propagation().applies(held)
    reason = Propagation(kernel="product").why_not(held)
    assert reason is not None
    assert "kernel=product reads the parents' own features" in reason
    assert "say kernel=fused, or keep a store" in reason
    with pytest.raises(DataError, match="keep a store"):
        Propagation(kernel="product").evaluate(held, seed=0)
    lonely = make_space(expert=False)
    assert "no such parent" in str(Propagation(kernel="expert").why_not(lonely))
    assert "needs two parents" in str(Propagation(kernel="sum").why_not(lonely))
    test = Part("test", "image")
    only = replace(space, parts={test: space[test], PROMPTS: space[PROMPTS]})
    assert Propagation().applies(only)
    assert "any split but the tested ones" in str(Propagation(mode="inductive").why_not(only))
    assert "['train:image']" in str(Propagation(graph_splits=["train"]).why_not(only))
    assert "class texts" in str(Propagation().why_not(replace(space, parts={test: space[test]})))
    stream = replace(
        only, parts={PROMPTS: space[PROMPTS]}, streams={test: lambda *a, **k: None}  # type: ignore[dict-item]
    )  # fmt: skip
    assert "only stream" in str(Propagation().why_not(stream))
    alike = replace(space, parts={**space.parts, PROMPTS: space[PROMPTS][:1].expand(CLASSES, -1)})
    with pytest.raises(DataError, match="equally similar to all class texts"):
        Propagation().evaluate(alike, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "products"}, "did you mean 'product'"),
        ({"mode": "inductiv"}, "did you mean 'inductive'"),
        ({"alpha": 1}, "alpha=1 must be a number from 0 to 0.999"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": False}, "alpha=False"),
        ({"centring": 2}, "centring=2"),
        ({"neighbours": 0}, "neighbours=0 must be a positive integer"),
        ({"power": math.nan}, "power=nan"),
        ({"gain": 0}, "gain=0"),
        ({"index": "fais"}, "did you mean 'faiss'"),
        ({"mode": "inductive", "splits": ["test"], "graph_splits": ["train", "test"]}, r"both name \['test'\]"),
        ({"graph_splits": []}, "graph_splits"),
        ({"splits": "test"}, "splits='test' must be a list"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Propagation(**options)


def test_a_split_that_nobody_has_is_named() -> None:
    with pytest.raises(ConfigError, match=r"graph_splits='trian'.*did you mean 'train'"):
        Propagation(graph_splits=["trian"]).check(make_space().info)


@pytest.fixture(scope="module")
def caltech(shared: Path) -> FeatureBundle:
    return EmbeddingsFile(path=str(shared / "data/clip_caltech101/dev.safetensors"), duplicates="ignore").bundle()


def cross_modal_space(bundle: FeatureBundle) -> EmbeddingSpace:
    parts = {part: unit(roles["cross_modal"].float()) for part, roles in bundle.features.items()}
    return EmbeddingSpace(bundle.info, parts, reference=parts, parents=bundle.features)


def test_a_third_of_the_errors_of_real_features_goes(caltech: FeatureBundle) -> None:
    probe = Propagation(kernel="product", splits=["train", "val", "test"])
    told = measurement(probe, cross_modal_space(caltech)).protocol
    assert told["n_test"] == 930
    assert told["errors_before"] == 23
    assert told["errors_after"] <= 23 * 2 / 3
    assert told["p_value"] < 0.05


def test_real_features_with_classes_that_have_no_text(caltech: FeatureBundle) -> None:
    """The 35 class texts as texts of the 100 classes: zero-shot is that of the 35."""
    info = caltech.info
    every, named = info.label_sets["class"], info.label_sets["named"]
    owner = torch.tensor([every.classes.index(named.classes[int(c)]) for c in named.prompts["default"].owner])
    prompts = {"default": Prompts(named.prompts["default"].texts, owner)}
    sets = {"class": replace(every, prompts=prompts), "named": named}
    features = {**caltech.features, Part.prompts("class", "default"): caltech[Part.prompts("named", "default")]}
    space = cross_modal_space(FeatureBundle(replace(info, label_sets=sets), caltech.pair, features))
    for probe in (ZeroShot(), Propagation(kernel="sum")):
        of_all, of_named = (
            next(m for m in probe.evaluate(space, seed=0).measurements if (m.metric, m.label_set) == ("accuracy", name))
            for name in ("class", "named")
        )
        assert of_all.per_item is not None
        assert of_named.per_item is not None
        np.testing.assert_array_equal(of_all.per_item.numpy(), of_named.per_item.numpy())
        assert of_all.protocol["n_classes"] == 35
        assert of_all.protocol["n_classes_without_text"] == 65
        assert of_all.protocol["n_items_without_text"] == 491 - 278
