"""The fused encoder where people already are: open_clip's form, and sentence-transformers'."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from krossfuse.core.errors import DataError
from krossfuse.core.unit import normalised
from krossfuse.model.encoder import FusedEncoder

TEXTS = ["a cat", "a long description of a dog that sits on a mat by the sea"]


def test_code_for_open_clip_runs_as_it_is(model: FusedEncoder, emoji_files: Path) -> None:
    clip, preprocess, tokenizer = model.open_clip()
    paths = sorted(emoji_files.iterdir())[:8]
    images = torch.stack([preprocess(Image.open(path)) for path in paths])
    torch.testing.assert_close(clip.encode_image(images), model.encode_image(paths), atol=1e-6, rtol=0)
    tokens = tokenizer(TEXTS)
    torch.testing.assert_close(clip.encode_text(tokens), model.encode_text(TEXTS), atol=1e-6, rtol=0)
    # Rows of several calls, as a loader collates them.
    apart = torch.cat([tokenizer(text) for text in TEXTS])
    torch.testing.assert_close(clip.encode_text(apart), model.encode_text(TEXTS), atol=1e-6, rtol=0)
    image_features, text_features, scale = clip(images, tokens)
    assert torch.equal(text_features, normalised(clip.encode_text(tokens)))
    assert float(scale) == 1
    assert (image_features @ text_features.T).shape == (8, 2)
    assert clip.visual.output_dim == model.dim


def test_tensors_of_another_preprocessing_are_refused(model: FusedEncoder) -> None:
    clip, preprocess, tokenizer = model.open_clip()
    with pytest.raises(DataError, match="rows of the model's own preprocess"):
        clip.encode_image(torch.zeros(1, 3, 224, 224))
    with pytest.raises(DataError, match="own tokenizer"):
        clip.encode_text(torch.zeros(1, 77, dtype=torch.int64))
    with pytest.raises(DataError, match="context_length"):
        tokenizer("a cat", context_length=77)
    with pytest.raises(DataError, match="one image at a time"):
        preprocess([Image.new("RGB", (8, 8))])


@pytest.mark.skipif(
    int(importlib.metadata.version("sentence-transformers").partition(".")[0]) < 5,
    reason="sentence-transformers before 5 look for a module's files elsewhere",
)
def test_sentence_transformers_takes_images_and_texts(model: FusedEncoder, emoji_files: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from krossfuse.model.sentence_transformers import FusedModule

    image = Image.open(emoji_files / "00.png")
    wrapped = SentenceTransformer(modules=[FusedModule(model)], device="cpu")
    expected = np.stack([model.encode_text(TEXTS[0]), model.encode_image(image), model.encode_text(TEXTS[1])])
    np.testing.assert_allclose(wrapped.encode(TEXTS), expected[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(wrapped.encode([image]), expected[[1]], atol=1e-5)
    module = wrapped[0]
    mixed = module(module.preprocess([TEXTS[0], image, TEXTS[1]]))["sentence_embedding"]
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    unit = wrapped.encode(TEXTS, normalize_embeddings=True, prompt="a picture of ")
    prompted = model.encode_text([f"a picture of {text}" for text in TEXTS], normalize=True, convert_to="numpy")
    np.testing.assert_allclose(unit, prompted, atol=1e-5)
    wrapped.save_pretrained(str(tmp_path / "st"))
    again = SentenceTransformer(modules=[FusedModule.load(str(tmp_path / "st"))], device="cpu")
    np.testing.assert_allclose(again.encode([image]), expected[[1]], atol=1e-5)
    assert FusedEncoder.from_pretrained(tmp_path / "st").digest == model.digest
