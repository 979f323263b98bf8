"""A fused encoder, fitted on emoji and saved; and what our own probes are given of the same items."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.data.openmoji import RenderedEmoji, split_emoji
from krossfuse.encoders.bundled import EfficientNetLite0, OpenMojiCLIP
from krossfuse.encoders.pair import Pair
from krossfuse.fusion import CentredKernel, InputSpec, RPKrossFuse, SpectralSketch
from krossfuse.model.encoder import FusedEncoder
from krossfuse.probes import EmbeddingSpace

LIMIT = 120
# `make test-evaluators` has both, in an environment of its own.
SUITES = ("mteb", "clip_benchmark")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, SUITES)) else ["test_*.py"]


@dataclass(frozen=True)
class Emoji:
    """Pictures, names and groups of the emoji of each split."""

    pictures: dict[str, list[Image.Image]]
    names: dict[str, list[str]]
    labels: dict[str, list[int]]
    classes: list[str]


@pytest.fixture(scope="session")
def emoji() -> Emoji:
    splits = split_emoji(LIMIT)
    classes = sorted({e.group for e in splits["train"]})
    return Emoji(
        {split: list(RenderedEmoji(of, 224)) for split, of in splits.items()},
        {split: [e.name for e in of] for split, of in splits.items()},
        {split: [classes.index(e.group) for e in of] for split, of in splits.items()},
        [name.lower() for name in classes],
    )


@pytest.fixture(scope="session")
def model(emoji: Emoji) -> FusedEncoder:
    """The preset, fitted on the training emoji."""
    pair = Pair(name="openmoji", cross_modal=OpenMojiCLIP(), image_experts={"net": EfficientNetLite0()})
    fusion = RPKrossFuse(
        inputs=InputSpec(cross_modal=256, image_experts={"net": 1280}), dim=512, alignment="exact",
        sketch=SpectralSketch, C="variance", expert_weight=4.0, expert_kernel=CentredKernel,
        product_kernel=CentredKernel,
    )  # fmt: skip
    made = FusedEncoder(pair, fusion)
    fusion.fit(image=made.encode_parents("image", emoji.pictures["train"]))
    return FusedEncoder(pair, fusion)


@pytest.fixture(scope="session")
def folder(model: FusedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, saved."""
    made = tmp_path_factory.mktemp("evaluated") / "fused"
    model.save_pretrained(made)
    return made


@pytest.fixture(scope="session")
def images(model: FusedEncoder, emoji: Emoji) -> dict[str, torch.Tensor]:
    return {split: model.encode_image(pictures) for split, pictures in emoji.pictures.items()}


@pytest.fixture(scope="session")
def texts(model: FusedEncoder, emoji: Emoji) -> dict[str, torch.Tensor]:
    return {split: model.encode_text(names) for split, names in emoji.names.items()}


def space_of(
    model: FusedEncoder,
    emoji: Emoji,
    parts: dict[str, dict[str, torch.Tensor]],
    *,
    templates: list[str] | None = None,
    caption_of: torch.Tensor | None = None,
) -> EmbeddingSpace:
    """Return the space of embeddings by modality and split, with class texts of the templates."""
    labels = {split: torch.tensor(of) for split, of in emoji.labels.items()}
    made = {Part(split, modality): x for modality, of in parts.items() for split, x in of.items()}
    prompts = {}
    if templates:
        said = [template.format(name) for name in emoji.classes for template in templates]
        owner = torch.arange(len(emoji.classes)).repeat_interleave(len(templates))
        prompts["default"] = Prompts(tuple(said), owner, tuple(templates))
        made[Part("prompts/group/default", "text")] = model.encode_text(said)
    sets = {"group": LabelSet(tuple(emoji.classes), labels, prompts)}
    captions = {} if caption_of is None else {"test": caption_of}
    return EmbeddingSpace(DatasetInfo("emoji", {}, sets, captions), made)


def measured(result: object) -> dict[str, float]:
    """Return the values of a probe's measurements by metric."""
    return {m.metric: m.value for m in result.measurements}  # type: ignore[attr-defined]
