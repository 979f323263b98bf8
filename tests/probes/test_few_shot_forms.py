"""Forms that use class texts: I+T against its formula, cache models by brute force, classes without a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from few_shot_toys import PROMPTS, TEST, TRAIN, VAL, accuracies, make_space, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.labels import LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.probes import FewShot, ZeroShot
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.few_shot import tip_training
from krossfuse.probes.few_shot.residual import in_units, spread, tau_rule, taus
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.subsets import FewShotSubset

WITH_TEXTS = ["I+T", "T", "texts as samples", "Tip-Adapter", "Tip-Adapter-F", "LP++", "CLIP-Adapter"]


def hits(result: ProbeResult, form: str) -> Iterator[tuple[dict[str, Any], np.ndarray[Any, Any]]]:
    for m in result.measurements:
        if m.metric == "accuracy" and m.label_set == "class" and m.protocol["form"] == form:
            assert m.per_item is not None
            yield dict(m.protocol), m.per_item.numpy()


def labels(space: EmbeddingSpace, part: Part) -> np.ndarray[Any, Any]:
    return space.info.labels("class", part).numpy()


def class_texts(space: EmbeddingSpace) -> np.ndarray[Any, Any]:
    """The mean of a class's texts, at length 1: the toy space has no reference, and two texts a class."""
    means = space[PROMPTS].double().view(4, 2, -1).mean(1).numpy()
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def mean_sd(*scores: np.ndarray[Any, Any]) -> float:
    return float(np.concatenate(scores).std(1).mean())


@pytest.mark.parametrize("tau", ["rule", 0.7])
def test_the_residual_is_its_formula(tau: Any) -> None:
    space = make_space(noise=2.0)
    probe = FewShot(shots=[1, 4], n_seeds=2, forms=["I+T"], tau=tau, tol=1e-7)
    by_subset = {(p["shots"], p["subset_seed"]): (p, h) for p, h in hits(probe.evaluate(space, seed=0), "I+T")}
    assert len(by_subset) == 4
    texts = class_texts(space)
    for subset in probe.subsets(space, "class"):
        head = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000)
        head.fit(unit(space[TRAIN][subset.train]), labels(space, TRAIN)[subset.train.numpy()])
        others = np.setdiff1d(np.arange(80), subset.train.numpy())
        pool = (space[TRAIN][others], space[VAL])
        head_sd = mean_sd(*(head.decision_function(unit(x)) for x in pool))
        text_sd = mean_sd(*(x.double().numpy() @ texts.T for x in pool))
        chosen = 2 / math.sqrt(subset.shots) if tau == "rule" else tau
        scores = head.decision_function(unit(space[TEST])) / head_sd
        scores = scores + chosen * (space[TEST].double().numpy() @ texts.T) / text_sd
        protocol, found = by_subset[subset.shots, subset.seed]
        np.testing.assert_array_equal(found, scores.argmax(1) == labels(space, TEST))
        assert protocol["tau"] == pytest.approx(chosen)
        assert protocol["selected_C"] == 1.0


def test_the_rule_halves_when_shots_are_four_times_as_many() -> None:
    assert [tau_rule(k) for k in (1, 4, 16)] == [2.0, 1.0, 0.5]
    assert taus("rule", 16) == [0.5]
    assert taus("val", 7) == [tau_rule(7)]
    assert sorted(taus("val", 16)) == [0.25, 0.5, 1.0]


def test_tau_can_be_chosen_on_the_validation_shots() -> None:
    space = make_space(noise=2.5)
    probe = FewShot(shots=[4, 8], n_seeds=4, forms=["I+T"], tau="val")
    found = [protocol for protocol, _ in hits(probe.evaluate(space, seed=0), "I+T")]
    assert {p["tau"] for p in found if p["shots"] == 4} == {1.0}
    candidates = {
        r * tau_rule(8): FewShot(shots=[8], n_seeds=4, forms=["I+T"], tau=r * tau_rule(8)) for r in (0.5, 1, 2)
    }
    each = {
        tau: {p["subset_seed"]: p["val_accuracy"] for p, _ in hits(fixed.evaluate(space, seed=0), "I+T")}
        for tau, fixed in candidates.items()
    }
    for p in found:
        if p["shots"] == 8:
            assert p["val_accuracy"] == max(by_seed[p["subset_seed"]] for by_seed in each.values())
            assert p["val_accuracy"] == each[p["tau"]][p["subset_seed"]]


def test_with_a_large_tau_it_decides_as_zero_shot_and_with_a_small_one_as_its_head() -> None:
    space = make_space(noise=2.0)
    (zero,) = [m for m in ZeroShot().evaluate(space, seed=0).measurements if m.metric == "accuracy"]
    assert zero.per_item is not None
    for _, found in hits(FewShot(shots=[1], forms=["I+T"], tau=1e9).evaluate(space, seed=0), "I+T"):
        np.testing.assert_array_equal(found, zero.per_item.numpy())
    result = FewShot(shots=[2], forms=["I", "I+T"], tau=1e-9, grid=[1.0]).evaluate(space, seed=0)
    for (_, head), (_, both) in zip(hits(result, "I"), hits(result, "I+T"), strict=True):
        np.testing.assert_array_equal(head, both)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_units_know_neither_scale_nor_offset(seed: int, scale: float, shift: float) -> None:
    scores = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    every = torch.ones(7, dtype=torch.bool)
    moved = scale * scores + shift
    unit_scores = in_units(scores, spread([scores], [every]))
    torch.testing.assert_close(
        in_units(moved, spread([moved], [every])) - unit_scores,
        ((shift / scale) / spread([scores], [every])) * torch.ones(7, 4, dtype=torch.float64),
    )
    assert spread([unit_scores], [every]) == pytest.approx(1)


def test_constant_scores_tell_nothing_and_infinite_ones_are_refused() -> None:
    assert not in_units(torch.full((3, 2), 5.0), 0.0).any()
    with pytest.raises(DataError, match="scale the embeddings"):
        spread([torch.tensor([[1.0, math.inf]])], [torch.tensor([True])])


@pytest.mark.parametrize("by", ["scale", "text scale", "labels of others"])
def test_what_i_plus_t_does_not_depend_on(by: str) -> None:
    space = make_space(noise=2.0)
    probe = FewShot(shots=[2], n_seeds=2, forms=["I+T"])
    before = [found for _, found in hits(probe.evaluate(space, seed=0), "I+T")]
    if by == "scale":
        space = replace(space, parts={part: 7.0 * x for part, x in space.parts.items()})
    elif by == "text scale":
        space = replace(space, parts={**space.parts, PROMPTS: 0.01 * space[PROMPTS]})
    else:  # Spreads are label-free: other labels of images that are neither shots, validation shots nor tested
        used = {
            s: torch.cat([getattr(subset, s) for subset in probe.subsets(space, "class")]) for s in ("train", "val")
        }
        own = space.info.label_sets["class"]
        given = {
            s: torch.where(torch.isin(torch.arange(len(y)), used.get(s, torch.arange(len(y)))), y, 0)
            for s, y in own.labels.items()
        }
        task = {"class": replace(own, labels=given)}
        fixed = {(s.shots, s.seed): s for s in probe.subsets(space, "class")}
        space = replace(space, info=replace(space.info, label_sets=task))

        def drawn(_: EmbeddingSpace, name: str, shots: int, seed: int) -> FewShotSubset:
            return fixed[shots, min(seed, 2)]

        probe._draw = drawn  # type: ignore[method-assign]
    after = [found for _, found in hits(probe.evaluate(space, seed=0), "I+T")]
    np.testing.assert_array_equal(before, after)


def test_a_tip_adapter_by_brute_force() -> None:
    space = make_space(noise=2.0)
    probe = FewShot(shots=[3], n_seeds=2, forms=["Tip-Adapter"], alpha=[0.5, 6.0], beta=[2.0, 9.0])
    found = {p["subset_seed"]: (p, h) for p, h in hits(probe.evaluate(space, seed=0), "Tip-Adapter")}
    texts = class_texts(space)

    def logits(x: Tensor, subset: FewShotSubset, alpha: float, beta: float, text_sd: float) -> np.ndarray[Any, Any]:
        scores = 2 * (x.double().numpy() @ texts.T) / text_sd
        for item, f in enumerate(unit(x)):
            for shot in subset.train.tolist():
                key = unit(space[TRAIN][shot : shot + 1])[0]
                scores[item, labels(space, TRAIN)[shot]] += alpha * math.exp(-beta * (1 - float(f @ key)))
        return scores

    def loss(scores: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
        return float(torch.nn.functional.cross_entropy(torch.from_numpy(scores), torch.from_numpy(y)))

    for subset in probe.subsets(space, "class"):
        others = np.setdiff1d(np.arange(80), subset.train.numpy())
        text_sd = mean_sd(*(x.double().numpy() @ texts.T for x in (space[TRAIN][others], space[VAL])))
        y = labels(space, VAL)[subset.val.numpy()]
        tried = {
            (alpha, beta): logits(space[VAL][subset.val], subset, alpha, beta, text_sd)
            for alpha in (0.5, 6.0)
            for beta in (2.0, 9.0)
        }
        alpha, beta = max(tried, key=lambda c: ((tried[c].argmax(1) == y).mean(), -loss(tried[c], y)))
        protocol, right = found[subset.seed]
        assert (protocol["alpha"], protocol["beta"]) == (alpha, beta)
        scores = logits(space[TEST], subset, alpha, beta, text_sd)
        np.testing.assert_array_equal(right, scores.argmax(1) == labels(space, TEST))


def test_trained_keys_are_those_of_a_plain_loop_and_caches_do_not_touch_each_other() -> None:
    g = torch.Generator().manual_seed(0)
    shots = torch.nn.functional.normalize(torch.randn(2, 6, 5, generator=g), dim=2)
    y = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])
    texts = torch.randn(2, 6, 3, generator=g)
    state = torch.get_rng_state()
    found = tip_training.trained_keys(shots, y, texts, seeds=[1, 2], trainers=TrainerFactory())
    assert torch.equal(torch.get_rng_state(), state)
    for p in range(2):
        keys = shots[p].clone().requires_grad_()
        optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        for _ in range(20):  # One batch an epoch: its order does not matter
            logits = torch.exp(-5.5 * (1 - shots[p] @ keys.T)) @ torch.eye(3)[y[p]] + texts[p]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, y[p]).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(found[p], keys.detach(), rtol=1e-5, atol=1e-6)
        alone = tip_training.trained_keys(
            shots[p : p + 1], y[p : p + 1], texts[p : p + 1], seeds=[p + 1], trainers=TrainerFactory()
        )
        torch.testing.assert_close(found[p], alone[0], rtol=1e-6, atol=1e-7)


def test_tip_adapter_f_repeats_and_learns_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tip_training, "BATCH", 5)
    space = make_space(noise=2.0)
    probe = FewShot(shots=[4], n_seeds=2, forms=["Tip-Adapter-F"])
    first, second = (accuracies(probe.evaluate(space, seed=s)) for s in (0, 1))
    assert first == second


@pytest.mark.parametrize("form", WITH_TEXTS)
def test_classes_without_a_text_are_left_out_and_it_is_said(form: str) -> None:
    space = make_space()
    own = space.info.label_sets["class"]
    kept = torch.tensor([0, 2, 3])
    rows = torch.isin(own.prompts["plain"].owner, kept).nonzero().flatten()
    prompts = Prompts(tuple("abefgh"), own.prompts["plain"].owner[rows])
    sets = {"class": replace(own, prompts={"plain": prompts})}
    partial = replace(
        space, info=replace(space.info, label_sets=sets), parts={**space.parts, PROMPTS: space[PROMPTS][rows]}
    )

    result = FewShot(shots=[1, 3], n_seeds=2, forms=["I", form]).evaluate(partial, seed=0)
    assert {(p["n_classes"], p["n_test"]) for p, _ in hits(result, "I")} == {(4, 120)}
    assert {(p["n_classes"], p["n_test"], p["n_texts"]) for p, _ in hits(result, form)} == {(3, 90, 6)}

    # The same as a dataset that never had the class, on the same subsets.
    number = torch.tensor([0, -1, 1, 2])
    fewer = {s: torch.where(y >= 0, number[y], -1) for s, y in own.labels.items()}
    three = LabelSet(("ant", "cat", "dog"), fewer, {"plain": Prompts(prompts.texts, number[prompts.owner])})
    without = replace(partial, info=replace(space.info, label_sets={"class": three}))
    probe = FewShot(shots=[1, 3], n_seeds=2, forms=[form])
    drawn = {(s.shots, s.seed): s for s in FewShot(shots=[1, 3], n_seeds=2).subsets(space, "class")}

    def narrowed(_: EmbeddingSpace, name: str, shots: int, seed: int) -> FewShotSubset:
        s = drawn[shots, seed]
        keep = {split: rows[own.labels[split][rows] != 1] for split, rows in (("train", s.train), ("val", s.val))}
        return replace(s, **keep)

    probe._draw = narrowed  # type: ignore[method-assign]
    for (_, some), (_, alone) in zip(hits(result, form), hits(probe.evaluate(without, seed=0), form), strict=True):
        np.testing.assert_array_equal(some, alone)


def test_one_class_with_a_text_is_none() -> None:
    space = make_space()
    own = space.info.label_sets["class"]
    prompts = {"plain": Prompts(("a",), torch.tensor([2]))}
    info = replace(space.info, label_sets={"class": replace(own, prompts=prompts)})
    alone = replace(space, info=info, parts={**space.parts, PROMPTS: space[PROMPTS][4:5]})
    result = FewShot(shots=[1], n_seeds=1, forms=["I", *WITH_TEXTS]).evaluate(alone, seed=0)
    assert {m.protocol["form"] for m in result.measurements} == {"I"}
    assert "two classes or more" in str(FewShot(shots=[1], forms=["I+T"]).why_not(alone))


def test_without_a_validation_split_its_shots_stay_apart() -> None:
    space = make_space()
    own = space.info.label_sets["class"]
    info = replace(space.info, label_sets={"class": replace(own, labels={s: own.labels[s] for s in ("train", "test")})})
    result = FewShot(shots=[1, 4], n_seeds=1, forms=["I", *WITH_TEXTS]).evaluate(replace(space, info=info), seed=0)
    assert {m.protocol["val_split"] for m in result.measurements} == {"train"}
    assert len(result.measurements) == 2 * 2 * (1 + len(WITH_TEXTS))


def test_records_tell_what_was_chosen_and_how() -> None:
    result = FewShot(shots=[1], n_seeds=1, forms=["I", *WITH_TEXTS]).evaluate(make_space(), seed=0)
    chosen = {
        m.protocol["form"]: {"selected_C", "tau", "alpha", "beta", "step"} & set(m.protocol)
        for m in result.measurements
    }
    cache = {"alpha", "beta"}
    heads = {form: {"selected_C"} for form in ("I", "T", "texts as samples")}
    caches = {"Tip-Adapter": cache, "Tip-Adapter-F": cache}
    assert chosen == {**heads, **caches, "I+T": {"selected_C", "tau"}, "LP++": {"step"}, "CLIP-Adapter": set()}
    assert result.protocol["tau_by"] == "rule"
