"""CLIP_benchmark evaluates a saved model, on data in its own format, and finds what our probes find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluators.conftest import Emoji, measured, space_of

from krossfuse.core.errors import ConfigError, StoreError
from krossfuse.model.clip_benchmark import load, main
from krossfuse.model.encoder import FusedEncoder
from krossfuse.probes import Retrieval, ZeroShot

TEMPLATES = ["{}", "an emoji of {}", "a picture of {}"]
OPTIONS = ["--no_amp", "--num_workers", "0", "--batch_size", "32", "--quiet"]


class Pairs(list):
    """A data set as CLIP_benchmark's converter takes it."""


def evaluated(folder: Path, root: Path, task: str, *options: str) -> dict[str, float]:
    out = root / f"{task}.json"
    main([
        "eval", "--model", str(folder), "--dataset", "wds/emoji", "--dataset_root", str(root), "--task", task,
        "--output", str(out), *OPTIONS, *options,
    ])  # fmt: skip
    return dict(json.loads(out.read_text())["metrics"])


def test_zero_shot_classification(
    folder: Path, model: FusedEncoder, emoji: Emoji, images: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from clip_benchmark import webdataset_builder as builder

    pairs = Pairs(zip(emoji.pictures["test"], emoji.labels["test"], strict=True))
    pairs.classes, pairs.templates = emoji.classes, [t.replace("{}", "{c}") for t in TEMPLATES]  # type: ignore[attr-defined]
    builder.convert_dataset(pairs, "test", tmp_path, transform=builder.PIL_to_bytes("png"), image_format="png")
    theirs = evaluated(folder, tmp_path, "zeroshot_classification")
    space = space_of(model, emoji, {"image": images}, templates=TEMPLATES)
    ours = measured(ZeroShot(similarity="cosine").evaluate(space, seed=0))
    assert theirs["acc1"] == pytest.approx(ours["accuracy"], abs=1e-6)
    assert theirs["acc5"] == pytest.approx(ours["top5_accuracy"], abs=1e-6)
    assert theirs["mean_per_class_recall"] == pytest.approx(ours["mean_per_class_accuracy"], abs=1e-6)
    assert 1 / len(emoji.classes) < ours["accuracy"] < ours["top5_accuracy"] < 1


def test_retrieval_with_several_captions(
    folder: Path, model: FusedEncoder, emoji: Emoji, images: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from clip_benchmark import webdataset_builder as builder

    captions = [[name, f"a picture of {name}"][: 1 + row % 2] for row, name in enumerate(emoji.names["test"])]
    pairs = Pairs(zip(emoji.pictures["test"], captions, strict=True))
    builder.convert_retrieval_dataset(
        pairs, "test", tmp_path, transform=builder.PIL_to_bytes("png"), image_format="png"
    )
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    theirs = evaluated(folder, tmp_path, "zeroshot_retrieval", "--recall_k", "1", "5", "10")
    caption_of = torch.tensor([row for row, of in enumerate(captions) for _ in of])
    texts = {"test": model.encode_text([text for of in captions for text in of])}
    space = space_of(model, emoji, {"image": {"test": images["test"]}, "text": texts}, caption_of=caption_of)
    result = Retrieval(ks=[1, 5, 10], similarity="cosine").evaluate(space, seed=0)
    ours = {(m.modality, m.metric): m.value for m in result.measurements}
    for k in (1, 5, 10):
        assert theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours["text->image", f"recall@{k}"], abs=1e-6)
        assert theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours["image->text", f"recall@{k}"], abs=1e-6)
    assert 0.02 < theirs["image_retrieval_recall@1"] < theirs["image_retrieval_recall@10"] < 0.98


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no config\.json"):
        load(str(tmp_path))


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"krossfuse\[clip-benchmark\]"):
        main(["eval"])
