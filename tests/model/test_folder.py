"""Models in folders: the same model again, and what differs is named."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelHubMixin
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import krossfuse.encoders.bundled as bundled
from krossfuse.core.errors import ConfigError, StoreError
from krossfuse.encoders.bundled import OPENMOJI_CLIP_WEIGHTS, EfficientNetLite0, OpenMojiCLIP
from krossfuse.encoders.io import build_encoder, describe_encoder
from krossfuse.encoders.pair import Pair
from krossfuse.encoders.timm_adapter import Timm
from krossfuse.encoders.transformers_adapter import HFText
from krossfuse.fusion import AverageKernel, InputSpec, RPKrossFuse
from krossfuse.model.encoder import FusedEncoder

TEXTS = ["a red mushroom", "a dog"]


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_is_the_same_after_a_folder(model: FusedEncoder, saved: Path) -> None:
    assert {p.name for p in saved.iterdir()} == {"config.json", "fusion.safetensors", "golden.safetensors", "README.md"}
    again = FusedEncoder.from_pretrained(saved)
    assert again.digest == model.digest
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    assert isinstance(again, ModelHubMixin)
    wide = FusedEncoder.from_pretrained(saved, dtype=torch.float64)
    assert wide.encode_text(TEXTS).dtype == torch.float64
    assert wide.digest == model.digest


def test_a_rounded_model_is_saved_and_loaded(saved: Path, tmp_path: Path) -> None:
    half = FusedEncoder.from_pretrained(saved, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert next(half.encoders.parameters()).dtype == torch.bfloat16  # it is as it was
    again = FusedEncoder.from_pretrained(tmp_path / "half")
    assert again.encode_text("a").dtype == torch.bfloat16
    assert next(again.encoders.parameters()).dtype == torch.float32


def test_an_altered_state_is_named_before_anything_is_made_of_it(copy: Path) -> None:
    file = copy / "fusion.safetensors"
    tensors = load_file(file)
    (state,) = (name for name, x in tensors.items() if x.dtype == torch.uint8)  # what the method keeps as JSON
    with safe_open(file, "pt") as opened:
        words = opened.metadata()
    save_file({**tensors, state: torch.zeros_like(tensors[state])}, file, words)
    with pytest.raises(StoreError, match=r"fusion\.safetensors is not the file that was saved"):
        FusedEncoder.from_pretrained(copy)
    with pytest.raises(StoreError, match="does not fit its configuration"):
        FusedEncoder.from_pretrained(copy, check=False)


def test_altered_tensors_are_named(copy: Path) -> None:
    tensors = load_file(copy / "fusion.safetensors")
    with safe_open(copy / "fusion.safetensors", "pt") as file:
        words = file.metadata()
    name = next(name for name, x in tensors.items() if x.ndim == 2)
    save_file({**tensors, name: tensors[name] * 1.01}, copy / "fusion.safetensors", words)
    with pytest.raises(StoreError, match=r"fusion\.safetensors is not the file that was saved"):
        FusedEncoder.from_pretrained(copy)
    # Who mends the digest is found out by the golden embeddings.
    import hashlib

    digest = hashlib.sha256((copy / "fusion.safetensors").read_bytes()).hexdigest()
    edit(copy, lambda config: config["sha256"].update({"fusion.safetensors": digest}))
    with pytest.raises(StoreError, match="the fusion of image features"):
        FusedEncoder.from_pretrained(copy)


def changed_weights(path: Path) -> Path:
    """Write the bundled CLIP's weights with one tensor scaled."""
    from safetensors import safe_open

    with safe_open(OPENMOJI_CLIP_WEIGHTS, "pt") as file:
        tensors, words = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(name for name in tensors if name.startswith("visual") and tensors[name].ndim == 4)
    save_file({**tensors, name: tensors[name] * 1.1}, path, words)
    return path


def test_a_changed_weight_is_named(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {"cross_modal": OpenMojiCLIP(weights=changed_weights(tmp_path / "other.safetensors"))}
    with pytest.raises(StoreError, match=r"encoder 'cross_modal' \(images\): weights was .* and is .* here"):
        FusedEncoder.from_pretrained(saved, encoders=other)
    with caplog.at_level(logging.WARNING):
        FusedEncoder.from_pretrained(saved, encoders=other, check=False)
    assert "the image features of 'cross_modal'" in caplog.text
    with pytest.raises(ConfigError, match="no such role"):
        FusedEncoder.from_pretrained(saved, encoders={"other": EfficientNetLite0()})


def test_a_changed_preprocessing_is_named(saved: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = {"efficientnet_lite0": {"image": {"preprocessing": "square 192"}}}

    def change(config: dict[str, Any]) -> None:
        config["fingerprints"]["efficientnet_lite0"]["image"] |= fingerprints["efficientnet_lite0"]["image"]

    with pytest.raises(StoreError, match=r"'efficientnet_lite0' \(images\): preprocessing was square 192"):
        FusedEncoder.from_pretrained(edit(copy, change))
    # One that no fingerprint knows of: another code.
    square = bundled._square
    monkeypatch.setattr(
        bundled, "_square", lambda image, size, mean, std: square(image, size, mean=mean, std=std * 1.02)
    )
    with pytest.raises(StoreError, match="the preprocessing of images for 'efficientnet_lite0' is not what it was"):
        FusedEncoder.from_pretrained(saved)


def test_a_library_of_another_version_is_a_warning_where_the_embeddings_are_the_same(
    copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["versions"]["torch"] = "2.0.0"
        config["fingerprints"]["efficientnet_lite0"]["image"]["timm"] = "0.9.1"

    edit(copy, change)
    with caplog.at_level(logging.WARNING):
        FusedEncoder.from_pretrained(copy)
    assert "was 0.9.1" in caplog.text
    assert "was 2.0.0" in caplog.text
    assert "golden embeddings are the same" in caplog.text
    square = bundled._square
    monkeypatch.setattr(
        bundled, "_square", lambda image, size, mean, std: square(image, size, mean=mean, std=std * 1.02)
    )
    with pytest.raises(StoreError, match=r"for 'cross_modal' is not what it was; other versions .* was 0\.9\.1"):
        FusedEncoder.from_pretrained(copy)


def broken(name: str, content: bytes | None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return change


def config_with(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder, lambda config: config.update(values))


def encoder_of(role: str, value: Any) -> Callable[[Path], object]:
    place = "cross_modal" if role == "cross_modal" else "image_experts"

    def change(config: dict[str, Any]) -> None:
        config["encoders"][place] = value if role == "cross_modal" else {role: value}

    return lambda folder: edit(folder, change)


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no config": (broken("config.json", None), StoreError, "it is no saved model"),
    "config is no JSON": (broken("config.json", b"{"), StoreError, "is damaged"),
    "config of another": (broken("config.json", b"{}"), StoreError, "not that of a krossfuse.FusedEncoder"),
    "newer": (config_with(format=2), StoreError, "format 2 .* reads formats up to 1: install a newer krossfuse"),
    "nothing in config": (config_with(encoders=None), StoreError, r"\['encoders'\] are missing"),
    "no fusion": (broken("fusion.safetensors", None), StoreError, "has no fusion.safetensors"),
    "half a fusion": (broken("fusion.safetensors", b"\x10\0\0"), StoreError, "fusion.safetensors is damaged"),
    "no golden": (broken("golden.safetensors", None), StoreError, "has no golden.safetensors"),
    "a foreign class": (encoder_of("cross_modal", {"_target_": "os.system"}), ConfigError, "neither a class of"),
    "a class by another road": (
        encoder_of("cross_modal", {"_target_": "krossfuse.encoders.bundled.Image"}),
        ConfigError,
        "is no encoder",
    ),
    "out of the folder": (
        encoder_of("cross_modal", {"_target_": "krossfuse.encoders.bundled.OpenMojiCLIP", "weights": "${folder}/../x"}),
        ConfigError,
        "leads out of the model's folder",
    ),
    "an unknown option": (
        encoder_of("cross_modal", {"_target_": "krossfuse.encoders.bundled.OpenMojiCLIP", "wieghts": 1}),
        ConfigError,
        "wieghts",
    ),
    "a missing encoder": (
        encoder_of(
            "cross_modal", {"_target_": "krossfuse.encoders.bundled.OpenMojiCLIP", "weights": "/gone.safetensors"}
        ),
        ConfigError,
        "encoder 'cross_modal': weights='/gone.safetensors': no such file.* --weights",
    ),
    "an encoder of the hub": (
        encoder_of("efficientnet_lite0", {"_target_": "krossfuse.encoders.timm_adapter.Timm", "model": "vit.none"}),
        ConfigError,
        "encoder 'efficientnet_lite0' is not here",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_named(name: str, copy: Path) -> None:
    change, error, said = BROKEN[name]
    change(copy)
    with pytest.raises(error, match=said):
        FusedEncoder.from_pretrained(copy)


def test_what_is_neither_a_folder_nor_on_the_hub(tmp_path: Path) -> None:
    for name in ("nobody/nothing", str(tmp_path / "gone"), "a b"):
        with pytest.raises(StoreError, match="neither a folder here nor a model"):
            FusedEncoder.from_pretrained(name)


def test_weights_are_copied_so_that_the_folder_needs_nothing_else(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    clip = OpenMojiCLIP(weights=changed_weights(tmp_path / "clip.safetensors"))
    expert = Timm(model="resnet10t", checkpoint=str(tmp_path / "net.safetensors"))
    pair = Pair(name="mine", cross_modal=clip, image_experts={"a/b": expert})
    model = FusedEncoder(pair, RPKrossFuse(inputs=InputSpec(cross_modal=256, image_experts={"a/b": 512}), dim=60))
    model.save_pretrained(tmp_path / "whole", weights=True)
    model.save_pretrained(tmp_path / "light", weights=False)
    expected = model.encode_image(Image.new("RGB", (40, 50), "red"))
    (tmp_path / "net.safetensors").unlink()
    (tmp_path / "clip.safetensors").unlink()
    moved = Path(shutil.move(tmp_path / "whole", tmp_path / "elsewhere"))
    again = FusedEncoder.from_pretrained(moved)
    assert torch.equal(again.encode_image(Image.new("RGB", (40, 50), "red")), expected)
    with pytest.raises(ConfigError, match=r"clip\.safetensors.*no such file.*weights=True"):
        FusedEncoder.from_pretrained(tmp_path / "light")
    # What was loaded with its weights is saved with them, even over itself.
    again.save_pretrained(moved)
    again.save_pretrained(tmp_path / "third")
    shutil.rmtree(moved)
    assert torch.equal(
        FusedEncoder.from_pretrained(tmp_path / "third").encode_image(Image.new("RGB", (40, 50), "red")), expected
    )


def test_pickled_weights_are_not_copied(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "net.pth")
    expert = Timm(model="resnet10t", checkpoint=str(tmp_path / "net.pth"))
    pair = Pair(name="mine", cross_modal=OpenMojiCLIP(), image_experts={"net": expert})
    model = FusedEncoder(pair, AverageKernel(inputs=InputSpec(cross_modal=256, image_experts={"net": 512})))
    with pytest.raises(ConfigError, match="are no safetensors"):
        model.save_pretrained(tmp_path / "whole", weights=True)
    assert not any((tmp_path / "whole").iterdir())


def test_encoders_are_described_by_what_they_were_made_with(tmp_path: Path) -> None:
    encoder = HFText(model="owner/name", pooling="cls", max_length=12)
    config = describe_encoder(encoder)
    assert config == {
        "_target_": "krossfuse.encoders.transformers_adapter.HFText", "model": "owner/name", "pooling": "cls",
        "max_length": 12,
    }  # fmt: skip
    assert vars(build_encoder(config)) == vars(encoder)

    class Local(EfficientNetLite0):
        pass

    with pytest.raises(ConfigError, match="inside a function"):
        describe_encoder(Local())
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        describe_encoder(HFText(model="owner/name", prefix=object()))  # type: ignore[arg-type]


def test_the_card_is_kept(model: FusedEncoder, saved: Path, tmp_path: Path) -> None:
    again = FusedEncoder.from_pretrained(saved)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == (saved / "README.md").read_text()
    assert "library_name: krossfuse" in (saved / "README.md").read_text()
