"""Cross-modal encoders of transformers: whatever has ``get_image_features`` and ``get_text_features``, and BLIP."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import EncoderModule, TextBatch
from krossfuse.encoders.sources import TOKENIZER, output_dim, read_json
from krossfuse.encoders.transformers_adapter import PREPROCESSOR, HubModel, image_transform

_PADDED = ("siglip", "siglip2")
"""Kinds of models that were trained on texts padded to the full length, and read the padding."""


class HFCrossModal(HubModel):
    """A cross-modal model of transformers: CLIP, SigLIP, SigLIP 2, ALIGN, AltCLIP, MetaCLIP 2, BLIP, ...

    BLIP's projections are those of its image-text retrieval model. A checkpoint without the projections, whose places
    transformers would fill with random numbers, is refused.

    Args:
        model: folder, or name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        aspect: ``processor``: resize as the model's processor does; ``keep``: never squash an image (see ``HFImage``).
        name: for tables; None = the last part of ``model``.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: an unknown aspect.
    """

    modalities: tuple[Modality, ...] = ("image", "text")

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        aspect: str = "processor",
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, revision, "projection", name, about)
        self.aspect = check_choice("aspect", aspect, ("keep", "processor"))
        self._needs = (*self._needs, (PREPROCESSOR,), TOKENIZER)

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return library, weights' digest, and the processor's settings (transformers is not imported)."""
        check_choice("modality", modality, self.modalities)
        folder = self._folder()
        return self._of_texts(folder) if modality == "text" else self._of_images(folder, self.aspect)

    def load(self) -> EncoderModule:
        """Load model, processor settings and tokenizer.

        Raises:
            ConfigError: they cannot be loaded, weights are missing, or the model is no cross-modal one.
        """
        from transformers import AutoImageProcessor, AutoTokenizer

        folder = self._folder()
        network = self._whole(folder)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
        transform = image_transform(processor, keep=self.aspect == "keep", model=self.model)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config: Any = network.config
        text: Any = getattr(config, "text_config", config)
        longest = getattr(text, "max_position_embeddings", None)
        own = tokenizer.model_max_length
        length = min(own if own < 1_000_000 else 512, longest or 512)
        padding = "max_length" if config.model_type in _PADDED else "longest"
        return self.verified(_HFCrossModal(network, transform, tokenizer, padding, length))

    def _whole(self, folder: Path) -> nn.Module:
        from transformers import AutoModel, BlipForImageTextRetrieval

        kind: Any = (
            BlipForImageTextRetrieval if read_json(folder / "config.json").get("model_type") == "blip" else AutoModel
        )
        try:
            network, told = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # OSError, ValueError, KeyError, unpickling errors, ...
            raise ConfigError(
                f"transformers cannot load model {self.model!r}: {type(error).__name__}: {error}"
            ) from error
        if missing := sorted(name for name in told["missing_keys"] if not name.endswith("position_ids")):
            raise ConfigError(
                f"model {self.model!r}: the weights lack {missing[:5]} ({len(missing)} in all) of "
                f"{type(network).__name__}, which would be random; take a checkpoint that was trained with them"
            )
        blip = isinstance(network, BlipForImageTextRetrieval)
        if not blip and not (hasattr(network, "get_image_features") and hasattr(network, "get_text_features")):
            raise ConfigError(f"model {self.model!r} ({type(network).__name__}) is no cross-modal encoder")
        frozen: nn.Module = network.float().requires_grad_(False).eval()
        return frozen


class _HFCrossModal(EncoderModule):
    def __init__(self, network: nn.Module, transform: Any, tokenizer: Any, padding: str, max_length: int) -> None:
        super().__init__()
        self.network, self.transform, self.tokenizer = network, transform, tokenizer
        self.padding, self.max_length = padding, max_length
        self.blip = hasattr(network, "vision_proj")
        # Tokenizers of other models make more than a text tower takes, which only newer transformers ignore.
        features: Any = None if self.blip else network.get_text_features
        takes = {} if features is None else inspect.signature(features).parameters
        self.takes = None if any(p.kind is p.VAR_KEYWORD for p in takes.values()) else set(takes)
        self.dim = output_dim(self, "text")

    def prepare_image(self, image: Image) -> Tensor:
        pixels: Tensor = self.transform(image)
        return pixels

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        encoded = self.tokenizer(
            list(texts), padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)}

    def encode_image(self, images: Tensor) -> Tensor:
        network: Any = self.network
        if self.blip:
            return _tensor(network.vision_proj(network.vision_model(pixel_values=images).last_hidden_state[:, 0]))
        return _tensor(network.get_image_features(pixel_values=images))

    def encode_text(self, batch: TextBatch) -> Tensor:
        network: Any = self.network
        if self.blip:
            kept = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return _tensor(network.text_proj(network.text_encoder(**kept).last_hidden_state[:, 0]))
        kept = {name: value for name, value in batch.items() if self.takes is None or name in self.takes}
        return _tensor(network.get_text_features(**kept))


def _tensor(output: Any) -> Tensor:
    """Return features that are a tensor, or (from transformers 5 on) the pooled output."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
