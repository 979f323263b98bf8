"""The one protocol that every frozen encoder follows.

An :class:`Encoder` is a cheap description (constructing one loads nothing and imports no model library);
:meth:`Encoder.load` gives the :class:`EncoderModule` that runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor, nn

from krossfuse.core.parts import Modality

TextBatch = Mapping[str, Tensor]


class EncoderModule(nn.Module, ABC):
    """A loaded, frozen encoder (``eval`` mode, no gradients). ``dim`` is its output dimension."""

    dim: int

    def prepare_image(self, image: Image) -> Tensor:
        """Turn one RGB image into the encoder's input, (channels, height, width) float32; runs in loader workers."""
        raise NotImplementedError(f"{type(self).__name__} does not encode images")

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        """Tokenise a batch of texts into named tensors whose first axis is the batch."""
        raise NotImplementedError(f"{type(self).__name__} does not encode texts")

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode (batch, channels, height, width) into (batch, dim), unnormalised."""
        raise NotImplementedError(f"{type(self).__name__} does not encode images")

    def encode_text(self, batch: TextBatch) -> Tensor:
        """Encode a tokenised batch into (batch, dim), unnormalised."""
        raise NotImplementedError(f"{type(self).__name__} does not encode texts")


class Encoder(ABC):
    """Description of a frozen encoder.

    Attributes:
        name: short name for tables and store listings.
        modalities: what it encodes; a cross-modal encoder has both, in one space.
    """

    name: str
    modalities: tuple[Modality, ...]

    @abstractmethod
    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return a JSON-able mapping of everything which changes a feature of ``modality``.

        Library and version, architecture, digest of the weights, preprocessing, pooling, maximum length. It is
        the encoder's share of the feature key, so it must not need the model in memory where a file digest does.
        """

    @abstractmethod
    def load(self) -> EncoderModule:
        """Load the weights (safetensors, or ``weights_only=True``) and return the frozen module on the CPU."""
