"""Image experts of timm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.installed import version
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import Encoder, EncoderModule
from krossfuse.encoders.sources import WEIGHTS, copy_safetensors, local_or_hub, output_dim, weights_digest


class Timm(Encoder):
    """An image model of timm, without its classifier: pooled features of the last layer.

    Preprocessing is timm's own for evaluation: short side resized (crop fraction included), centre cut.

    Args:
        model: name with tag, ``vit_base_patch14_dinov2.lvd142m``; without a tag if ``checkpoint`` is given.
        checkpoint: local file of weights (safetensors, or a state dict); None = the tag's, from the hub.
        name: for tables; None = ``model``.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: no tag and no checkpoint, or the file is missing.
    """

    modalities: tuple[Modality, ...] = ("image",)

    def __init__(
        self,
        *,
        model: str,
        checkpoint: str | None = None,
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.declare(about)
        if checkpoint is None and "." not in model:
            raise ConfigError(
                f"model={model!r} does not say which weights; add the tag (resnet50.a1_in1k), or give checkpoint=FILE"
            )
        if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
            raise ConfigError(f"checkpoint={checkpoint!r}: no such file")
        self.model, self.checkpoint = model, checkpoint
        self.name = name or model
        self.licence = str(self.about.get("licence", ""))

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return library, model and weights' digest, which decide the preprocessing too (timm is not imported)."""
        check_choice("modality", modality, self.modalities)
        return {
            "timm": version("timm"),
            "torchvision": version("torchvision"),
            "model": self.model,
            "weights": weights_digest(self._weights()),
            "preprocessing": "timm, evaluation",
        }

    def load(self) -> EncoderModule:
        """Build the model and load its weights, by timm (``weights_only=True``).

        Raises:
            ConfigError: timm has no such model, or the weights do not fit.
        """
        import timm
        import timm.data

        try:
            network = timm.create_model(
                self.model, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(self._weights())}
            )
        except Exception as error:  # RuntimeError of all kinds, unpickling errors, ...
            raise ConfigError(f"timm cannot load {self.model!r}: {type(error).__name__}: {error}") from error
        data: Any = timm.data
        transform = data.create_transform(**data.resolve_model_data_config(network), is_training=False)
        return self.verified(_Timm(network.requires_grad_(False).eval(), transform))

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy the weights file; see :meth:`Encoder.copy_weights`."""
        return {"checkpoint": str(copy_safetensors(self._weights(), folder)), "name": self.name}

    def _weights(self) -> Path:
        if self.checkpoint is not None:
            return Path(self.checkpoint).expanduser()
        folder = local_or_hub(f"timm/{self.model}", None, needs=[WEIGHTS])
        return next(file for pattern in WEIGHTS for file in sorted(folder.glob(pattern)))


class _Timm(EncoderModule):
    def __init__(self, network: nn.Module, transform: Any) -> None:
        super().__init__()
        self.network, self.transform = network, transform
        self.dim = output_dim(self, "image")

    def prepare_image(self, image: Image) -> Tensor:
        pixels: Tensor = self.transform(image)
        return pixels

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features
