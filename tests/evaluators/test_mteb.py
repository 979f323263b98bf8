"""mteb evaluates a fused encoder, on tasks made of emoji in its own format, and finds what our probes find."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluators.conftest import Emoji, measured, space_of

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.unit import normalised
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.mteb import MTEBForm, Similarity
from krossfuse.probes import LinearProbe, Retrieval, ZeroShot


def task(base: type, kind: str, category: str, modalities: list[str], **attributes: Any) -> Any:
    """Return an mteb task of a kind, whose data stand in its attributes."""
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        name=f"Emoji{kind}{category}", description="Emoji.", dataset={"path": "made", "revision": "1"}, type=kind,
        category=category, modalities=modalities, eval_splits=["test"], eval_langs=["eng-Latn"], main_score="accuracy",
    )  # fmt: skip
    attributes = {"load_data": lambda self, **_: None, "data_loaded": True, **attributes}
    return type(f"Emoji{kind}{category}", (base,), {"metadata": metadata, **attributes})()


def scores(form: MTEBForm, one: Any, data: Any) -> dict[str, float]:
    import mteb

    one.dataset = data
    result = mteb.evaluate(form, one, cache=None, co2_tracker=False, show_progress_bar=False)
    assert result.model_name == form.name
    return dict(result.task_results[0].scores["test"][0])


@pytest.fixture
def form(model: FusedEncoder) -> MTEBForm:
    return MTEBForm(model)


def test_it_is_what_mteb_takes_for_an_encoder(form: MTEBForm) -> None:
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(form, EncoderProtocol)
    assert form.mteb_model_meta.revision == form.model.digest
    assert form.mteb_model_meta.embed_dim == 512


@pytest.mark.parametrize("modality", ["image", "text"])
def test_classification(
    form: MTEBForm,
    emoji: Emoji,
    images: dict[str, torch.Tensor],
    texts: dict[str, torch.Tensor],
    modality: str,
) -> None:
    """Under mteb's protocol, a logistic regression with C = 1; on all training items, so that none is drawn."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskClassification

    items = emoji.pictures if modality == "image" else emoji.names
    splits = ("train", "test")
    data = DatasetDict({s: Dataset.from_dict({modality: items[s], "label": emoji.labels[s]}) for s in splits})
    kind, category = ("ImageClassification", "i2c") if modality == "image" else ("Classification", "t2c")
    one = task(
        AbsTaskClassification, kind, category, [modality], input_column_name=modality, n_experiments=1,
        samples_per_label=len(emoji.labels["train"]),
    )  # fmt: skip
    theirs = scores(form, one, data)
    space = space_of(form.model, emoji, {modality: images if modality == "image" else texts})
    ours = measured(LinearProbe(grid=[1.0], refit=False, tol=1e-5).evaluate(space, seed=0))
    assert theirs["accuracy"] == pytest.approx(ours["accuracy"], abs=1e-6)
    assert theirs["recall"] == pytest.approx(ours["mean_per_class_accuracy"], abs=1e-6)
    assert 1 / len(emoji.classes) < ours["accuracy"] < 1


def zero_shot_task(emoji: Emoji) -> tuple[Any, Any]:
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskZeroShotClassification

    one = task(
        AbsTaskZeroShotClassification, "ZeroShotClassification", "i2t", ["image", "text"], input_column_name="image",
        get_candidate_labels=lambda self: [f"an emoji of {name}" for name in emoji.classes],
    )  # fmt: skip
    columns = {"image": emoji.pictures["test"], "label": emoji.labels["test"]}
    return one, DatasetDict({"test": Dataset.from_dict(columns)})


def test_zero_shot(form: MTEBForm, emoji: Emoji, images: dict[str, torch.Tensor]) -> None:
    theirs = scores(form, *zero_shot_task(emoji))
    space = space_of(form.model, emoji, {"image": images}, templates=["an emoji of {}"])
    ours = measured(ZeroShot(similarity="cosine").evaluate(space, seed=0))
    assert theirs["accuracy"] == pytest.approx(ours["accuracy"], abs=1e-6)
    assert theirs["recall"] == pytest.approx(ours["mean_per_class_accuracy"], abs=1e-6)
    assert 1 / len(emoji.classes) < ours["accuracy"] < 1


def test_the_example_in_the_documents(
    model: FusedEncoder, emoji: Emoji, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mteb

    one, one.dataset = zero_shot_task(emoji)
    monkeypatch.setattr(mteb, "get_task", lambda name: one)
    text = (repository / "docs" / "model.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {"model": model}
    exec(block, names)
    assert names["results"].task_results[0].scores["test"][0]["accuracy"] > 0


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("way", ["text->image", "image->text"])
def test_retrieval(
    model: FusedEncoder,
    emoji: Emoji,
    images: dict[str, torch.Tensor],
    texts: dict[str, torch.Tensor],
    way: str,
    similarity: Similarity,
) -> None:
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    n = len(emoji.names["test"])
    columns = {"image": emoji.pictures["test"], "text": emoji.names["test"]}
    asked, found = way.split("->")
    data = RetrievalSplitData(
        queries=Dataset.from_dict({"id": [f"q{i}" for i in range(n)], asked: columns[asked]}),
        corpus=Dataset.from_dict({"id": [f"d{i}" for i in range(n)], found: columns[found]}),
        relevant_docs={f"q{i}": {f"d{i}": 1} for i in range(n)},
        top_ranked=None,
    )
    category = f"{asked[0]}2{found[0]}"
    one = task(AbsTaskRetrieval, "Any2AnyRetrieval", category, ["image", "text"])
    theirs = scores(MTEBForm(model, similarity=similarity), one, {"default": {"test": data}})
    space = space_of(
        model, emoji, {"image": {"test": images["test"]}, "text": {"test": texts["test"]}}, caption_of=torch.arange(n)
    )
    result = Retrieval(ks=[1, 5, 10], similarity=similarity).evaluate(space, seed=0)
    ours = {(m.modality, m.metric): m.value for m in result.measurements}
    for k in (1, 5, 10):
        assert theirs[f"recall_at_{k}"] == pytest.approx(ours[way, f"recall@{k}"], abs=1e-5)  # mteb rounds
    assert 0.02 < theirs["recall_at_1"] < theirs["recall_at_10"] < 0.98


def test_an_item_with_both_is_the_sum_of_its_unit_embeddings(model: FusedEncoder, emoji: Emoji) -> None:
    pictures, names = emoji.pictures["test"][:3], emoji.names["test"][:3]
    both = MTEBForm(model).encode([{"image": pictures, "text": names}])
    image, text = (normalised(x) for x in (model.encode_image(pictures), model.encode_text(names)))
    np.testing.assert_allclose(both, (image + text).numpy(), atol=1e-6)


def test_similarities_are_those_of_the_model(model: FusedEncoder, emoji: Emoji) -> None:
    a = MTEBForm(model).encode([{"text": emoji.names["test"][:2]}, {"text": emoji.names["test"][2:5]}])
    b = MTEBForm(model).encode([{"image": emoji.pictures["test"][:5]}])
    for similarity, cosine in (("dot", False), ("cosine", True)):
        form = MTEBForm(model, similarity=similarity)  # type: ignore[arg-type]
        every = model.similarity(a, b, cosine=cosine)
        torch.testing.assert_close(form.similarity(a, b), every)
        torch.testing.assert_close(form.similarity_pairwise(a, b), every.diagonal())


def test_what_cannot_be_is_said(model: FusedEncoder) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        MTEBForm(model, name="fused")
    with pytest.raises(ConfigError, match="similarity"):
        MTEBForm(model, similarity="euclidean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="audio"):
        MTEBForm(model).encode([{"audio": [1]}])
    with pytest.raises(DataError, match="no batch"):
        MTEBForm(model).encode([])
    with pytest.raises(DataError, match="no pairs"):
        MTEBForm(model).similarity_pairwise(np.zeros((2, 3)), np.zeros((3, 3)))
