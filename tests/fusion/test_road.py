"""The one road: raw items and stored features enter the same module and give the same figures; heads train on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import TEST, TRAIN, Part
from krossfuse.core.trainers import TrainerFactory, quiet
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import EncoderModule
from krossfuse.fusion import InputSpec, NystromSketch, RPKrossFuse, UniformSketch
from krossfuse.fusion.batches import sizes_of
from krossfuse.fusion.module import FusionModule

DIMS = {"cross_modal": 12, "dino": 16}
INPUTS = InputSpec(cross_modal=12, image_experts={"dino": 16})
CLASSES = 4


class Means(EncoderModule):
    """A real, if simple, encoder: mean colours of a grid for images, letter counts for texts."""

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        self.dim = dim
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(dim, 12, generator=generator))
        self.seen = 0

    def prepare_image(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((2, 2)), dtype=np.float32)).permute(2, 0, 1)

    def prepare_text(self, texts: Any) -> dict[str, Tensor]:
        return {"counts": torch.tensor([[t.count(c) + 1.0 for c in "abcdefghijkl"] for t in texts])}

    def encode_image(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return torch.tanh(images.flatten(1) / 255 - 0.5) @ self.get_buffer("weight").T

    def encode_text(self, batch: Any) -> Tensor:
        weight = self.get_buffer("weight")
        return batch["counts"].to(weight) @ weight.T


class Colours(BaseDataModule):
    """Noisy images of four colours, with captions."""

    sizes = {"train": 60, "val": 8, "test": 20}  # noqa: RUF012 - read only

    def __init__(self, broken: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.broken = broken

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Any]]]:
        items: dict[Part, Sequence[Any]] = {}
        labels = {}
        for split, n in self.sizes.items():
            labels[split] = torch.arange(n) % CLASSES
            items[Part(split, "image")] = _Images(n, len(split), self.broken if split == "test" else None)
            items[Part(split, "text")] = [f"{'abcd'[i % CLASSES] * 5} {i}" for i in range(n)]
        label_set = LabelSet(("red", "green", "blue", "grey"), labels)
        return DatasetInfo(
            "colours", {}, {"colour": label_set}, {s: torch.arange(n) for s, n in self.sizes.items()}
        ), items


class _Images(Sequence[Any]):
    def __init__(self, n: int, seed: int, broken: int | None) -> None:
        self.n, self.seed, self.broken = n, seed, broken

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> Image.Image:
        if index >= self.n:
            raise IndexError
        if index == self.broken:
            raise DataError(f"image {index} cannot be read")
        noise = np.random.default_rng([self.seed, index]).integers(0, 120, (8, 8, 3))
        base = np.zeros((8, 8, 3), int)
        base[..., index % CLASSES if index % CLASSES < 3 else slice(None)] = 120
        return Image.fromarray((base + noise).astype(np.uint8))


def module_of(method: RPKrossFuse, **options: Any) -> FusionModule:
    encoders = {role: Means(dim, i) for i, (role, dim) in enumerate(DIMS.items())}
    return FusionModule(method, encoders=encoders, **options)


def stored(data: Colours) -> FeatureBundle:
    """Encode every item by itself, by hand."""
    encoders = {role: Means(dim, i) for i, (role, dim) in enumerate(DIMS.items())}
    features: dict[Part, dict[str, Tensor]] = {}
    for part in data.parts():
        roles = DIMS if part.modality == "image" else ["cross_modal"]
        for role in roles:
            e = encoders[role]
            items = list(data.items(part))
            features.setdefault(part, {})[role] = (
                e.encode_image(torch.stack([e.prepare_image(x) for x in items]))
                if part.modality == "image"
                else e.encode_text(e.prepare_text(items))
            )
    return FeatureBundle(data.info, "toy", features)


def method(**options: Any) -> RPKrossFuse:
    return RPKrossFuse(inputs=INPUTS, **{"dim": 60, "alignment": "exact", "sketch": UniformSketch, **options})


def sgd(parameters: list[nn.Parameter]) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=1.0, momentum=0.9)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)}


@pytest.mark.parametrize("workers", [0, 2])
def test_raw_images_to_figures_without_a_store(workers: int) -> None:
    data = Colours(batch_size=16, num_workers=workers)
    figures = {}
    for name, source in (("raw", data), ("stored", stored(data))):
        module = module_of(method()).fit(source)
        torch.manual_seed(0)
        module.add_head("linear", nn.Linear(60, CLASSES), label_set="colour")
        module.add_head("text", nn.Linear(60, CLASSES), label_set="colour", modality="text")
        module.train_heads(source, sgd, epochs=6, batch_size=20, seed=3)
        measured = module.measure_heads(source)
        figures[name] = (measured, module.fuse(source), module.heads.head("linear").weight)
    raw, by_hand = figures["raw"], figures["stored"]
    assert raw[0] == by_hand[0]
    assert set(raw[0]) == {"linear/top1", "text/top1"}  # of four classes, five are no measurement
    assert raw[0]["linear/top1"] > 0.9
    assert set(raw[1]) == set(data.parts())
    for part, fused in raw[1].items():
        assert torch.allclose(fused, by_hand[1][part], atol=1e-6)
    assert torch.allclose(raw[2], by_hand[2], atol=1e-5)


def test_the_fit_encodes_only_what_it_sees() -> None:
    data = Colours(batch_size=16, num_workers=0)
    module = module_of(method(dim=20, sketch=NystromSketch)).fit(data, max_rows=30, seed=5)
    encoder = module.encoders[0]
    assert isinstance(encoder, Means)
    assert encoder.seen == 30
    same = module_of(method(dim=20, sketch=NystromSketch)).fit(stored(data), max_rows=30, seed=5)
    a, b = module.fuse(data), same.fuse(stored(data))
    assert all(torch.allclose(a[part], b[part], atol=1e-6) for part in a)


class Classifier(pl.LightningModule):
    """Somebody else's head, which trains on embeddings that only stream."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CLASSES, dim))
        self.rows = 0

    def training_step(self, batch: tuple[Tensor, Mapping[str, Tensor]]) -> Tensor:
        x, labels = batch
        self.rows += len(x)
        return nn.functional.cross_entropy(x @ self.weight.T, labels["colour"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0, momentum=0.9)


@pytest.mark.parametrize("raw", [True, False])
def test_a_stream_trains_another_module_and_is_the_fused_part(raw: bool) -> None:
    data = Colours(batch_size=16, num_workers=0)
    source = data if raw else stored(data)
    module = module_of(method()).fit(source)
    part = Part(TRAIN, "image")
    whole = module.fuse(source, parts=[part])[part]
    stream = module.stream(source, part, ["colour"], batch_size=24)
    assert (stream.rows, stream.dim, len(stream)) == (60, 60, 3)
    for _ in "12":  # in order, whenever it is walked
        batches = list(stream)
        assert [len(x) for x, _ in batches] == [24, 24, 12]
        assert torch.allclose(torch.cat([x for x, _ in batches]), whole, atol=1e-6)
        assert torch.equal(torch.cat([y["colour"] for _, y in batches]), torch.arange(60) % CLASSES)
    shuffled = module.stream(source, part, ["colour"], batch_size=24, seed=1)
    first, second = (torch.cat([x for x, _ in shuffled]) for _ in "12")
    assert not torch.allclose(first, second)
    assert torch.allclose(first.sum(0), whole.sum(0), atol=1e-4)
    assert not any(x.requires_grad for x, _ in shuffled)
    head = Classifier(stream.dim)
    with quiet():
        TrainerFactory()(max_epochs=8).fit(head, shuffled)
    assert head.rows == 8 * 60
    test = module.fuse(source, parts=[Part(TEST, "image")])[Part(TEST, "image")]
    assert float(((test @ head.weight.T).argmax(1) == torch.arange(20) % CLASSES).float().mean()) > 0.9


class Shared(nn.Module):
    """Two label sets under one matrix product, with the loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(60, 2 * CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


def shared_loss(scores: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(scores[:, :CLASSES], labels["colour"])


def test_heads_train_alone_and_reach_the_tracker(tmp_path: Path) -> None:
    bundle = stored(Colours(num_workers=0))
    logger = CSVLogger(tmp_path, name="run", version="")
    trainers = TrainerFactory(logger=lambda: logger)
    module = FusionModule(method(), trainers=trainers).fit(bundle)
    before = {name: tensor.clone() for name, tensor in module.method.state_dict().items()}
    module.add_head("linear", nn.Linear(60, CLASSES), label_set="colour")
    module.add_head("shared", Shared(), label_set=["colour"], loss=shared_loss)
    module.train_heads(bundle, partial(torch.optim.SGD, lr=0.5), epochs=4, batch_size=16, log_every_n_steps=1)
    assert all(torch.equal(before[n], t) for n, t in module.method.state_dict().items()), "the fusion is frozen"
    logged = (tmp_path / "run" / "metrics.csv").read_text()
    assert "linear/loss" in logged
    assert "shared/loss" in logged
    assert set(module.measure_heads(bundle)) == {"linear/top1"}
    weight = module.heads.head("linear").weight.clone()
    module.train_heads(bundle, partial(torch.optim.SGD, lr=0.5), heads=["shared"], batch_size=16)
    assert torch.equal(weight, module.heads.head("linear").weight), "a head that does not train stays as it is"
    with pytest.raises(ConfigError, match="needs a loss of its own"):
        module.add_head("two", Shared(), label_set=["colour", "shape"])
    with pytest.raises(ConfigError, match="head='liner'"):
        module.train_heads(bundle, sgd, heads=["liner"])


def test_the_users_trainer_runs_everything() -> None:
    class Count(pl.Callback):
        predicted = trained = tested = 0

        def on_predict_start(self, *_: Any) -> None:
            self.predicted += 1

        def on_train_start(self, *_: Any) -> None:
            self.trained += 1

        def on_test_start(self, *_: Any) -> None:
            self.tested += 1

    count, bundle = Count(), stored(Colours(num_workers=0))
    trainers = TrainerFactory({"accelerator": "cpu", "devices": 2, "callbacks": [count], "limit_predict_batches": 1})
    module = FusionModule(method(), trainers=trainers, block_rows=7).fit(bundle)
    assert len(module.fuse(bundle)[Part(TRAIN, "image")]) == 60, "a limit of batches is no way to lose rows"
    module.add_head("linear", nn.Linear(60, CLASSES), label_set="colour")
    module.train_heads(bundle, sgd)
    module.measure_heads(bundle)
    assert (count.predicted, count.trained, count.tested) == (1, 1, 1)


def test_errors_name_item_part_and_what_is_missing() -> None:
    for workers in (0, 1):
        data = Colours(broken=9, batch_size=4, num_workers=workers)
        module = module_of(method()).fit(data)
        with pytest.raises(DataError, match=r"image 9 cannot be read") as error:
            module.fuse(data)
        assert "Traceback" not in str(error.value)
    with pytest.raises(ConfigError, match="no encoder of role 'cross_modal'"):
        FusionModule(method()).fit(data)
    with pytest.raises(DataError, match=r"trial:image is not there; there are \['train:image'"):
        module.fuse(data, parts=[Part("trial", "image")])
    with pytest.raises(DataError, match="no label set 'shape'; it has .*colour"):
        module.loader(data, Part(TEST, "image"), ["shape"])
    assert sizes_of(data) == {p: len(data.items(p)) for p in data.parts()}


@pytest.mark.slow
def test_the_bundled_pair_streams_emoji(tmp_path: Path) -> None:
    from krossfuse.data.openmoji import OpenMoji
    from krossfuse.encoders.bundled import EfficientNetLite0, OpenMojiCLIP
    from krossfuse.encoders.pair import Pair
    from krossfuse.features.extract import extract
    from krossfuse.features.stores import open_store

    data = OpenMoji(limit=10, num_workers=0)
    experts = {"efficientnet_lite0": EfficientNetLite0()}
    pair = Pair(name="openmoji_image", cross_modal=OpenMojiCLIP(), image_experts=experts)
    bundle = extract(data, pair, open_store(str(tmp_path)), progress=False)
    encoders = {role: encoder.load() for role, encoder in pair.encoders("image").items()}
    dims = {role: encoder.dim for role, encoder in encoders.items()}
    cross = dims.pop("cross_modal")
    name = next(iter(bundle.info.label_sets))
    figures, parts = {}, {}
    for kind, source in (("raw", data), ("stored", bundle)):
        fusion = RPKrossFuse(inputs=InputSpec(cross, dims), dim=cross + 64, alignment="exact", C=0.1, expert_weight=3.0)
        module = FusionModule(fusion, encoders=encoders if kind == "raw" else None).fit(source)
        torch.manual_seed(0)
        module.add_head("linear", nn.Linear(cross + 64, len(bundle.info.label_sets[name].classes)), label_set=name)
        module.train_heads(source, partial(torch.optim.SGD, lr=1.0), epochs=2, batch_size=8)
        figures[kind] = module.measure_heads(source)
        parts[kind] = module.fuse(source, parts=[Part(TEST, "image"), Part(TEST, "text")])
    assert figures["raw"] == figures["stored"]
    for part, fused in parts["raw"].items():
        assert torch.equal(fused, parts["stored"][part]), "the very bits of the stored road"
