"""What goes in and what comes out: the run's features and fused embeddings, whatever form the items have."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import CROSS_MODAL, Part
from krossfuse.core.unit import normalised
from krossfuse.data.openmoji import RenderedEmoji, split_emoji
from krossfuse.encoders.bundled import EfficientNetLite0, OpenMojiCLIP
from krossfuse.encoders.pair import Pair
from krossfuse.fusion import Alone, AverageKernel, InputSpec
from krossfuse.fusion.plain import fuse_bundle
from krossfuse.model.encoder import FusedEncoder
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.zero_shot import class_texts, zero_shot_heads

TEST_IMAGES, TEST_TEXTS = Part("test", "image"), Part("test", "text")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return list(RenderedEmoji(split_emoji(40)["test"], 224))


def test_raw_items_become_the_runs_features_and_embeddings_to_the_bit(
    model: FusedEncoder, bundle: FeatureBundle, pictures: list[Image.Image]
) -> None:
    names = [emoji.name for emoji in split_emoji(40)["test"]]
    fused = fuse_bundle(model.fusion, bundle, parts=[TEST_IMAGES, TEST_TEXTS])
    for part, items in ((TEST_IMAGES, pictures), (TEST_TEXTS, names)):
        for role, features in model.encode_parents(part.modality, items).items():
            assert torch.equal(features, bundle[part][role])
    assert torch.equal(model.encode_image(pictures), fused[TEST_IMAGES])
    assert torch.equal(model.encode_text(names), fused[TEST_TEXTS])


def test_every_form_of_an_image_is_the_same_image(model: FusedEncoder, emoji_files: Path) -> None:
    paths = sorted(emoji_files.iterdir())[:3]
    images = [Image.open(path) for path in paths]
    arrays = np.stack([np.array(image) for image in images])
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    expected = model.encode_image(images)
    for form in (
        paths, [str(path) for path in paths], tuple(images), arrays, list(arrays), tensor, list(tensor),
        tensor.float() / 255, arrays.astype(np.float64) / 255,
    ):  # fmt: skip
        torch.testing.assert_close(model.encode_image(form), expected, atol=1e-6, rtol=0)
    for single in (paths[0], images[0], arrays[0], tensor[0]):
        found = model.encode_image(single)
        assert found.shape == (model.dim,)
        torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=0)


def test_batches_normalisation_and_numpy(model: FusedEncoder, emoji_files: Path) -> None:
    paths = sorted(emoji_files.iterdir())
    expected = model.encode_image(paths)
    assert torch.equal(model.encode_image(paths, batch_size=8, num_workers=1), expected)
    array = model.encode_image(paths, convert_to="numpy", normalize=True, progress=True)
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, normalised(expected).numpy())
    torch.testing.assert_close(model.similarity(expected, array), expected @ torch.from_numpy(array).T)
    cosine = model.similarity(expected[0], expected, cosine=True)
    assert cosine.shape == (1, len(paths))
    assert abs(float(cosine[0, 0]) - 1) < 1e-5


def test_gray_palette_and_transparent_images_are_converted_and_said(
    model: FusedEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    with caplog.at_level(logging.WARNING):
        gray = model.encode_image([ramp, np.array(ramp), torch.from_numpy(np.array(ramp))[None]])
    assert "3 of mode 'L'" in caplog.text
    torch.testing.assert_close(gray[1:], gray[:1].expand(2, -1), atol=1e-6, rtol=0)
    clear = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    white = model.encode_image(Image.new("RGB", (30, 30), "white"))
    torch.testing.assert_close(model.encode_image(clear), white)
    palette = Image.new("P", (30, 30))
    palette.info["transparency"] = 0
    torch.testing.assert_close(model.encode_image(palette), white)


def test_long_texts_are_cut_and_said(model: FusedEncoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        longer, long = model.encode_text(["cat " * 300, "cat " * 200])
    assert "2 fill the 77 tokens that 'cross_modal' reads" in caplog.text
    torch.testing.assert_close(longer, long)
    caplog.clear()
    model.encode_text("a cat")
    assert not caplog.text


def test_classify_decides_as_the_zero_shot_probe(
    model: FusedEncoder, bundle: FeatureBundle, pictures: list[Image.Image]
) -> None:
    fused = fuse_bundle(model.fusion, bundle)
    reference = {part: roles[CROSS_MODAL] for part, roles in bundle.features.items()}
    space = EmbeddingSpace(bundle.info, fused, reference=reference)
    texts = class_texts(space, "group", "default")
    head, _ = zero_shot_heads(space, texts)
    expected = head.decide(fused[TEST_IMAGES])
    prompts = bundle.info.label_sets["group"].prompts
    names = list(prompts["name"].texts)
    decided, scores = model.classify(pictures, names, prompts["default"].templates, return_scores=True)
    assert torch.equal(decided, expected)
    torch.testing.assert_close(scores, head(fused[TEST_IMAGES]))
    assert model.classify(pictures[0], names).shape == ()


def test_one_sided_fusions_and_other_precisions(model: FusedEncoder, emoji_files: Path) -> None:
    pair = Pair(name="one", cross_modal=OpenMojiCLIP(), image_experts={"net": EfficientNetLite0()})
    inputs = InputSpec(cross_modal=256, image_experts={"net": 1280})
    one = FusedEncoder(pair, AverageKernel(inputs=inputs))
    assert one.modalities == ("image",)
    paths = sorted(emoji_files.iterdir())[:2]
    wide = one.encode_image(paths)
    half = one.to(torch.bfloat16)
    found = half.encode_image(paths)
    assert found.dtype == torch.bfloat16
    assert half.encode_image(paths, convert_to="numpy").dtype == np.float32
    assert float(torch.nn.functional.cosine_similarity(found.float(), wide).min()) > 0.99
    with pytest.raises(ConfigError, match="no text side"):
        one.encode_text("a cat")
    with pytest.raises(ConfigError, match="no text side"):
        one.classify(paths, ["a", "b"])
    assert FusedEncoder(pair, Alone(inputs=inputs)).encode_text("a cat").shape == (256,)


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "none": ([], "no images were given"),
    "no rows": (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "no images were given"),
    "a number": (3, "cannot encode a int"),
    "a number in a list": ([Image.new("RGB", (8, 8)), 3], "image 1 is a int"),
    "bytes": (b"png", "cannot encode a bytes"),
    "no file": (["gone.png"], "cannot read image 'gone.png'"),
    "preprocessed": (torch.randn(3, 8, 8), "values from 0 to 1"),
    "NaN": (torch.full((3, 8, 8), float("nan")), "values from 0 to 1"),
    "channels last": (torch.zeros(8, 8, 3, dtype=torch.uint8), r"expected \(3, h, w\)"),
    "channels first": ([np.zeros((3, 8, 8), np.uint8)], r"expected \(h, w\)"),
    "five dimensions": (torch.zeros(1, 1, 3, 8, 8), "expected one image"),
    "int64": (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8, or floats"),
    "16 bits": (Image.new("I;16", (8, 8)), "no fixed range"),
    "floats": (Image.new("F", (8, 8)), "no fixed range"),
    "empty": (Image.new("RGB", (0, 8)), "no pixels"),
}
BAD_TEXTS: dict[str, tuple[Any, str]] = {
    "none": ([], "no texts were given"),
    "a number": (3, "cannot encode a int"),
    "None in a list": (["a", None], "text 1 is a NoneType"),
    "half a pair": (["a", "b\ud800"], "text 1 cannot be written as UTF-8"),
    "bytes": (b"a", "cannot encode a bytes"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_named(name: str, model: FusedEncoder) -> None:
    given, said = BAD_IMAGES[name]
    with pytest.raises(DataError, match=said):
        model.encode_image(given)


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_texts_are_named(name: str, model: FusedEncoder) -> None:
    given, said = BAD_TEXTS[name]
    with pytest.raises(DataError, match=said):
        model.encode_text(given)


def test_bad_options_are_named(model: FusedEncoder, emoji_files: Path) -> None:
    (first, *_) = sorted(emoji_files.iterdir())
    with pytest.raises(ConfigError, match="convert_to='jax'"):
        model.encode_image(first, convert_to="jax")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="batch_size=0"):
        model.encode_image(first, batch_size=0)
    with pytest.raises(ConfigError, match="two classes or more"):
        model.classify(first, ["cat"])
    with pytest.raises(ConfigError, match="has no '{}'"):
        model.classify(first, ["cat", "dog"], ["a photo"])
    with pytest.raises(DataError, match="300 and of 5 dimensions"):
        model.similarity(model.encode_image(first), torch.zeros(5))
    pair = Pair(name="lone", cross_modal=OpenMojiCLIP())
    with pytest.raises(ConfigError, match="no encoder 'net'"):
        FusedEncoder(pair, AverageKernel(inputs=InputSpec(cross_modal=256, image_experts={"net": 4})))
