from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from krossfuse import probes
from krossfuse.core.errors import ConfigError
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.probes.base import Probe
from krossfuse.probes.scope import Scope
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 24, "val": 12, "test": 12}


def make_space() -> EmbeddingSpace:
    g = torch.Generator().manual_seed(0)
    labels = {split: torch.arange(n) % 3 for split, n in SIZES.items()}
    rare = {split: torch.where(torch.arange(len(y)) < 4, y, -1) for split, y in labels.items()}
    tags = {split: torch.stack([y == 0, y != 1], 1) for split, y in labels.items()}
    prompts = {"plain": Prompts(("a", "b", "c"), torch.arange(3))}
    sets = {
        "kind": LabelSet(("ant", "bee", "cat"), labels, prompts),
        "rare": LabelSet(("ant", "bee", "cat"), rare),
        "tags": LabelSet(("low", "high"), tags, multilabel=True),
        "late": LabelSet(("ant", "bee", "cat"), {"test": labels["test"]}),
    }
    parts = {Part(split, "image"): torch.randn(n, 8, generator=g) for split, n in SIZES.items()}
    return EmbeddingSpace(DatasetInfo("toy", {}, sets), parts)


def test_pairs_are_the_label_sets_and_modalities_that_are_there() -> None:
    space = make_space()
    scope = Scope(modalities=["text", "image"], fitted=["train"], multilabel=True)
    assert scope.modalities == ("image", "text")
    assert scope.pairs(space) == [("image", "kind"), ("image", "rare"), ("image", "tags")]
    assert replace(scope, multilabel=False).label_sets_of(space) == {"image": ["kind", "rare"]}
    assert replace(scope, label_sets=["tags", "kind", "kind"]).pairs(space) == [("image", "tags"), ("image", "kind")]
    joined = Scope(splits=["train", "test"], joined=True)
    assert joined.pairs(space) == [("image", "kind"), ("image", "rare"), ("image", "late")]
    assert joined.splits_with(space, "image", "late") == ["test"]


def test_what_is_missing_is_said() -> None:
    space = make_space()
    reason = Scope(modalities=["text"]).why_not(space)
    assert reason is not None
    assert "no embeddings of test:text" in reason
    assert "test:image" in reason
    late = Scope(label_sets=["late"], fitted=["train"]).why_not(space)
    assert late == "label set 'late': it has no labels for ['train']; it has them for ['test']"
    tags = replace(space, info=replace(space.info, label_sets={"tags": space.info.label_sets["tags"]}))
    assert "no label set with one label an item" in str(Scope().why_not(tags))
    assert "several labels" in str(Scope(label_sets=["tags"]).why_not(space))


def test_a_label_set_that_was_named_and_is_left_out_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert Scope(label_sets=["kind", "late"], fitted=["train"]).pairs(make_space()) == [("image", "kind")]
    assert "'late' of 'toy' is left out" in caplog.text


CASES: list[tuple[Probe, str]] = [
    (probes.LinearProbe(label_sets=["kinds"]), "label_sets='kinds' .*did you mean 'kind'"),
    (probes.RidgeProbe(split="tests"), "split='tests' .*did you mean 'test'"),
    (probes.KNN(label_sets=["tags"]), r"'tags': this probe needs single-label sets, of which there are \['kind', "),
    (probes.KNN(extra_splits=["test_far"]), "split='test_far'"),
    (probes.Clustering(splits=["train", "rest"]), "split='rest'"),
    (probes.FewShot(prompt_set="fancy"), "no prompt set 'fancy'"),
    (probes.ZeroShot(prompt_sets=["plain+plane"]), "no prompt set 'plane' .*did you mean 'plain'"),
    (probes.ZeroShot(label_sets=["rare"]), r"with class texts, of which there are \['kind'\]"),
    (probes.Retrieval(split="tset"), "split='tset'"),
    (probes.Agreement(split="tset"), "split='tset'"),
    (probes.OutOfDistribution(splits=["test_sketch"]), "split='test_sketch'"),
    (probes.TextProbe(label_sets=["kinds"]), "label_sets='kinds'"),
    (probes.KernelProbe(split="tset"), "split='tset'"),
    (probes.SGDProbe(label_sets=["kinds"]), "label_sets='kinds'"),
]


@pytest.mark.parametrize(("probe", "words"), CASES, ids=lambda v: getattr(v, "name", ""))
def test_names_are_checked_from_the_dataset_alone(probe: Probe, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        probe.check(make_space().info)


def test_a_split_of_the_features_alone_is_known() -> None:
    info = make_space().info
    probes.KNN(extra_splits=["test_far"]).check(info, [Part("test_far", "image")])


REASONS: list[tuple[Probe, str]] = [
    (probes.FewShot(forms=["T"], shots=[1]), r"forms=\['T'\] need prompts"),
    (probes.ZeroShot(), "label set 'kind': the embedding has no class texts of it"),
    (probes.Retrieval(), "no embeddings of test:text"),
    (probes.Agreement(), r"cross-modal \[\]"),
    (probes.OutOfDistribution(), "no split test_"),
    (probes.TextProbe(), "no embeddings of train:text"),
    (probes.KernelProbe(), "no exact kernel"),
    (probes.KNN(modalities=["text"]), "train:text and test:text"),
    (probes.Clustering(modalities=["text"]), "train:text and val:text and test:text"),
    (probes.LinearProbe(modalities=["text"]), "train:text and test:text"),
    (probes.SGDProbe(modalities=["text"]), "train:text and test:text"),
]


@pytest.mark.parametrize(("probe", "words"), REASONS, ids=lambda v: getattr(v, "name", ""))
def test_every_probe_says_why_it_does_not_apply(probe: Probe, words: str) -> None:
    space = make_space()
    assert not probe.applies(space)
    assert re.search(words, str(probe.why_not(space)))


def test_classes_that_are_too_small_are_named_with_their_counts() -> None:
    space = make_space()
    reason = str(probes.FewShot(shots=[9], forms=["I"]).why_not(space))
    assert "label set 'kind': class 'ant' (label 0) has 8 train items, but 9 shots need 9" in reason
    assert "label set 'rare': class 'ant' (label 0) has 2 train items" in reason
    assert "probe.few_shot.shots" in reason
    texts = {Part(part.split, "text"): x for part, x in space.parts.items()}
    rare = {"rare": space.info.label_sets["rare"]}
    text_space = EmbeddingSpace(DatasetInfo("toy", {}, rare), texts)  # type: ignore[arg-type]
    few = str(probes.TextProbe(n_folds=8).why_not(text_space))
    assert "label set 'rare': class 'ant' (label 0) has 6 labelled items, but 8 are needed" in few
    assert "n_folds" in few


@pytest.mark.parametrize("bad", [{"label_sets": []}, {"label_sets": "kind"}, {"modalities": ["sound"]}, {"splits": []}])
def test_a_bad_scope_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Scope(**bad)
