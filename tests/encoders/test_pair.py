from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from krossfuse.core.errors import ConfigError
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import Encoder, EncoderModule
from krossfuse.encoders.pair import Pair


class Named(Encoder):
    def __init__(self, name: str, *modalities: Modality) -> None:
        self.name, self.modalities = name, modalities

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        return {"name": self.name}

    def load(self) -> EncoderModule:
        return EncoderModule()


clip, image, text = Named("clip", "image", "text"), Named("i", "image"), Named("t", "text")


def test_cross_modal_comes_first() -> None:
    pair = Pair(name="p", cross_modal=clip, image_experts={"dino": image}, text_experts={"e5": text})
    assert list(pair.encoders("image")) == ["cross_modal", "dino"]
    assert list(pair.encoders("text")) == ["cross_modal", "e5"]
    assert pair.encoders("text")["e5"] is text


def test_experts_of_one_modality_need_no_cross_modal() -> None:
    assert list(Pair(name="p", image_experts={"a": image, "b": image}, text_experts=None).encoders("image")) == [
        "a",
        "b",
    ]  # type: ignore[arg-type]
    assert Pair(name="p", image_experts={"a": image}).encoders("text") == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs a cross-modal encoder"),
        ({"image_experts": {"a": image}, "text_experts": {"b": text}}, "exactly one modality"),
        ({"cross_modal": image}, "must encode text"),
        ({"cross_modal": clip, "image_experts": {"a": text}}, "must encode image"),
        ({"cross_modal": clip, "image_experts": {"a": image}, "text_experts": {"a": text}}, "both sides"),
        ({"cross_modal": clip, "image_experts": {"cross_modal": image}}, "cannot be the name"),
    ],
)
def test_bad_pairs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pair(name="p", **fields)
