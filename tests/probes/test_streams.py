"""Embeddings that only stream: the same heads and measurements as when they are held."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import TRAIN, Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.fusion import InputSpec, RPKrossFuse
from krossfuse.fusion.module import FusionModule
from krossfuse.probes import LinearProbe, SGDProbe, StreamedHeads
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.space import EmbeddingSpace, HeldStream
from krossfuse.probes.streamed import SGDSetting

SIZES = {"train": 150, "val": 60, "test": 90}
IMAGES = Part(TRAIN, "image")


def make_bundle() -> FeatureBundle:
    g = torch.Generator().manual_seed(0)
    labels = {split: torch.arange(n) % 4 for split, n in SIZES.items()}
    hidden = {split: torch.where(torch.arange(len(y)) % 3 == 0, -1, y % 2) for split, y in labels.items()}
    tags = {split: torch.stack([y < 2, y == 3], 1) for split, y in labels.items()}
    centres = {"cross_modal": torch.randn(4, 6, generator=g), "dino": torch.randn(4, 8, generator=g)}
    features = {
        Part(split, "image"): {
            role: centre[y] + torch.randn(len(y), centre.shape[1], generator=g) for role, centre in centres.items()
        }
        for split, y in labels.items()
    }
    sets = {
        "kind": LabelSet(tuple("abcd"), labels),
        "hidden": LabelSet(("even", "odd"), hidden),
        "tags": LabelSet(("low", "high"), tags, multilabel=True),
    }
    return FeatureBundle(DatasetInfo("toy", {}, sets), "none", features)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def spaces() -> tuple[EmbeddingSpace, EmbeddingSpace]:
    """The same fused embeddings, held and streamed."""
    bundle = make_bundle()
    method = RPKrossFuse(inputs=InputSpec(cross_modal=6, image_experts={"dino": 8}), dim=40, seed=0)
    module = FusionModule(method).fit(bundle)
    held = EmbeddingSpace(bundle.info, module.fuse(bundle))
    streams = {part: partial(module.stream, bundle, part) for part in held.parts}
    return held, EmbeddingSpace(bundle.info, {}, streams=streams)


def probe(**more: object) -> SGDProbe:
    settings: dict[str, object] = {"learning_rates": [0.3, 3.0], "weight_decays": [0.0, 1e-3], "epochs": 5}
    return SGDProbe(**(settings | {"batch_size": 32} | more))  # type: ignore[arg-type]


def heads(result: ProbeResult) -> dict[str, list[Tensor]]:
    return {name: list(head.state_dict().values()) for name, head in result.heads.items()}


def test_training_on_a_stream_gives_the_heads_of_training_on_the_whole(
    spaces: tuple[EmbeddingSpace, EmbeddingSpace],
) -> None:
    held, streamed = spaces
    one, other = (probe().evaluate(space, seed=3) for space in (held, streamed))
    assert set(one.heads) == {"kind/image", "hidden/image", "tags/image"}
    for name, tensors in heads(one).items():
        for a, b in zip(tensors, heads(other)[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    values = [[(m.metric, m.label_set, m.value) for m in result.measurements] for result in (one, other)]
    assert values[0] == values[1]


def test_a_stream_of_the_same_bits_gives_heads_of_the_same_bits(spaces: tuple[EmbeddingSpace, EmbeddingSpace]) -> None:
    held, _ = spaces
    info = held.info

    def maker(
        part: Part, label_sets: Iterable[str] = (), *, batch_size: int | None = None, seed: int | None = None
    ) -> HeldStream:
        labels = {name: info.labels(name, part) for name in label_sets}
        return HeldStream(held[part], labels, part, batch_size=batch_size or 64, seed=seed)

    streamed = EmbeddingSpace(info, {}, streams={part: partial(maker, part) for part in held.parts})
    one, other = (probe().evaluate(space, seed=3) for space in (held, streamed))
    for name, tensors in heads(one).items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, heads(other)[name], strict=True))


def test_the_heads_attach_to_the_fusion_module() -> None:
    bundle = make_bundle()
    method = RPKrossFuse(inputs=InputSpec(cross_modal=6, image_experts={"dino": 8}), dim=40, seed=0)
    module = FusionModule(method).fit(bundle)
    settings = [SGDSetting(1.0, 0.0), SGDSetting(0.1, 1e-3)]
    names = list(bundle.info.label_sets)
    x = module.fuse(bundle)[IMAGES]
    scale = float(x.double().square().sum(1).mean().rsqrt())
    attached, alone = (StreamedHeads(x.shape[1], bundle.info.label_sets, settings, scale=scale) for _ in range(2))
    module.add_head("sgd", attached, label_set=names, loss=attached.loss)
    steps = 4 * len(module.stream(bundle, IMAGES, batch_size=32, seed=1))
    module.train_heads(bundle, lambda _: attached.optimisers(steps), epochs=4, batch_size=32, seed=1)
    # The same by hand.
    labels = {name: bundle.info.labels(name, IMAGES) for name in names}
    stream = HeldStream(x, labels, IMAGES, batch_size=32, seed=1)
    made = alone.optimisers(steps)
    for _ in range(4):
        for batch, own in stream:
            made["optimizer"].zero_grad()
            alone.loss(alone(batch), own).backward()
            made["optimizer"].step()
            made["lr_scheduler"]["scheduler"].step()
    for name in names:
        for a, b in zip(attached.fitted(name), alone.fitted(name), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    scores = x @ attached.fitted("kind")[0][0].T + attached.fitted("kind")[1][0]
    assert float((scores.argmax(1) == labels["kind"]).double().mean()) > 0.9


def test_each_head_learns_alone(spaces: tuple[EmbeddingSpace, EmbeddingSpace]) -> None:
    held, _ = spaces
    together = probe().evaluate(held, seed=0)
    alone = probe(label_sets=["hidden"]).evaluate(held, seed=0)
    for a, b in zip(heads(together)["hidden/image"], heads(alone)["hidden/image"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_probes_that_need_the_whole_say_that_it_only_streams(spaces: tuple[EmbeddingSpace, EmbeddingSpace]) -> None:
    _, streamed = spaces
    reason = str(LinearProbe().why_not(streamed))
    assert "['train:image', 'test:image'] only stream" in reason
    assert probe().applies(streamed)
    with pytest.raises(DataError, match="it is only streamed"):
        streamed[IMAGES]


def test_reading_rows_of_a_stream_gives_those_rows(spaces: tuple[EmbeddingSpace, EmbeddingSpace]) -> None:
    held, streamed = spaces
    rows = torch.tensor([0, 7, 31, 32, 149])
    one, other = (torch.cat(list(space.read(IMAGES, rows))) for space in spaces)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert held.count(IMAGES) == streamed.count(IMAGES) == 150


def test_training_goes_through_the_factory_and_is_logged(
    spaces: tuple[EmbeddingSpace, EmbeddingSpace], tmp_path: Path
) -> None:
    logger = CSVLogger(str(tmp_path), name="run", version="1")
    seen: list[str] = []

    class Sees(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(str(trainer.strategy.root_device))

    options = {"accelerator": "cpu", "devices": 1, "callbacks": [Sees()]}
    held = EmbeddingSpace(spaces[0].info, spaces[0].parts, trainers=TrainerFactory(options, logger=lambda: logger))
    logged = probe(label_sets=["kind", "tags"]).evaluate(held, seed=0)
    assert seen == ["cpu"]
    logger.save()
    rows = (tmp_path / "run" / "1" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("sgd_probe/kind/image/train_loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert "sgd_probe/tags/image/train_loss" in rows[0]
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 2
    plain = probe(label_sets=["kind", "tags"], accelerator="cpu").evaluate(spaces[0], seed=0)
    assert [m.value for m in plain.measurements] == [m.value for m in logged.measurements]
    with pytest.raises(ConfigError, match="sgd_probe, accelerator='tpu'"):
        probe(accelerator="tpu").evaluate(held, seed=0)
