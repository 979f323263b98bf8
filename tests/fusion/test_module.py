"""The fusion LightningModule and the streaming road: same bits on every road, files when large, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import TEST, Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.encoders.base import EncoderModule
from krossfuse.features.encoding import Prepare
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.batches import Batch
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.methods import PCAConcatenation
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.plain import fuse_bundle, fuse_rows, fuse_to_file
from krossfuse.fusion.stream import inputs_of, kernel_of

IMAGE_ONLY = InputSpec(cross_modal=12, image_experts={"dino": 16})


def pca(missing: str = "zeros", dim: int = 5) -> PCAConcatenation:
    return PCAConcatenation(inputs=IMAGE_ONLY, dim=dim, missing=missing)


def test_every_road_gives_the_same_bits(toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    module = FusionModule(pca(), block_rows=33).fit(toy_bundle)
    plain = module.fuse(toy_bundle)
    direct = {p: module.method.encode(p.modality, dict(x)) for p, x in toy_bundle.features.items()}
    several = FusionModule(module.method, trainers=TrainerFactory({"accelerator": "cpu", "devices": 4}), block_rows=33)
    predicted = several.fuse(toy_bundle)
    on_device = module.fuse(toy_bundle, keep_on_device=True)
    spilled = module.fuse(toy_bundle, memory_limit=1, folder=tmp_path)
    anonymous = module.fuse(toy_bundle, memory_limit=1)
    assert all(torch.allclose(plain[part], fused, atol=1e-6) for part, fused in direct.items())
    assert set(plain) == set(toy_bundle.features)
    for part, fused in plain.items():
        assert fused.shape == (len(toy_bundle[part]["cross_modal"]), 5)
        for other in (predicted, on_device, spilled, anonymous):
            assert torch.equal(fused, other[part])
    on_disk = np.load(tmp_path / "test.image.npy")
    assert np.array_equal(on_disk, plain[Part(TEST, "image")].numpy())
    assert {p.name for p in tmp_path.glob("*.npy")} >= {"prompts.animal.plain.text.npy", "train.text.npy"}
    assert not list(tmp_path.glob(".*"))


def test_fused_tensors_can_be_trained_on(toy_bundle: FeatureBundle) -> None:
    fused = FusionModule(pca()).fit(toy_bundle).fuse(toy_bundle, parts=[Part(TEST, "image")])
    head = nn.Linear(5, 8)
    head(fused[Part(TEST, "image")]).sum().backward()
    assert head.weight.grad is not None


def test_heads_are_measured_by_trainer_test(toy_bundle: FeatureBundle) -> None:
    module = FusionModule(pca("none"), block_rows=10).fit(toy_bundle)
    head = nn.Linear(5, 8)
    module.add_head("linear", head, label_set="animal")
    figures = module.measure_heads(toy_bundle)
    with torch.no_grad():
        scores = head(module.fuse(toy_bundle)[Part(TEST, "image")])
    labels = toy_bundle.info.labels("animal", Part(TEST, "image"))
    assert figures["linear/top1"] == pytest.approx(float((scores.argmax(1) == labels).float().mean()))
    top5 = (scores.topk(5).indices == labels[:, None]).any(1)
    assert figures["linear/top5"] == pytest.approx(float(top5.float().mean()))


class Means(EncoderModule):
    """A real, if simple, encoder: mean colours of a grid for images, letter counts for texts."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.projection = nn.Linear(12, dim)

    def prepare_image(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((2, 2)), dtype=np.float32)).permute(2, 0, 1)

    def prepare_text(self, texts: Any) -> dict[str, torch.Tensor]:
        return {"counts": torch.tensor([[t.count(c) + 1.0 for c in "abcdefghijkl"] for t in texts])}

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.projection(images.flatten(1) / 255)

    def encode_text(self, batch: Any) -> torch.Tensor:
        return self.projection(batch["counts"])


def test_raw_inputs_end_to_end(toy_bundle: FeatureBundle) -> None:
    encoders = {"cross_modal": Means(12), "dino": Means(16)}
    module = FusionModule(pca(), encoders=encoders).fit(toy_bundle)
    images = [Image.new("RGB", (8, 8), (40 * i, 255 - 40 * i, 9)) for i in range(5)]
    prepare = {modality: Prepare(encoders, modality, 64) for modality in ("image", "text")}
    batch = Batch("image", inputs=prepare["image"].batch([prepare["image"].item(image) for image in images]))
    features = module.features(batch)
    assert torch.equal(features["dino"], encoders["dino"].encode_image(batch.inputs["dino"]))
    expected = module.method.encode("image", features)
    assert torch.equal(module(batch), expected)
    assert torch.equal(module.predict_step(Batch("image", features)), expected)
    texts = prepare["text"].batch(["a bee", "a cab"])
    assert module(Batch("text", inputs={"cross_modal": texts["cross_modal"]})).shape == (2, 5)
    module.train()
    assert not any(encoder.training for encoder in module.encoders)
    assert not any(p.requires_grad for p in module.encoders.parameters())
    with pytest.raises(ConfigError, match=r"no encoder of role \['cross_modal', 'dino'\]"):
        FusionModule(pca())(batch)
    with pytest.raises(ConfigError, match="16 dimensions"):
        FusionModule(pca(), encoders={"cross_modal": Means(16)})
    with pytest.raises(ConfigError, match=r"no parent .* 'dinosaur'"):
        FusionModule(pca(), encoders={"dinosaur": Means(16)})


def test_bad_heads(toy_bundle: FeatureBundle) -> None:
    module = FusionModule(pca("none")).fit(toy_bundle)
    with pytest.raises(ConfigError, match="does not take 5 features"):
        module.add_head("wide", nn.Linear(6, 8), label_set="animal")
    with pytest.raises(ConfigError, match="modality='text'"):
        module.add_head("text", nn.Linear(5, 8), label_set="animal", modality="text")
    module.add_head("good", nn.Linear(5, 8), label_set="plant")
    with pytest.raises(DataError, match="label set 'plant'"):
        module.measure_heads(toy_bundle)
    with pytest.raises(ConfigError, match="must be new"):
        module.add_head("good", nn.Linear(5, 8), label_set="animal")


def test_misfits_are_named_before_any_work(toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    method = fit_method(pca(), toy_bundle)
    x = toy_bundle[Part(TEST, "image")]
    with pytest.raises(DataError, match=r"'dino'.* are missing"):
        fuse_rows(method, "image", {"cross_modal": x["cross_modal"]})
    with pytest.raises(DataError, match=r"expected \(n, 16\)"):
        fuse_rows(method, "image", {**x, "dino": x["dino"][:, 1:]})
    with pytest.raises(DataError, match="same number of rows"):
        fuse_rows(method, "image", {**x, "dino": x["dino"][1:]})
    broken = {role: tensor.clone() for role, tensor in x.items()}
    broken["dino"][40, 3] = torch.nan
    with pytest.raises(DataError, match=r"'dino'.*NaN"):
        fuse_to_file(method, "image", broken, tmp_path / "x.npy", block_rows=16)
    assert not list(tmp_path.iterdir()), "a failed job must leave nothing half-written"
    with pytest.raises(DataError, match="no features for trial:image"):
        fuse_bundle(method, toy_bundle, parts=[Part("trial", "image")])


class Spy(PCAConcatenation):
    """Keeps what fit was given."""

    def fit(self, image: Any = None, text: Any = None, *, labels: Any = None) -> Spy:
        self.seen = {"image": image, "text": text, "labels": labels}
        return self


def test_fit_sees_a_random_subset(toy_bundle: FeatureBundle) -> None:
    def seen(bundle: FeatureBundle, **options: Any) -> dict[str, Any]:
        spy = Spy(inputs=IMAGE_ONLY, dim=5, missing="zeros")
        fit_method(spy, bundle, label_set="animal", **options)
        return spy.seen

    few, again = (seen(toy_bundle, max_rows=50, seed=1) for _ in "12")
    assert len(few["image"]["dino"]) == len(few["text"]["cross_modal"]) == 50
    assert torch.equal(few["image"]["dino"], again["image"]["dino"])
    assert few["labels"] is None, "a label-free method gets no labels"
    assert len(seen(toy_bundle)["image"]["dino"]) == 160
    no_texts = {part: x for part, x in toy_bundle.features.items() if part != Part("train", "text")}
    bundle = FeatureBundle(toy_bundle.info, "toy_pair", no_texts)
    prompts = toy_bundle[Part.prompts("animal", "plain")]["cross_modal"]
    assert torch.equal(seen(bundle)["text"]["cross_modal"], prompts)


def test_trained_methods_see_all_rows_and_their_sides_labels(toy_bundle: FeatureBundle) -> None:
    info = toy_bundle.info
    caption_of = {split: torch.arange(len(rows)).flip(0) for split, rows in info.caption_of.items()}
    bundle = FeatureBundle(DatasetInfo("toy", {}, info.label_sets, caption_of), "toy_pair", toy_bundle.features)
    labels = info.label_sets["animal"].labels["train"]
    text_only = InputSpec(cross_modal=12, text_experts={"minilm": 10})
    for inputs, expected in ((IMAGE_ONLY, labels), (text_only, labels.flip(0))):
        spy = Spy(inputs=inputs, dim=5, missing="zeros")
        spy.trained = True
        fit_method(spy, bundle, label_set="animal", max_rows=50)
        assert torch.equal(spy.seen["labels"], expected)
    with pytest.raises(DataError, match="no label set 'plant'"):
        fit_method(spy, bundle, label_set="plant")
    several = LabelSet(tuple("ab"), {"train": torch.ones(160, 2, dtype=torch.bool)}, multilabel=True)
    with pytest.raises(DataError, match="several labels"):
        fit_method(spy, FeatureBundle(DatasetInfo("toy", {}, {"m": several}), "p", bundle.features), label_set="m")


def test_inputs_of_a_bundle(toy_bundle: FeatureBundle) -> None:
    assert inputs_of(toy_bundle) == InputSpec(12, {"dino": 16}, {"minilm": 10})
    part = Part(TEST, "image")
    bad = FeatureBundle(toy_bundle.info, "p", {**toy_bundle.features, part: {"cross_modal": torch.ones(64, 13)}})
    with pytest.raises(DataError, match="13 dimensions for images"):
        inputs_of(FeatureBundle(bad.info, "p", {part: bad[part], Part(TEST, "text"): bad[Part(TEST, "text")]}))


def test_kernel_of_rows_of_parts(toy_bundle: FeatureBundle) -> None:
    from krossfuse.fusion.methods import AverageKernel

    assert kernel_of(fit_method(pca(), toy_bundle), toy_bundle) is None
    method = AverageKernel(inputs=IMAGE_ONLY, missing="zeros")
    kernel = kernel_of(method, toy_bundle)
    assert kernel is not None
    fused = fuse_bundle(method, toy_bundle)
    image, text = Part(TEST, "image"), Part(TEST, "text")
    rows_a, rows_b = torch.tensor([3, 1]), torch.tensor([0, 2, 2])
    for part in (image, text):
        expected = fused[image][rows_a] @ fused[part][rows_b].T
        assert torch.allclose(kernel(image, rows_a, part, rows_b), expected, atol=1e-6)
