from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import Part
from krossfuse.probes import Retrieval
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.retrieval import retrieval_ranks
from krossfuse.probes.space import EmbeddingSpace

IMAGES, TEXTS = Part("test", "image"), Part("test", "text")


def make_space(seed: int = 0, n_images: int = 30, n_texts: int = 70, dim: int = 8) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n_images, dim, generator=g)
    caption_of = torch.randint(0, n_images, (n_texts,), generator=g)
    texts = images[caption_of] + 1.5 * torch.randn(n_texts, dim, generator=g)
    return EmbeddingSpace(DatasetInfo("toy", {}, {}, {"test": caption_of}), {IMAGES: images, TEXTS: texts})


def value(result: ProbeResult, metric: str, direction: str) -> float:
    (one,) = [f.value for f in result.measurements if (f.metric, f.modality) == (metric, direction)]
    return one


def expected(similarity: Tensor, relevant: Tensor, k: int) -> dict[str, float]:
    """Brute force over the full matrix (queries, gallery)."""
    kept = relevant.any(1)
    s, y = similarity[kept].numpy(), relevant[kept].numpy()
    order = np.argsort(-s, axis=1, kind="stable")
    first = np.array([np.flatnonzero(row[o])[0] for row, o in zip(y, order, strict=True)])
    return {
        f"recall@{k}": float((first < k).mean()),
        "median_rank": float(np.median(first + 1)),
        "map": float(np.mean([average_precision_score(r, v) for r, v in zip(y, s, strict=True)])),
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    block=st.integers(1, 80),
    k=st.integers(1, 10),
    similarity=st.sampled_from(["dot", "cosine"]),
)
def test_every_figure_against_brute_force(seed: int, block: int, k: int, similarity: str) -> None:
    space = make_space(seed)
    x, t = space[IMAGES].double(), space[TEXTS].double()
    if similarity == "cosine":
        x, t = x / x.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    relevant = torch.arange(30)[:, None] == space.info.caption_of["test"][None, :]
    result = Retrieval(ks=[k], similarity=similarity, block_rows=block).evaluate(space, seed=0)  # type: ignore[arg-type]
    for metric, number in expected(x @ t.T, relevant, k).items():
        assert value(result, metric, "image->text") == pytest.approx(number)
    for metric, number in expected(t @ x.T, relevant.T, k).items():
        assert value(result, metric, "text->image") == pytest.approx(number)


@pytest.mark.slow
def test_parity_with_torchmetrics() -> None:
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalRecall

    space = make_space(5)
    s = space[IMAGES] @ space[TEXTS].T
    s = s - s.min() + 1  # torchmetrics takes scores of 0 or less for "not retrieved"
    relevant = torch.arange(30)[:, None] == space.info.caption_of["test"][None, :]
    queries = torch.arange(30)[:, None].expand_as(s)
    result = Retrieval(ks=[5]).evaluate(space, seed=0)
    for metric, theirs in (
        ("recall@5", RetrievalHitRate(empty_target_action="skip", top_k=5)),
        ("map", RetrievalMAP(empty_target_action="skip")),
    ):
        assert value(result, metric, "image->text") == pytest.approx(float(theirs(s, relevant, queries)), abs=1e-6)
    queries = torch.arange(70)[:, None].expand_as(s.T)
    recall = RetrievalRecall(top_k=5)(s.T, relevant.T, queries)
    assert value(result, "recall@5", "text->image") == pytest.approx(float(recall), abs=1e-6)


def test_ties_rank_in_the_order_of_the_rows() -> None:
    same = torch.ones(4, 3)
    ranks = retrieval_ranks(same, same + 1e-9, torch.arange(4), block_rows=3)
    assert ranks.of_text.tolist() == ranks.of_image.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_exact_alignment_ranks_as_the_cross_modal_encoder(C: float) -> None:
    space = make_space(1)
    parts = {}
    for part, x in space.parts.items():
        unit = x / x.norm(dim=1, keepdim=True)
        sketch = torch.randn(len(x), 12, generator=torch.Generator().manual_seed(3))
        both = (sketch, torch.zeros_like(sketch))
        parts[part] = torch.cat([C**0.5 * unit, *(both if part is IMAGES else both[::-1])], dim=1)
    alone = Retrieval(similarity="cosine").evaluate(space, seed=0)
    fused = Retrieval().evaluate(replace(space, parts=parts), seed=0)
    assert [f.value for f in alone.measurements] == [f.value for f in fused.measurements]


def test_items_behind_a_recall_are_kept() -> None:
    space = make_space()
    for measurement in Retrieval().evaluate(space, seed=0).measurements:
        if measurement.metric != "median_rank":
            assert measurement.per_item is not None
            assert len(measurement.per_item) == measurement.protocol["n_test"]
            assert float(measurement.per_item.mean()) == pytest.approx(measurement.value, abs=1e-6)


def test_bad_input_is_named() -> None:
    space = make_space()
    assert Retrieval().applies(space)
    assert not Retrieval().applies(replace(space, parts={IMAGES: space[IMAGES]}))
    assert not Retrieval().applies(replace(space, info=replace(space.info, caption_of={})))
    lost = space.info.caption_of["test"].clone()
    lost[9] = 30
    with pytest.raises(DataError, match=r"text 9 .* image 30.* 0 ... 29"):
        Retrieval().evaluate(replace(space, info=replace(space.info, caption_of={"test": lost})), seed=0)
    with pytest.raises(DataError, match=r"recall@31 .* 30"):
        Retrieval(ks=[31]).evaluate(space, seed=0)
    short = replace(space.info, caption_of={"test": lost[:5]})
    with pytest.raises(DataError, match=r"5 texts .* 70"):
        Retrieval().evaluate(replace(space, info=short), seed=0)
    broken = space[TEXTS].clone()
    broken[4, 0] = float("inf")
    with pytest.raises(DataError, match="row 4"):
        Retrieval(block_rows=3).evaluate(replace(space, parts={**space.parts, TEXTS: broken}), seed=0)
    with pytest.raises(ConfigError, match="ks=0"):
        Retrieval(ks=[0])
    with pytest.raises(ConfigError, match="similarity"):
        Retrieval(similarity="euclid")  # type: ignore[arg-type]
