"""Adapters against the libraries' own forward passes, on small checkpoints that the tests make themselves."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from krossfuse.core.errors import ConfigError
from krossfuse.encoders.open_clip_adapter import OpenCLIP
from krossfuse.encoders.sentence_transformers_adapter import SentenceTransformerText
from krossfuse.encoders.sources import local_or_hub, pool, weights_digest
from krossfuse.encoders.timm_adapter import Timm
from krossfuse.encoders.transformers_adapter import HFImage, HFText

TEXTS = ["a cat", "the dog sat on a cat and on a dog", "sat"]


def picture(width: int = 50, height: int = 36) -> Image.Image:
    """A smooth picture, which resampling methods agree on."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = folder / "bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "the", "dog", "sat", "on", "and", "query", ":"]
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(path / "vocab.txt"), model_max_length=32).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def dinov2(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    path = folder / "dinov2"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(path)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture(scope="module")
def siglip(folder: Path) -> Path:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    path = folder / "siglip"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    SiglipVisionModel(SiglipVisionConfig(**sizes, intermediate_size=32)).save_pretrained(path)
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 28, "width": 28},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


# ------------------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_hf_image_is_the_librarys_forward_pass(dinov2: Path, pooling: str) -> None:
    from transformers import AutoModel

    module = HFImage(model=str(dinov2), pooling=pooling).load()
    images = torch.stack([module.prepare_image(picture()), module.prepare_image(picture(28, 28))])
    output = AutoModel.from_pretrained(dinov2).eval()(pixel_values=images)
    hidden = output.last_hidden_state
    assert hidden.shape[1] == 1 + 16
    expected = {"cls": hidden[:, 0], "mean": hidden[:, 1:].mean(1), "pooler": output.pooler_output}[pooling]
    with torch.inference_mode():
        torch.testing.assert_close(module.encode_image(images), expected, atol=1e-6, rtol=1e-5)
    assert module.dim == 16
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_hf_image_preprocessing_is_the_processors(dinov2: Path) -> None:
    from transformers import AutoImageProcessor

    expected = AutoImageProcessor.from_pretrained(dinov2)(picture(), return_tensors="pt")["pixel_values"][0]
    found = HFImage(model=str(dinov2)).load().prepare_image(picture())
    # The library may resize with torchvision, which rounds elsewhere than Pillow: at most two steps of 255.
    torch.testing.assert_close(found, expected, atol=2 / 255 / 0.224, rtol=0)


def test_hf_image_keeps_the_aspect_ratio(siglip: Path) -> None:
    from transformers import AutoImageProcessor

    squashed = HFImage(model=str(siglip), aspect="processor", pooling="mean").load().prepare_image(picture())
    expected = AutoImageProcessor.from_pretrained(siglip)(picture(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(squashed, expected, atol=2 / 255 / 0.5, rtol=0)
    kept = HFImage(model=str(siglip), pooling="mean").load().prepare_image(picture())
    cut = picture().resize((38, 28), Image.Resampling.BICUBIC).crop((5, 0, 33, 28))
    by_hand = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(kept, by_hand, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(kept, squashed, atol=0.1)


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_hf_image_without_class_token(siglip: Path, pooling: str) -> None:
    from transformers import AutoModel

    module = HFImage(model=str(siglip), pooling=pooling).load()
    images = module.prepare_image(picture())[None]
    output = AutoModel.from_pretrained(siglip).eval()(pixel_values=images)
    expected = output.pooler_output if pooling == "pooler" else output.last_hidden_state.mean(1)
    with torch.inference_mode():
        torch.testing.assert_close(module.encode_image(images), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_hf_text_is_the_librarys_forward_pass(bert: Path, pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    module = HFText(model=str(bert), pooling=pooling, prefix="query: ").load()
    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    expected = []
    for text in TEXTS:  # one by one: no padding
        hidden = model(**tokenizer("query: " + text, return_tensors="pt")).last_hidden_state[0]
        expected.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
    with torch.inference_mode():
        found = module.encode_text(module.prepare_text(TEXTS))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_hf_text_length(bert: Path) -> None:
    long = "cat " * 100
    assert HFText(model=str(bert), max_length=7).load().prepare_text([long])["input_ids"].shape == (1, 7)
    assert HFText(model=str(bert)).load().prepare_text([long])["input_ids"].shape == (1, 32)


def test_pool_does_not_see_padding() -> None:
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    hidden[0, 2:] = 1e6
    for pooling in ("mean", "cls", "last"):
        torch.testing.assert_close(pool(hidden, mask, pooling)[:1], pool(hidden[:1, :2], mask[:1, :2], pooling))


# ---------------------------------------------------------------------------------------- sentence-transformers


def test_sentence_transformer_is_the_librarys_encode(bert: Path, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    path = folder / "sentence"
    SentenceTransformer(str(bert), device="cpu").save(str(path))  # with mean pooling on top
    encoder = SentenceTransformerText(model=str(path), prefix="query: ", max_length=8)
    module = encoder.load()
    reference = SentenceTransformer(str(path), device="cpu")
    reference.max_seq_length = 8
    expected = reference.encode(["query: " + text for text in TEXTS], convert_to_tensor=True)
    with torch.inference_mode():
        batch = module.prepare_text(TEXTS)
        torch.testing.assert_close(module.encode_text(batch), expected, atol=1e-5, rtol=1e-4)
    assert batch["input_ids"].shape[1] == 8
    assert module.dim == 16
    assert encoder.fingerprint("text")["prefix"] == "query: "


# --------------------------------------------------------------------------------------------------------- timm


def test_timm_is_the_librarys_forward_pass(folder: Path) -> None:
    import timm
    from safetensors.torch import save_file
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(0)
    reference = timm.create_model("test_vit", pretrained=False).eval()
    checkpoint = folder / "vit.safetensors"
    save_file(reference.state_dict(), checkpoint)  # with its classifier, as published checkpoints are
    encoder = Timm(model="test_vit", checkpoint=str(checkpoint))
    module = encoder.load()
    expected_input = create_transform(**resolve_model_data_config(reference), is_training=False)(picture(200, 180))
    image = module.prepare_image(picture(200, 180))
    assert torch.equal(image, expected_input)
    with torch.inference_mode():
        hidden = reference.forward_head(reference.forward_features(image[None]), pre_logits=True)
        torch.testing.assert_close(module.encode_image(image[None]), hidden, atol=1e-6, rtol=1e-5)
    assert module.dim == hidden.shape[1]
    assert encoder.fingerprint("image")["weights"] == weights_digest(checkpoint)


def test_timm_needs_to_know_which_weights(folder: Path) -> None:
    with pytest.raises(ConfigError, match="add the tag"):
        Timm(model="resnet50")
    with pytest.raises(ConfigError, match="no such file"):
        Timm(model="resnet50", checkpoint=str(folder / "absent.pth"))
    (folder / "other.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ConfigError, match="timm cannot load 'test_vit'"):
        Timm(model="test_vit", checkpoint=str(folder / "other.pth")).load()


# ---------------------------------------------------------------------------------------------------- open_clip

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def clip(folder: Path) -> tuple[str, Path]:
    """A tiny architecture, known to open_clip by name, and a checkpoint of it."""
    import open_clip

    configs = folder / "configs"
    configs.mkdir()
    (configs / "tiny-test.json").write_text(json.dumps(CLIP_CONFIG))
    (configs / "tiny-test-quickgelu.json").write_text(json.dumps({**CLIP_CONFIG, "quick_gelu": True}))
    open_clip.add_model_config(configs)
    torch.manual_seed(0)
    checkpoint = folder / "clip.pt"
    torch.save(open_clip.create_model("tiny-test").state_dict(), checkpoint)
    return "tiny-test", checkpoint


@pytest.mark.parametrize("quick", [False, True])
def test_open_clip_is_the_librarys_forward_pass(clip: tuple[str, Path], quick: bool) -> None:
    import open_clip

    architecture = clip[0] + "-quickgelu" * quick
    module = OpenCLIP(architecture=architecture, pretrained=str(clip[1])).load()
    reference, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=str(clip[1]))
    image = module.prepare_image(picture())
    assert torch.equal(image, preprocess(picture()))
    tokens = open_clip.get_tokenizer(architecture)(TEXTS)
    with torch.inference_mode():
        reference.eval()
        torch.testing.assert_close(module.encode_image(image[None]), reference.encode_image(image[None]))
        torch.testing.assert_close(module.encode_text(module.prepare_text(TEXTS)), reference.encode_text(tokens))
    assert module.dim == 12


def test_quickgelu_changes_features(clip: tuple[str, Path]) -> None:
    plain, quick = (OpenCLIP(architecture=clip[0] + end, pretrained=str(clip[1])) for end in ("", "-quickgelu"))
    image = plain.load().prepare_image(picture())[None]
    with torch.inference_mode():
        assert not torch.allclose(plain.load().encode_image(image), quick.load().encode_image(image), atol=1e-5)
    assert plain.fingerprint("image") != quick.fingerprint("image")


def test_open_clip_local_folder(clip: tuple[str, Path], folder: Path) -> None:
    path = folder / "local"
    path.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP_CONFIG, "preprocess_cfg": preprocess}))
    (path / "open_clip_pytorch_model.bin").write_bytes(clip[1].read_bytes())
    encoder = OpenCLIP(architecture=f"local-dir:{path}")
    assert encoder.name == "local"
    assert str(path) not in json.dumps(encoder.fingerprint("text"))  # a moved folder is the same encoder
    by_name = OpenCLIP(architecture=clip[0], pretrained=str(clip[1]), preprocess={"mean": [0.5] * 3, "std": [0.5] * 3})
    assert torch.equal(encoder.load().prepare_image(picture()), by_name.load().prepare_image(picture()))


def test_open_clip_refuses_openai_without_quickgelu() -> None:
    with pytest.raises(ConfigError, match="use architecture='ViT-B-32-quickgelu'"):
        OpenCLIP(architecture="ViT-B-32", pretrained="openai")
    assert OpenCLIP(architecture="ViT-B-32-quickgelu", pretrained="openai").name == "ViT-B-32-quickgelu"
    with pytest.raises(ConfigError, match=r"with QuickGELU.*use architecture='ViT-B-32-quickgelu'"):
        OpenCLIP(architecture="ViT-B-32", pretrained="metaclip_400m").load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "ViT-B-32"}, "name the tag"),
        ({"architecture": "hf-hub:a/b", "pretrained": "openai"}, "own weights"),
        ({"architecture": "ViT-B-32", "pretrained": "x", "preprocess": {"meen": 1}}, "did you mean 'mean'"),
    ],
)
def test_open_clip_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenCLIP(**options)


def test_open_clip_unknown_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ViT-B-32"):
        OpenCLIP(architecture="ViT-B-33", pretrained="laion2b_s34b_b79k").load()
    with pytest.raises(ConfigError, match="did you mean 'laion2b_s34b_b79k'"):
        OpenCLIP(architecture="ViT-B-32", pretrained="laion2b_s34b_b97k").load()
    with pytest.raises(ConfigError, match="no such file"):
        OpenCLIP(architecture="ViT-B-32", pretrained="folder/absent.pt").fingerprint("image")


# ------------------------------------------------------------------------------------ identity, hub, bad folders


def test_digest_follows_weights_and_not_the_place(bert: Path, folder: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(bert, folder / "elsewhere" / "bert"))
    assert HFText(model=str(copy)).fingerprint("text") == HFText(model=str(bert)).fingerprint("text")
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert HFText(model=str(copy)).fingerprint("text") != HFText(model=str(bert)).fingerprint("text")


def test_settings_are_part_of_the_identity(bert: Path, dinov2: Path) -> None:
    texts = [{}, {"pooling": "cls"}, {"prefix": "query: "}, {"max_length": 9}]
    images = [{}, {"pooling": "mean"}, {"aspect": "processor"}]
    found = [json.dumps(HFText(model=str(bert), **o).fingerprint("text")) for o in texts]  # type: ignore[arg-type]
    found += [json.dumps(HFImage(model=str(dinov2), **o).fingerprint("image")) for o in images]
    assert len(set(found)) == len(found)
    assert json.loads(found[-1])["processor"]["crop_size"] == {"height": 28, "width": 28}


def test_hub_cache_is_used_without_the_hub(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    repo = tmp_path / "models--owner--tiny"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for file in bert.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    # Older versions of the library took a copy of it when they were imported.
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert local_or_hub("owner/tiny", None, needs=[["config.json"]]) == snapshot
    assert HFText(model="owner/tiny").fingerprint("text")["weights"] == weights_digest(bert)


@pytest.mark.parametrize(
    "encoder",
    [
        HFText(model="nobody/nothing"),
        HFImage(model="nobody/nothing"),
        SentenceTransformerText(model="nobody/nothing"),
        Timm(model="nothing.at_all"),
        OpenCLIP(architecture="ViT-B-32", pretrained="laion2b_s34b_b79k"),
        OpenCLIP(architecture="hf-hub:nobody/nothing"),
    ],
    ids=lambda encoder: type(encoder).__name__,
)
def test_no_network(encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HOME") as caught:
        encoder.fingerprint(encoder.modalities[0])
    assert any(name in str(caught.value) for name in ("nobody/nothing", "nothing.at_all", "ViT-B-32"))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a folder here nor a name"):
        HFText(model="./absent").fingerprint("text")
    with pytest.raises(ConfigError, match=r"none of the files \['config\.json'\]"):
        HFText(model=str(tmp_path)).fingerprint("text")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ConfigError, match=r"model-1\.safetensors"):
        HFText(model=str(tmp_path)).fingerprint("text")


def test_wrong_modality_and_options(bert: Path) -> None:
    with pytest.raises(ConfigError, match="modality='image'"):
        HFText(model=str(bert)).fingerprint("image")
    with pytest.raises(ConfigError, match="pooling='max'"):
        HFText(model=str(bert), pooling="max")
    with pytest.raises(ConfigError, match="aspect='squash'"):
        HFImage(model=str(bert), aspect="squash")
    with pytest.raises(ConfigError, match="max_length=0"):
        SentenceTransformerText(model=str(bert), max_length=0)


def test_describing_an_encoder_imports_no_model_library(bert: Path, dinov2: Path, clip: tuple[str, Path]) -> None:
    code = """
import sys
from krossfuse.encoders.open_clip_adapter import OpenCLIP
from krossfuse.encoders.transformers_adapter import HFImage, HFText
bert, dinov2, clip = sys.argv[1:]
HFText(model=bert).fingerprint("text")
HFImage(model=dinov2).fingerprint("image")
OpenCLIP(architecture="x", pretrained=clip).fingerprint("image")
print([name for name in ("transformers", "open_clip", "timm", "sentence_transformers") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, bert, dinov2, clip[1]]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
