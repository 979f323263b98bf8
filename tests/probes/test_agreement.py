from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.probes import Agreement
from krossfuse.probes.agreement import modality_gap
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.space import EmbeddingSpace

IMAGES, TEXTS, PROMPTS = Part("test", "image"), Part("test", "text"), Part.prompts("class", "plain")


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def make_space(seed: int = 0, *, C: float | None = 2.0) -> EmbeddingSpace:
    """The direct sum of docs/mathematics.md, section 4 (C given), or noise unrelated to the reference."""
    g = torch.Generator().manual_seed(seed)
    reference = {part: torch.randn(n, 8, generator=g) for part, n in ((IMAGES, 50), (TEXTS, 60), (PROMPTS, 4))}
    parts = {}
    for part, x in reference.items():
        sketch = torch.randn(len(x), 5, generator=g)
        own = sketch if part.modality == "image" else torch.zeros_like(sketch)
        parts[part] = torch.randn(len(x), 9, generator=g) if C is None else torch.cat([C**0.5 * unit(x), own], 1)
    prompts = Prompts(("a", "b", "c", "d"), torch.arange(4))
    info = DatasetInfo(
        "toy", {}, {"class": LabelSet(tuple("abcd"), {"test": torch.arange(50) % 4}, {"plain": prompts})}
    )
    return EmbeddingSpace(info, parts, reference=reference)


def value(result: ProbeResult, metric: str, key: str) -> float:
    (one,) = [
        f.value for f in result.measurements if f.metric == metric and key in (f.modality, f.protocol.get("space"))
    ]
    return one


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_exact_alignment_agrees_completely(C: float) -> None:
    result = Agreement().evaluate(make_space(C=C), seed=0)
    for key in ("image-text", "image->text", "text->image"):
        assert value(result, "spearman", key) == pytest.approx(1.0, abs=1e-6)
    assert value(result, "zero_shot_agreement", "image") == 1.0


def test_correlations_against_scipy() -> None:
    space = make_space(C=None)
    result = Agreement(similarity="cosine").evaluate(space, seed=0)
    fused = (unit(space[IMAGES].double()) @ unit(space[TEXTS].double()).T).numpy()
    own = (unit(space.reference[IMAGES].double()) @ unit(space.reference[TEXTS].double()).T).numpy()
    assert value(result, "spearman", "image-text") == pytest.approx(spearmanr(fused.ravel(), own.ravel()).statistic)
    by_image = sum(spearmanr(a, b).statistic for a, b in zip(fused, own, strict=True)) / 50
    assert value(result, "spearman", "image->text") == pytest.approx(by_image)
    assert abs(by_image) < 0.1


def test_modality_gap_of_both_spaces() -> None:
    space = make_space()
    result = Agreement().evaluate(space, seed=0)
    x, t = unit(space.reference[IMAGES].double()), unit(space.reference[TEXTS].double())
    assert value(result, "modality_gap", "cross_modal") == pytest.approx(float((x.mean(0) - t.mean(0)).norm()))
    assert value(result, "modality_gap", "fused") == pytest.approx(modality_gap(space[IMAGES], space[TEXTS]))


def test_items_are_sampled_by_seed() -> None:
    space = make_space(C=None)
    probe = Agreement(max_items=20)
    a, b, c = (value(probe.evaluate(space, seed=s), "spearman", "image-text") for s in (0, 0, 1))
    assert a == b != c


def test_class_texts_stand_in_where_the_split_has_no_texts() -> None:
    space = make_space()
    without = {p: x for p, x in space.parts.items() if p != TEXTS}
    result = Agreement().evaluate(replace(space, parts=without), seed=0)
    assert result.protocol["texts"] == "class texts"
    assert value(result, "spearman", "image->text") == pytest.approx(1.0)


def test_bad_input_is_named() -> None:
    space = make_space()
    assert Agreement().applies(space)
    assert not Agreement().applies(replace(space, reference={}))
    with pytest.raises(DataError, match=r"cross-modal \[\]"):
        Agreement().evaluate(replace(space, reference={}), seed=0)
    with pytest.raises(ConfigError, match="max_items=0"):
        Agreement(max_items=0)
