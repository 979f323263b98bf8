from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.probes import ZeroShot, ZeroShotHead
from krossfuse.probes.base import Measurement, ProbeResult
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.zero_shot import decide

IMAGES = Part("test", "image")
CLASSES = 8


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def make_space(seed: int = 0, n: int = 200, dim: int = 16) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, CLASSES, (n,), generator=g)
    owner = torch.arange(CLASSES).repeat_interleave(3)
    centres = torch.randn(CLASSES, dim, generator=g)
    images = centres[labels.clamp(min=0)] + 1.5 * torch.randn(n, dim, generator=g)
    texts = centres[owner] + torch.randn(len(owner), dim, generator=g)
    prompts = Prompts(tuple(f"text {i}" for i in range(len(owner))), owner, ("a photo of a {}.",))
    other = Prompts(tuple(f"name {i}" for i in range(CLASSES)), torch.arange(CLASSES), ("{}",))
    info = DatasetInfo(
        "toy",
        {},
        {"class": LabelSet(tuple("abcdefgh"), {"test": labels}, {"photo": prompts, "plain": other})},
    )
    parts = {
        IMAGES: images,
        Part.prompts("class", "photo"): texts,
        Part.prompts("class", "plain"): centres + torch.randn(CLASSES, dim, generator=g),
    }
    return EmbeddingSpace(info, parts)


def measurement(result: ProbeResult, metric: str, prompt_set: str = "photo") -> Measurement:
    (one,) = [f for f in result.measurements if f.metric == metric and f.protocol["prompt_set"] == prompt_set]
    return one


def class_texts(space: EmbeddingSpace, prompt_set: str = "photo") -> Tensor:
    owner = space.info.label_sets["class"].prompts[prompt_set].owner
    texts = unit(space[Part.prompts("class", prompt_set)].double())
    return torch.stack([texts[owner == c].mean(0) for c in range(CLASSES)])


def exact_alignment(space: EmbeddingSpace, C: float, *, text_expert: bool = False) -> EmbeddingSpace:
    """Direct sum of docs/mathematics.md, section 3, in float32; the experts' sketches have norms of their own."""
    g = torch.Generator().manual_seed(0)
    fused = {}
    for part, x in space.parts.items():
        own, other = torch.randn(len(x), 24, generator=g) / 5, torch.zeros(len(x), 24)
        blocks = [own, other] if part.modality == "image" else [other, own if text_expert else other]
        fused[part] = torch.cat([C**0.5 * unit(x), *blocks], dim=1)
    return EmbeddingSpace(space.info, fused, reference=space.parts)


def test_figures_against_scikit_learn() -> None:
    space = make_space()
    result = ZeroShot(similarity="cosine").evaluate(space, seed=0)
    labels = space.info.label_sets["class"].labels["test"]
    keep = labels >= 0
    y = labels[keep].numpy()
    scores = (unit(space[IMAGES].double()) @ unit(class_texts(space)).T)[keep].numpy()
    predicted = scores.argmax(1)
    assert measurement(result, "accuracy").value == pytest.approx((predicted == y).mean())
    assert measurement(result, "top5_accuracy").value == pytest.approx(top_k_accuracy_score(y, scores, k=5))
    assert measurement(result, "mean_per_class_accuracy").value == pytest.approx(balanced_accuracy_score(y, predicted))
    per_item = measurement(result, "accuracy").per_item
    assert per_item is not None
    np.testing.assert_array_equal(per_item.numpy(), predicted == y)
    assert measurement(result, "accuracy").protocol["templates"] == ["a photo of a {}."]
    assert measurement(result, "accuracy").protocol["n_test"] == int(keep.sum())


def test_similarities_are_averaged_when_asked() -> None:
    space = make_space(1)
    head = ZeroShot(average="similarities", similarity="cosine").evaluate(space, seed=0).heads["class/photo"]
    expected = unit(space[IMAGES].double()) @ class_texts(space).T
    torch.testing.assert_close(head(space[IMAGES]), expected)


def test_an_ensemble_pools_the_texts_of_its_members() -> None:
    space = make_space(2)
    result = ZeroShot(prompt_sets=["photo+plain"], similarity="cosine").evaluate(space, seed=0)
    head = result.heads["class/photo+plain"]
    assert isinstance(head, ZeroShotHead)
    pooled = (3 * class_texts(space, "photo") + class_texts(space, "plain")) / 4
    torch.testing.assert_close(head.weight, unit(pooled))
    assert measurement(result, "accuracy", "photo+plain").protocol["templates"] == ["a photo of a {}.", "{}"]


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("average", ["embeddings", "similarities"])
@pytest.mark.parametrize("text_expert", [False, True])
def test_exact_alignment_decides_as_the_cross_modal_encoder(C: float, average: str, text_expert: bool) -> None:
    space = make_space(3, n=2000)
    # Classes 2 and 6 get the same texts: an exact tie, which rounding alone would decide.
    texts = space.parts[Part.prompts("class", "photo")]
    texts[18:21] = texts[6:9]
    reference = ZeroShot(average=average, similarity="cosine").evaluate(space, seed=0)  # type: ignore[arg-type]
    aligned = exact_alignment(space, C, text_expert=text_expert)
    fused = ZeroShot(average=average).evaluate(aligned, seed=0)  # type: ignore[arg-type]
    assert measurement(fused, "agreement").value == 1.0
    assert measurement(fused, "agreement", "plain").value == 1.0
    assert torch.equal(measurement(reference, "accuracy").per_item, measurement(fused, "accuracy").per_item)  # type: ignore[arg-type]
    head = fused.heads["class/photo"]
    assert isinstance(head, ZeroShotHead)
    assert 6 not in head.decide(aligned[IMAGES])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 250), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_neither_blocks_nor_scale_change_a_decision(seed: int, block: int, scale: float) -> None:
    space = make_space(seed, n=40)
    scaled = replace(space, parts={part: scale * x for part, x in space.parts.items()})
    a = ZeroShot().evaluate(space, seed=0)
    b = ZeroShot(block_rows=block).evaluate(scaled, seed=7)
    assert [f.value for f in a.measurements] == [f.value for f in b.measurements]


def test_ties_go_to_the_lowest_class() -> None:
    assert decide(torch.tensor([[0.5, 0.9, 0.9], [0.0, 0.0, 0.0], [-0.2, -0.2, -0.9]])).tolist() == [1, 0, 0]


def test_extra_splits_are_tested_by_the_same_head() -> None:
    space = make_space(4)
    label_set = space.info.label_sets["class"]
    labels = {**label_set.labels, "test_sketch": torch.arange(CLASSES)}
    info = replace(space.info, label_sets={"class": replace(label_set, labels=labels)})
    parts = {**space.parts, Part("test_sketch", "image"): class_texts(space).float()}
    result = ZeroShot(extra_splits=["test_sketch"], prompt_sets=["photo"]).evaluate(EmbeddingSpace(info, parts), seed=0)
    shifted = [f for f in result.measurements if f.metric == "accuracy" and f.protocol["split"] == "test_sketch"]
    assert [f.value for f in shifted] == [1.0]
    with pytest.raises(ConfigError, match="test_paint"):
        ZeroShot(extra_splits=["test_paint"]).evaluate(space, seed=0)


def test_classes_without_a_text_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    space = make_space(5)
    label_set = space.info.label_sets["class"]
    kept, labels = [1, 4, 7], label_set.labels["test"]
    owner = label_set.prompts["photo"].owner
    rows = torch.isin(owner, torch.tensor(kept)).nonzero().flatten()
    prompts = {"photo": Prompts(tuple("abcdefghi"), owner[rows])}
    part = Part.prompts("class", "photo")
    some = replace(
        space,
        info=replace(space.info, label_sets={"class": replace(label_set, prompts=prompts)}),
        parts={IMAGES: space[IMAGES], part: space[part][rows]},
    )
    with caplog.at_level("INFO"):
        result = ZeroShot(similarity="cosine").evaluate(some, seed=0)
    inside = torch.isin(labels, torch.tensor(kept))
    scores = unit(space[IMAGES][inside].double()) @ unit(class_texts(space)[kept]).T
    decisions = torch.tensor(kept)[scores.argmax(1)]
    accuracy = measurement(result, "accuracy")
    assert accuracy.value == pytest.approx(float((decisions == labels[inside]).double().mean()))
    out = int((labels >= 0).sum() - inside.sum())
    expected = {
        "n_classes": 3,
        "n_classes_without_text": 5,
        "n_items_without_text": out,
        "n_test": int(inside.sum()),
    }
    assert {key: accuracy.protocol[key] for key in expected} == expected
    assert f"5 classes have no text (prompt set 'photo'); their {out} items are left out" in caplog.text
    assert {f.metric for f in result.measurements} == {"accuracy", "mean_per_class_accuracy"}  # three classes: no top 5
    head = result.heads["class/photo"]
    assert isinstance(head, ZeroShotHead)
    torch.testing.assert_close(head.decide(space[IMAGES][inside]), decisions)
    nobody = replace(label_set, prompts=prompts, labels={"test": torch.full((200,), 2)})
    with pytest.raises(DataError, match="no item is of one of the 3 classes that have a text"):
        ZeroShot().evaluate(replace(some, info=replace(space.info, label_sets={"class": nobody})), seed=0)


def test_needs_items_and_prompts_in_one_space() -> None:
    space = make_space()
    assert ZeroShot().applies(space)
    assert not ZeroShot().applies(replace(space, parts={IMAGES: space[IMAGES]}))
    assert not ZeroShot(modalities=["text"]).applies(space)
    assert not ZeroShot(label_sets=["other"]).applies(space)


def test_bad_input_is_named() -> None:
    space = make_space()
    with pytest.raises(ConfigError, match=r"'photos'.*\['photo', 'plain'\]"):
        ZeroShot(prompt_sets=["photos"]).evaluate(space, seed=0)
    with pytest.raises(ConfigError, match="'other'"):
        ZeroShot(label_sets=["other"]).evaluate(space, seed=0)
    broken = space[IMAGES].clone()
    broken[150, 3] = float("nan")
    assert space.info.label_sets["class"].labels["test"][150] >= 0
    with pytest.raises(DataError, match=r"test:image .*NaN.* row 150"):
        ZeroShot().evaluate(replace(space, parts={**space.parts, IMAGES: broken}), seed=0)
    label_set = space.info.label_sets["class"]
    wild = replace(label_set, labels={"test": torch.full((200,), 8)})
    with pytest.raises(DataError, match=r"label 8 .* 8 classes"):
        ZeroShot().evaluate(replace(space, info=replace(space.info, label_sets={"class": wild})), seed=0)
    with pytest.raises(DataError, match=r"classes \[1\] have no text"):
        ZeroShotHead(torch.ones(2, 3), torch.tensor([0, 2]), n_classes=3)
    with pytest.raises(ConfigError, match="did you mean 'embeddings'"):
        ZeroShot(average="embedding")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="list of names"):
        ZeroShot(prompt_sets="photo")
