"""Image and text experts of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, check_choice, check_positive
from krossfuse.core.installed import version
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import Encoder, EncoderModule, TextBatch
from krossfuse.encoders.sources import (
    TOKENIZER,
    WEIGHTS,
    copy_model,
    licence_of,
    local_or_hub,
    output_dim,
    pool,
    read_json,
    weights_digest,
)

PREPROCESSOR = "preprocessor_config.json"


class HubModel(Encoder):
    """What image and text have in common: a model folder, here or on the hub."""

    def __init__(
        self, model: str, revision: str | None, pooling: str, name: str | None, about: Mapping[str, Any] | None
    ) -> None:
        self.declare(about)
        self.model, self.revision, self.pooling = model, revision, pooling
        self.name = name or Path(model).name
        self._needs: tuple[Sequence[str], ...] = (("config.json",), WEIGHTS)

    def _folder(self) -> Path:
        return local_or_hub(self.model, self.revision, needs=self._needs)

    @property
    def licence(self) -> str:  # type: ignore[override]
        """What the model's card says, where the folder has one; else what the configuration declares."""
        return licence_of(self._folder()) or str(self.about.get("licence", ""))

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy the model's folder; see :meth:`Encoder.copy_weights`."""
        return {"model": str(copy_model(self._folder(), folder)), "revision": None, "name": self.name}

    def _common(self, folder: Path) -> dict[str, Any]:
        return {
            "transformers": version("transformers"),
            "model": "local" if Path(self.model).expanduser().is_dir() else self.model,
            "weights": weights_digest(folder),
            "pooling": self.pooling,
        }

    def _of_images(self, folder: Path, aspect: str) -> dict[str, Any]:
        """Return what decides the features of images."""
        return {
            **self._common(folder),
            "torchvision": version("torchvision"),
            "aspect": aspect,
            "processor": read_json(folder / PREPROCESSOR),
        }

    def _of_texts(self, folder: Path) -> dict[str, Any]:
        """Return what decides the features of texts."""
        return {**self._common(folder), "tokenizers": version("tokenizers")}

    def _network(self, folder: Path) -> nn.Module:
        from transformers import AutoModel

        try:
            # Safetensors, or weights_only=True: transformers' own rule.
            network: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # OSError, ValueError, KeyError, unpickling errors, ...
            raise ConfigError(
                f"transformers cannot load model {self.model!r}: {type(error).__name__}: {error}"
            ) from error
        return network.float().requires_grad_(False).eval()


class HFImage(HubModel):
    """An image model of transformers: DINOv2, DINOv3, ViT, SigLIP's or CLIP's image tower, ConvNeXt, ...

    Preprocessing is the model's own (``preprocessor_config.json``: size, crop, resampling, mean, std), done by Pillow.
    With ``aspect="keep"`` an image is never squashed: where the processor resizes to a fixed height and width, the
    short side is resized and the centre cut instead.

    Args:
        model: folder, or name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        pooling: ``cls`` (first token of the last layer), ``mean`` (of the patch tokens, or of the map of a
            convolutional network), or ``pooler`` (the model's own).
        aspect: ``keep`` the aspect ratio, or do as the ``processor`` does.
        name: for tables; None = the last part of ``model``.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: an unknown pooling or aspect.
    """

    modalities: tuple[Modality, ...] = ("image",)

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        pooling: str = "cls",
        aspect: str = "keep",
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("pooling", pooling, ("cls", "mean", "pooler"))
        super().__init__(model, revision, pooling, name, about)
        self.aspect = check_choice("aspect", aspect, ("keep", "processor"))
        self._needs = (*self._needs, (PREPROCESSOR,))

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return library, weights' digest, pooling and the processor's settings (transformers is not imported)."""
        check_choice("modality", modality, self.modalities)
        return self._of_images(self._folder(), self.aspect)

    def load(self) -> EncoderModule:
        """Load model and processor settings.

        Raises:
            ConfigError: they cannot be loaded, or the processor has settings of an unknown form.
        """
        from transformers import AutoImageProcessor

        folder = self._folder()
        network = self._network(folder)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
        transform = image_transform(processor, keep=self.aspect == "keep", model=self.model)
        if network.config.model_type == "vit_mae":  # type: ignore[union-attr]
            raise ConfigError(
                f"model {self.model!r}: transformers' ViTMAEModel hides a random three quarters of each image; take "
                "timm's form of the weights (vit_base_patch16_224.mae)"
            )
        # A cross-modal model's image tower.
        return self.verified(_HFImage(getattr(network, "vision_model", network), transform, self.pooling))


def image_transform(processor: Any, *, keep: bool, model: str) -> Any:
    """Return torchvision's transform for an image processor's settings."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    size, crop = (_plain(getattr(processor, key, None)) for key in ("size", "crop_size"))
    steps: list[Any] = []
    modes = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    if getattr(processor, "do_resize", True):
        mode = InterpolationMode(modes[int(processor.resample)])
        if "shortest_edge" in size:
            steps.append(Resize(size["shortest_edge"], mode))
        elif {"height", "width"} <= set(size):
            box = (size["height"], size["width"])
            if keep:
                if box[0] != box[1]:
                    raise ConfigError(f"model {model!r} takes images of {box}, not square; set aspect=processor")
                steps += [Resize(box[0], mode), CenterCrop(box)]
            else:
                steps.append(Resize(box, mode))
        else:
            raise ConfigError(f"model {model!r}: cannot read the size {size} of its image processor")
    if getattr(processor, "do_center_crop", False) and crop:
        steps.append(CenterCrop((crop["height"], crop["width"])))
    steps.append(ToTensor())  # to [0, 1]
    scale = float(processor.rescale_factor) * 255 if getattr(processor, "do_rescale", True) else 255.0
    if getattr(processor, "do_normalize", True):
        mean, std = processor.image_mean, processor.image_std
        steps.append(Normalize([m / scale for m in mean], [s / scale for s in std]))
    elif scale != 1:
        steps.append(Normalize([0.0] * 3, [1 / scale] * 3))
    return Compose(steps)


def _plain(size: Any) -> dict[str, int]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: value for key, value in dict(size or {}).items() if value is not None}


class _HFImage(EncoderModule):
    def __init__(self, network: nn.Module, transform: Any, pooling: str) -> None:
        super().__init__()
        self.network, self.transform, self.pooling = network, transform, pooling
        self.dim = output_dim(self, "image")

    def prepare_image(self, image: Image) -> Tensor:
        pixels: Tensor = self.transform(image)
        return pixels

    def encode_image(self, images: Tensor) -> Tensor:
        output = self.network(pixel_values=images)
        if self.pooling == "pooler":
            pooled: Tensor | None = getattr(output, "pooler_output", None)
            if pooled is None:
                raise ConfigError(f"{type(self.network).__name__} has no pooler; set pooling=cls or mean")
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state
        if hidden.ndim == 4:
            if self.pooling == "cls":
                raise ConfigError(f"{type(self.network).__name__} is convolutional, without a class token; use mean")
            return hidden.mean((2, 3))
        if self.pooling == "cls":
            return hidden[:, 0]
        # Class and register tokens stand before the patches.
        patch: Any = self.network.config.patch_size  # type: ignore[union-attr]
        high, wide = (patch, patch) if isinstance(patch, int) else patch
        patches = (images.shape[2] // high) * (images.shape[3] // wide)
        return hidden[:, -patches:].mean(1)


class HFText(HubModel):
    """A sentence encoder of transformers: E5, BGE, S-RoBERTa, GTE, ...

    Args:
        model: folder, or name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        pooling: of the last layer's tokens: ``mean``, ``cls`` (the first) or ``last``. What is right stands on the
            model's card: E5 and S-RoBERTa mean, BGE cls, decoders last.
        prefix: put before each text; E5 needs ``"query: "``.
        max_length: tokens a text, longer ones are cut; None = the tokenizer's own (512 where that is unlimited).
        name: for tables; None = the last part of ``model``.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: an unknown pooling, or ``max_length`` is not positive.
    """

    modalities: tuple[Modality, ...] = ("text",)

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        pooling: str = "mean",
        prefix: str = "",
        max_length: int | None = None,
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("pooling", pooling, ("mean", "cls", "last"))
        if max_length is not None:
            check_positive("max_length", max_length, integer=True)
        super().__init__(model, revision, pooling, name, about)
        self.prefix, self.max_length = prefix, max_length
        self._needs = (*self._needs, TOKENIZER)

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return libraries, weights' digest, pooling, prefix and length (transformers is not imported)."""
        check_choice("modality", modality, self.modalities)
        return {**self._of_texts(self._folder()), "prefix": self.prefix, "max_length": self.max_length}

    def load(self) -> EncoderModule:
        """Load model and tokenizer.

        Raises:
            ConfigError: they cannot be loaded.
        """
        from transformers import AutoTokenizer

        folder = self._folder()
        network = self._network(folder)
        if getattr(network.config, "is_encoder_decoder", False):
            network = network.get_encoder()  # type: ignore[operator]
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        own = tokenizer.model_max_length
        length = self.max_length or (own if own < 1_000_000 else 512)
        return self.verified(
            _HFText(getattr(network, "text_model", network), tokenizer, self.pooling, self.prefix, length)
        )


class _HFText(EncoderModule):
    def __init__(self, network: nn.Module, tokenizer: Any, pooling: str, prefix: str, max_length: int) -> None:
        super().__init__()
        self.network, self.tokenizer, self.pooling = network, tokenizer, pooling
        self.prefix, self.max_length = prefix, max_length
        self.dim = output_dim(self, "text")

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        encoded = self.tokenizer(
            [self.prefix + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            return_attention_mask=True,
        )
        return {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)}

    def encode_text(self, batch: TextBatch) -> Tensor:
        return pool(self.network(**batch).last_hidden_state, batch["attention_mask"], self.pooling)
