from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from krossfuse.core.errors import ConfigError
from krossfuse.data.common import digest
from krossfuse.data.openmoji import PRETRAIN, SPLIT_RULE, assign_parts, list_emoji, render
from krossfuse.encoders.base import EncoderModule
from krossfuse.encoders.bundled import OPENMOJI_CLIP_WEIGHTS, EfficientNetLite0, MiniLM, OpenMojiCLIP

BY_NAME = {e.name: e for e in list_emoji()}
TEXT = "a red apple"

# First eight values for the rendered "umbrella" and for TEXT: a change of weights, preprocessing, pooling or library
# that moves a feature shows here.
GOLDEN_EFFICIENTNET = [0.0, 0.0, 1.2082, 0.0, 0.0, 0.697, 0.0136, 2.4032]
GOLDEN_CLIP_IMAGE = [-0.4014, -0.2976, 0.427, 0.1722, 0.1553, 0.163, -0.5432, 0.0783]
GOLDEN_CLIP_TEXT = [0.6057, -0.5983, -0.1352, -0.6928, -1.0869, 0.1041, -0.5843, -0.4832]
GOLDEN_MINILM = [0.0282, 0.095, -0.2991, 0.4401, -0.3107, 0.047, 0.7905, -0.1792]


@pytest.fixture(scope="module")
def efficientnet() -> EncoderModule:
    return EfficientNetLite0().load()


@pytest.fixture(scope="module")
def minilm() -> EncoderModule:
    return MiniLM().load()


@pytest.fixture(scope="module")
def clip() -> EncoderModule:
    return OpenMojiCLIP().load()


@torch.inference_mode()
def image_feature(model: EncoderModule, name: str = "umbrella") -> Tensor:
    return model.encode_image(model.prepare_image(render(BY_NAME[name], 224))[None])[0]


@torch.inference_mode()
def text_feature(model: EncoderModule, *texts: str) -> Tensor:
    return model.encode_text(model.prepare_text(texts))


def test_efficientnet_golden(efficientnet: EncoderModule) -> None:
    feature = image_feature(efficientnet)
    assert feature.shape == (efficientnet.dim,) == (1280,)
    torch.testing.assert_close(feature[:8], torch.tensor(GOLDEN_EFFICIENTNET), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("emoji", "label"), [("umbrella", 879), ("soccer ball", 805), ("violin", 889)])
def test_efficientnet_knows_imagenet(emoji: str, label: int) -> None:
    encoder = EfficientNetLite0()
    pixels = encoder.load().prepare_image(render(BY_NAME[emoji], 224))
    with torch.inference_mode():
        assert label in encoder.classifier()(pixels[None]).topk(3).indices[0]


def test_minilm_golden(minilm: EncoderModule) -> None:
    feature = text_feature(minilm, TEXT)[0]
    assert feature.shape == (minilm.dim,) == (384,)
    torch.testing.assert_close(feature[:8], torch.tensor(GOLDEN_MINILM), atol=1e-3, rtol=1e-3)


def test_padding_does_not_change_a_text(minilm: EncoderModule) -> None:
    together = text_feature(minilm, TEXT, "a much longer text, so that the first one has to be padded")[0]
    torch.testing.assert_close(together, text_feature(minilm, TEXT)[0], atol=1e-5, rtol=1e-4)
    near, far = text_feature(minilm, "a ripe fruit", "the flag of a country")
    assert torch.cosine_similarity(together, near, 0) > torch.cosine_similarity(together, far, 0)


def test_long_texts_are_cut() -> None:
    tokens = MiniLM(max_length=8).load().prepare_text(["word " * 50, "word"])
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (2, 8)


def test_aspect_ratio_is_kept(efficientnet: EncoderModule) -> None:
    # A square in the middle of a wide picture stays a square.
    wide = Image.new("RGB", (400, 200), "white")
    wide.paste("black", (150, 50, 250, 150))
    dark = efficientnet.prepare_image(wide)[0] < 0
    height, width = int(dark.any(1).sum()), int(dark.any(0).sum())
    assert dark.shape == (224, 224)
    assert abs(height - width) <= 1
    assert abs(height - 112) <= 2


def test_inputs_are_scaled(efficientnet: EncoderModule) -> None:
    assert float(efficientnet.prepare_image(Image.new("RGB", (9, 9), "white")).min()) == 1
    assert float(efficientnet.prepare_image(Image.new("RGB", (9, 9), "black")).max()) == -1


def test_clip_golden(clip: EncoderModule) -> None:
    torch.testing.assert_close(image_feature(clip)[:8], torch.tensor(GOLDEN_CLIP_IMAGE), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(text_feature(clip, TEXT)[0, :8], torch.tensor(GOLDEN_CLIP_TEXT), atol=1e-3, rtol=1e-3)


def test_clip_is_one_space_and_deterministic(clip: EncoderModule) -> None:
    image = image_feature(clip)
    assert image.shape == (clip.dim,) == text_feature(clip, TEXT)[0].shape
    assert torch.equal(image, image_feature(OpenMojiCLIP().load()))
    assert not any(p.requires_grad for p in clip.parameters())
    assert not clip.network.training  # type: ignore[union-attr]


def test_clip_text_tower_is_minilm(clip: EncoderModule, minilm: EncoderModule) -> None:
    pooled = text_feature(minilm, TEXT, "a flag")
    with torch.inference_mode():
        projected = clip.network.text.proj(pooled)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(text_feature(clip, TEXT, "a flag"), projected, atol=1e-4, rtol=1e-4)


def test_clip_was_trained_on_the_part_of_this_split_only() -> None:
    """Weights trained on another split would have seen today's test emoji."""
    parts = assign_parts()
    metadata = OpenMojiCLIP().metadata
    assert metadata["split_rule"] == SPLIT_RULE
    assert metadata["training_ids_sha256"] == digest(e.id for e in list_emoji() if parts[e.id] == PRETRAIN)


def test_clip_weights_are_small() -> None:
    assert OPENMOJI_CLIP_WEIGHTS.stat().st_size < 12e6


def test_fingerprints_need_no_model_library() -> None:
    program = (
        "import sys\n"
        "from krossfuse.encoders.bundled import EfficientNetLite0, MiniLM, OpenMojiCLIP\n"
        "c = OpenMojiCLIP()\n"
        "f = [EfficientNetLite0().fingerprint('image'), MiniLM().fingerprint('text')]\n"
        "f += [c.fingerprint('image'), c.fingerprint('text')]\n"
        "assert len({str(x) for x in f}) == 4\n"
        "heavy = {'timm', 'transformers', 'open_clip', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    copy = tmp_path / "w.safetensors"
    data = OPENMOJI_CLIP_WEIGHTS.read_bytes()
    copy.write_bytes(data)
    first = OpenMojiCLIP(weights=copy).fingerprint("image")
    assert first == OpenMojiCLIP().fingerprint("image")
    copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert OpenMojiCLIP(weights=copy).fingerprint("image")["weights"] != first["weights"]
    assert MiniLM(max_length=8).fingerprint("text") != MiniLM().fingerprint("text")


def test_bad_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        OpenMojiCLIP(weights=tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="between 3 and"):
        MiniLM(max_length=1000)
    with pytest.raises(ConfigError, match="modality"):
        MiniLM().fingerprint("image")
    with pytest.raises(NotImplementedError, match="does not encode texts"):
        EfficientNetLite0().load().prepare_text(["x"])
