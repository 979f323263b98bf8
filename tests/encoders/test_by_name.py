"""Every encoder of transformers by its name, on a small checkpoint of its architecture, against the recipe of its card.

The recipes are written here as the cards have them (last token with left padding, mean over the mask, ...), on the
library's own models; the adapters must give the same features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from krossfuse.app.build import make
from krossfuse.app.pairs import encoder_files
from krossfuse.core.errors import ConfigError
from krossfuse.encoders.base import Encoder
from krossfuse.encoders.bundled import MiniLM

TEXTS = ["a cat", "the dog sat on a cat and on a dog", "sat"]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "a", "cat", "the", "dog", "sat", "on", "and", "query:", "prefix"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {"image_size": 28, "patch_size": 7}
TOKENS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def picture(width: int = 50, height: int = 36) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def of_library(name: str) -> Any:
    """A class of transformers; the test is skipped where the installed version does not have it yet."""
    import transformers

    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


def save_tokenizer(path: Path, template: str, **options: Any) -> None:
    """A tokenizer of whole words; ``template`` says where the special tokens stand."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, WORDS.index(word)) for word in ("<s>", "</s>") if word in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=16,
        model_input_names=["input_ids", "attention_mask"],
        **names,
        **options,
    ).save_pretrained(path)


def save_processor(path: Path, **options: Any) -> None:
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "do_resize": True,
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.48, 0.45, 0.40],
        "image_std": [0.26, 0.26, 0.27],
    }
    (path / "preprocessor_config.json").write_text(json.dumps({**processor, **options}))


def node_of(name: str, model: Path, **changes: Any) -> dict[str, Any]:
    """The node of an encoder's file with a checkpoint of ours, and so without the dimension of the published one."""
    node: dict[str, Any] = yaml.safe_load(encoder_files()[name].read_text())
    return {**node, "model": str(model), "about": {**node["about"], "dim": None}, **changes}


def built(name: str, model: Path) -> Any:
    return make(node_of(name, model), "encoder", Encoder).load()  # type: ignore[type-abstract]


# ------------------------------------------------------------------------------------------------------------ texts


def bert(**more: Any) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SMALL, **TOKENS, **more))


def roberta(kind: str = "XLMRoberta") -> Any:
    config = of_library(f"{kind}Config")(**SMALL, **TOKENS, max_position_embeddings=40)
    return of_library(f"{kind}Model")(config)


def qwen3() -> Any:
    return of_library("Qwen3Model")(of_library("Qwen3Config")(**SMALL, **TOKENS, num_key_value_heads=1, head_dim=8))


def jina() -> Any:
    return roberta("JinaEmbeddingsV3")


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(~mask[..., None].bool(), 0.0).sum(1) / mask.sum(1)[..., None]  # the card of E5


def first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]  # the card of BGE


def last_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    assert mask[:, -1].sum() == mask.shape[0]  # padded on the left, as the card of Qwen3-Embedding has it
    return hidden[:, -1]


BOTH, END = "<s> $A </s>", "$A </s>"
TEXT: dict[str, tuple[Callable[[], Any], str, str, Callable[[Tensor, Tensor], Tensor], str]] = {
    **dict.fromkeys(("e5_base", "e5_large"), (bert, BOTH, "right", mean_pool, "query: ")),
    **dict.fromkeys(("e5_multilingual_base", "e5_multilingual_large"), (roberta, BOTH, "right", mean_pool, "query: ")),
    **dict.fromkeys(("bge_base", "bge_large"), (bert, BOTH, "right", first, "")),
    "bge_m3": (roberta, BOTH, "right", first, ""),
    **dict.fromkeys(("gte_base", "gte_large"), (bert, BOTH, "right", mean_pool, "")),
    **dict.fromkeys(
        ("qwen3_embedding_0_6b", "qwen3_embedding_4b", "qwen3_embedding_8b"), (qwen3, END, "left", last_token_pool, "")
    ),
    "jina_v3": (jina, BOTH, "right", mean_pool, ""),
}
"""By name: the model, its tokenizer's template and side of padding, the pooling of its card, and its prefix."""


@pytest.mark.parametrize("name", TEXT)
def test_texts_as_the_card_says(name: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, template, side, pooling, prefix = TEXT[name]
    torch.manual_seed(0)
    model().save_pretrained(tmp_path)
    save_tokenizer(tmp_path, template, padding_side=side)
    module = built(name, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer([prefix + text for text in TEXTS], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    if side == "left":
        assert batch["input_ids"][2, 0] == 0  # so the case is one
    with torch.inference_mode():
        reference = AutoModel.from_pretrained(tmp_path).eval()
        expected = pooling(reference(**batch).last_hidden_state, batch["attention_mask"])
        found = module.encode_text(module.prepare_text(TEXTS))
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
        alone = torch.cat([module.encode_text(module.prepare_text([text])) for text in TEXTS])
    torch.testing.assert_close(found, alone, atol=2e-6, rtol=1e-5)  # whatever stands beside it in the batch
    if prefix:
        bare = make(node_of(name, tmp_path, prefix=""), "encoder", Encoder).load()  # type: ignore[type-abstract]
        assert not torch.allclose(bare.encode_text(bare.prepare_text(TEXTS)), found, atol=1e-3)


def test_sentence_transformers_with_dense_layers(tmp_path: Path) -> None:
    """EmbeddingGemma's form: a bidirectional Gemma 3, mean pooling, two dense layers, a norm, and a prefix."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(0)
    config = of_library("Gemma3TextConfig")(
        **SMALL, **TOKENS, num_key_value_heads=1, head_dim=8, use_bidirectional_attention=True, sliding_window=8
    )
    of_library("Gemma3TextModel")(config).save_pretrained(tmp_path / "gemma")
    save_tokenizer(tmp_path / "gemma", BOTH)
    tower = Transformer(str(tmp_path / "gemma"))
    parts = [tower, Pooling(16, "mean"), Dense(16, 24, bias=False), Dense(24, 16, bias=False), Normalize()]
    reference = SentenceTransformer(modules=parts, device="cpu").eval()
    reference.save_pretrained(str(tmp_path / "whole"))
    module = built("embedding_gemma", tmp_path / "whole")
    prefix = "task: classification | query: "
    expected = torch.tensor(reference.encode([prefix + text for text in TEXTS]))
    with torch.inference_mode():
        torch.testing.assert_close(module.encode_text(module.prepare_text(TEXTS)), expected, atol=1e-5, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- images


def vision(kind: str, **more: Any) -> Callable[[], Any]:
    def of() -> Any:
        return of_library(f"{kind}Model")(of_library(f"{kind}Config")(**SMALL, **PIXELS, **more))

    return of


IMAGE: dict[str, tuple[Callable[[], Any], str]] = {
    **{f"dinov2_{size}14": (vision("Dinov2"), "class token") for size in "sblg"},
    **{
        f"dinov2_{size}14_reg": (vision("Dinov2WithRegisters", num_register_tokens=4), "class token") for size in "sblg"
    },
    **{f"dinov3_{size}16": (vision("DINOv3ViT", num_register_tokens=4), "class token") for size in "sbl"},
    "mlcd_l14": (vision("MLCDVision"), "pooler"),
}


def test_every_encoder_of_transformers_has_a_case() -> None:
    wanted = {
        name for name, file in encoder_files().items() if "transformers_adapter" in file.read_text()
        and "sentence_transformers" not in file.read_text()
    }  # fmt: skip
    assert wanted == {*TEXT, *IMAGE}


@pytest.mark.parametrize("name", IMAGE)
def test_images_as_the_card_says(name: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    model, pooled = IMAGE[name]
    torch.manual_seed(0)
    made = model()
    for parameter in made.parameters():  # norms other than the identity, so that a forgotten one shows
        parameter.data += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(tmp_path)
    save_processor(tmp_path)
    module = built(name, tmp_path)
    reference = AutoModel.from_pretrained(tmp_path).eval()
    image = module.prepare_image(picture())
    expected_input = AutoImageProcessor.from_pretrained(tmp_path)(picture(), return_tensors="pt")["pixel_values"][0]
    # The library may resize with torchvision, which rounds elsewhere than Pillow: at most two steps of 255.
    torch.testing.assert_close(image, expected_input, atol=2 / 255 / 0.26, rtol=0)
    with torch.inference_mode():
        output = reference(pixel_values=image[None])
        found = module.encode_image(image[None])
        expected = output.pooler_output if pooled == "pooler" else output.last_hidden_state[:, 0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        if pooled == "pooler":  # the class token has not passed the last norm, and DINO's has
            assert not torch.allclose(found, output.last_hidden_state[:, 0], atol=1e-2)
        else:
            torch.testing.assert_close(output.pooler_output, expected, atol=1e-6, rtol=1e-5)


def test_registers_are_no_patches(tmp_path: Path) -> None:
    from transformers import AutoModel

    torch.manual_seed(0)
    vision("Dinov2WithRegisters", num_register_tokens=4)().save_pretrained(tmp_path)
    save_processor(tmp_path)
    module = make(node_of("dinov2_b14_reg", tmp_path, pooling="mean"), "encoder", Encoder).load()  # type: ignore[type-abstract]
    image = module.prepare_image(picture())[None]
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=image).last_hidden_state
        assert hidden.shape[1] == 1 + 4 + 16
        torch.testing.assert_close(module.encode_image(image), hidden[:, 5:].mean(1), atol=1e-6, rtol=1e-5)


def test_mae_of_transformers_is_refused(tmp_path: Path) -> None:
    vision("ViTMAE")().save_pretrained(tmp_path)
    save_processor(tmp_path)
    with pytest.raises(ConfigError, match=r"hides a random three quarters.*vit_base_patch16_224\.mae"):
        built("dinov2_b14", tmp_path)


# ------------------------------------------------------------------------------------------------------ cross-modal


def clip_like(kind: str, text: dict[str, Any] | None = None, **more: Any) -> Any:
    config = of_library(f"{kind}Config")(
        text_config={**SMALL, **TOKENS, "max_position_embeddings": 16, **(text or {})},
        vision_config={**SMALL, **PIXELS},
        **more,
    )
    return of_library(f"{kind}Model")(config)


def blip() -> Any:
    from transformers import BlipConfig, BlipForImageTextRetrieval

    text = {**SMALL, **TOKENS, "max_position_embeddings": 16, "encoder_hidden_size": 16, "is_decoder": False}
    return BlipForImageTextRetrieval(
        BlipConfig(text_config=text, vision_config={**SMALL, **PIXELS}, image_text_hidden_size=12, projection_dim=12)
    )


CROSS: dict[str, Callable[[], Any]] = {
    "blip_itm_base": blip,
    "altclip": lambda: clip_like("AltCLIP", {"project_dim": 16}, projection_dim=12),
    "metaclip2_h14": lambda: clip_like("MetaClip2", {"projection_dim": 12}, projection_dim=12),
    "clip (transformers)": lambda: clip_like("CLIP", projection_dim=12),
    "siglip (transformers)": lambda: clip_like("Siglip"),
}


@pytest.mark.parametrize("name", CROSS)
def test_cross_modal_as_the_library_does(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    reference = CROSS[name]().eval()
    reference.save_pretrained(tmp_path)
    save_processor(tmp_path)
    save_tokenizer(tmp_path, BOTH)
    module = built(name if name in encoder_files() else "altclip", tmp_path)
    image = module.prepare_image(picture())[None]
    padding = "max_length" if "siglip" in name else "longest"
    batch = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=padding, max_length=16, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.inference_mode():
        if name == "blip_itm_base":
            images = reference.vision_proj(reference.vision_model(pixel_values=image)[0][:, 0])
            texts = reference.text_proj(reference.text_encoder(**batch)[0][:, 0])
            scores = reference(pixel_values=image, **batch, use_itm_head=False).itm_score
            cosines = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
            torch.testing.assert_close(scores, cosines, atol=1e-6, rtol=1e-5)
        else:
            output = reference(pixel_values=image, **batch)
            found = [module.encode_image(image), module.encode_text(module.prepare_text(TEXTS))]
            for given, expected in zip(found, (output.image_embeds, output.text_embeds), strict=True):
                torch.testing.assert_close(torch.nn.functional.normalize(given), expected, atol=1e-6, rtol=1e-5)
            images, texts = found
        torch.testing.assert_close(module.encode_image(image), images, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(module.encode_text(module.prepare_text(TEXTS)), texts, atol=1e-6, rtol=1e-5)
    assert module.dim == texts.shape[1]


def test_siglip_reads_its_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip_like("Siglip").save_pretrained(tmp_path)
    save_processor(tmp_path)
    save_tokenizer(tmp_path, BOTH)
    module = built("altclip", tmp_path)
    assert module.prepare_text(["a cat"])["input_ids"].shape == (1, 16)


def test_projections_that_would_be_random_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    clip_like("CLIP", projection_dim=12).save_pretrained(tmp_path)
    save_processor(tmp_path)
    save_tokenizer(tmp_path, BOTH)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("text_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"the weights lack \['text_projection\.weight'\].*would be random"):
        built("altclip", tmp_path)


def test_a_tower_is_no_cross_modal_encoder(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    save_processor(tmp_path)
    save_tokenizer(tmp_path, BOTH)
    with pytest.raises(ConfigError, match=r"\(BertModel\) is no cross-modal encoder"):
        built("altclip", tmp_path)


# --------------------------------------------------------------------------------------------------------- declared


def test_other_weights_than_declared() -> None:
    with pytest.raises(ConfigError, match="declared with 768 dimensions, and its weights give 384"):
        MiniLM(about={"dim": 768}).load()
    pinned = MiniLM().fingerprint("text")["weights"]
    assert MiniLM(about={"dim": 384, "sha256": pinned}).load().dim == 384
    with pytest.raises(ConfigError, match=rf"digest {pinned}, and about\.sha256 pins 0000"):
        MiniLM(about={"sha256": "0000"}).load()
    with pytest.raises(ConfigError, match=r"about='size' is not one of"):
        MiniLM(about={"size": 1})
    with pytest.raises(ConfigError, match=r"about\.encodes=\['image'\], but MiniLM encodes \['text'\]"):
        MiniLM(about={"encodes": ["image"]})


def test_what_is_declared_changes_no_digest() -> None:
    from krossfuse.results.digest import config_digest

    one = {"pair": {"name": "p", "cross_modal": {"model": "m", "about": {"licence": "a"}}}}
    other = {"pair": {"name": "p", "cross_modal": {"model": "m", "about": {"licence": "b", "dim": 3}}}}
    third = {"pair": {"name": "p", "cross_modal": {"model": "n", "about": {"licence": "a"}}}}
    assert config_digest(one) == config_digest(other) != config_digest(third)


@pytest.mark.skipif(
    version("open_clip_torch").startswith("3.0."), reason="open_clip 3.0 does not know the newest of them"
)
def test_declared_dimensions_of_open_clip_are_its_own() -> None:
    import open_clip

    for name, file in encoder_files().items():
        node = yaml.safe_load(file.read_text())
        if node["_target_"].endswith("OpenCLIP") and node["pretrained"]:
            assert open_clip.get_model_config(node["architecture"])["embed_dim"] == node["about"]["dim"], name
