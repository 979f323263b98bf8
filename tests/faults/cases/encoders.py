"""Pairs of encoders: names, folders and weights that are not there or not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faults.case import Case, Made
from faults.files import IMAGES, images

ENCODERS = "encoders"
HF = "krossfuse.encoders.transformers_adapter.HFImage"


def of(name: str, *words: str | tuple[str, ...], run: tuple[str, ...], **more: Any) -> Case:
    """Return a case of a pair on a folder of images."""
    more.setdefault("files", images())
    return Case(id=name, room=ENCODERS, run=[*IMAGES, *run], words=words, **more)


def with_file(path: str, content: bytes) -> Any:
    def write(folder: Path, made: Made) -> None:
        images()(folder, made)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)

    return write


def model_of(weights: bytes | None) -> Any:
    """Return what writes a model folder as transformers has it, with these bytes as its weights."""

    def write(folder: Path, made: Made) -> None:
        images()(folder, made)
        model = folder / "model"
        model.mkdir()
        vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
               "intermediate_size": 16, "image_size": 32, "patch_size": 16, "architectures": ["ViTModel"]}  # fmt: skip
        (model / "config.json").write_text(json.dumps(vit))
        (model / "preprocessor_config.json").write_text(json.dumps({
            "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32},
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))  # fmt: skip
        if weights is not None:
            (model / "model.safetensors").write_bytes(weights)

    return write


DINO = ("pair=clip_dinov2", "pair.cross_modal._target_=krossfuse.encoders.bundled.OpenMojiCLIP",
        "~pair.cross_modal.architecture", "~pair.cross_modal.pretrained", "~pair.cross_modal.name",
        "pair.cross_modal.about.dim=null", "fusion=image_expert")  # fmt: skip
"""A pair whose image expert is transformers'; the bundled encoder stands beside it, so that nothing is fetched."""

CASES = [
    of(
        "hub-without-a-network",
        "clip",
        ("hub", "Hugging Face"),
        ("HF_HOME", "local", "path", "folder"),
        run=("pair=clip_dinov2",),
        process=True,
        environment={"HF_HOME": "none"},
        timeout=120,
    ),
    of("expert-from-the-hub-without-a-network", "facebook/dinov2-base", "Hugging Face hub", "HF_HOME", run=DINO),
    of(
        "model-folder-not-there",
        "model='./nowhere'",
        "folder",
        "OWNER/NAME",
        run=(*DINO, "pair.image_experts.dinov2.model=./nowhere"),
        short=True,
    ),
    of(
        "model-folder-without-weights",
        "model",
        "safetensors",
        run=(*DINO, "pair.image_experts.dinov2.model=model"),
        files=model_of(None),
    ),
    of(
        "model-folder-with-damaged-weights",
        "model",
        ("cannot be loaded", "cannot load", "damaged"),
        run=(*DINO, "pair.image_experts.dinov2.model=model"),
        files=model_of(b"\0" * 100),
    ),
    of("pooling", "pooling='clss'", "did you mean 'cls'", run=(*DINO, "pair.image_experts.dinov2.pooling=clss")),
    of(
        "architecture",
        "ViT-B-33",
        "did you mean",
        run=(
            "pair=clip_dinov2",
            "pair.cross_modal.architecture=ViT-B-33",
            "pair.cross_modal.pretrained=laion2b_s34b_b79k",
        ),
    ),
    of("pretrained", "openay", "openai", run=("pair=clip_dinov2", "pair.cross_modal.pretrained=openay")),
    of("weights-not-there", "weights", "nowhere.safetensors", run=("pair.cross_modal.weights=nowhere.safetensors",)),
    of(
        "weights-damaged",
        "weights",
        "broken.safetensors",
        run=("pair.cross_modal.weights=broken.safetensors",),
        files=with_file("broken.safetensors", b"\0" * 500),
    ),
    of(
        "weights-are-a-folder",
        "weights='images'",
        "folder",
        never=("no such file",),
        run=("pair.cross_modal.weights=images",),
    ),
    of("max-length-zero", "max_length=0", "positive", run=("pair.cross_modal.max_length=0",)),
    of("max-length-too-large", "max_length=100000", run=("pair.cross_modal.max_length=100000",)),
    of(
        "timm-without-a-tag",
        "resnet50",
        "tag",
        run=("+pair.image_experts.t={_target_: krossfuse.encoders.timm_adapter.Timm, model: resnet50}",),
    ),
    of(
        "timm-checkpoint-not-there",
        "no such file",
        "nowhere.pth",
        run=(
            "+pair.image_experts.t={_target_: krossfuse.encoders.timm_adapter.Timm, model: resnet50, "
            "checkpoint: nowhere.pth}",
        ),
    ),
    of(
        "sentence-transformer-not-there",
        "./nowhere",
        run=(
            "+pair.text_experts.s={_target_: krossfuse.encoders.sentence_transformers_adapter.SentenceTransformerText, "
            "model: ./nowhere}",
        ),
    ),
    of(
        "encoder-with-a-typo-in-an-option",
        "pair",
        "wights",
        "did you mean 'weights'",
        run=("+pair.cross_modal.wights=x",),
    ),
    of(
        "expert-is-no-encoder",
        "pair",
        "image_experts",
        "dict",
        "Encoder",
        run=("+pair.image_experts.x={_target_: builtins.dict}",),
    ),
    of(
        "no-encoders-at-all", "pair", "encoder", run=("pair.cross_modal=null", "~pair.image_experts.efficientnet_lite0")
    ),
    of(
        "expert-named-like-the-role",
        "pair",
        "cross_modal",
        run=("+pair.image_experts.cross_modal={_target_: krossfuse.encoders.bundled.EfficientNetLite0}",),
    ),
    of(
        "image-expert-on-the-side-of-texts",
        "pair",
        "text",
        "efficientnet",
        run=("+pair.text_experts.e={_target_: krossfuse.encoders.bundled.EfficientNetLite0}",),
    ),
    of(
        "experts-alone-fused-with-a-cross-modal-method",
        "cross-modal",
        "unimodal_krossfuse",
        run=("pair=openmoji_experts", "fusion=rp_krossfuse"),
    ),
    of("no-expert-in-the-pair", "expert", run=("~pair.image_experts.efficientnet_lite0", "fusion=rp_krossfuse")),
    of("text-expert-alone-on-images", "parent='text'", run=("fusion=text_expert",)),
]
