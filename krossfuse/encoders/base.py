"""The one protocol that every frozen encoder follows.

An :class:`Encoder` is a cheap description (constructing one loads nothing and imports no model library);
:meth:`Encoder.load` gives the :class:`EncoderModule` that runs.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from PIL.Image import Image
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.parts import Modality

TextBatch = Mapping[str, Tensor]

ABOUT = ("encodes", "dim", "parameters", "licence", "source", "form", "sha256")
"""What a configuration may declare of an encoder; see :class:`Encoder`."""


class EncoderModule(nn.Module, ABC):
    """A loaded, frozen encoder (``eval`` mode, no gradients).

    Attributes:
        dim: output dimension.
        max_length: tokens that it reads of a text, the rest is cut; None = not known.
    """

    dim: int
    max_length: int | None = None

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
        licence: of the weights, where it is known.
        libraries: keys of the fingerprint that are versions of libraries, and no more.
        arguments: what it was constructed with, by name; from them a saved model makes it again.
        about: what the configuration declares of it: ``encodes``, ``dim``, ``parameters``, ``licence``, ``source``
            (a name on the hub), ``form`` (where one has to ask for the weights), ``sha256`` (of the weights, as the
            fingerprint has it). :meth:`verified` holds the loaded weights against it.
    """

    name: str
    modalities: tuple[Modality, ...]
    licence: str = ""
    libraries: ClassVar[tuple[str, ...]] = (
        "open_clip_torch",
        "sentence-transformers",
        "timm",
        "tokenizers",
        "torchvision",
        "transformers",
    )
    arguments: Mapping[str, Any]
    about: Mapping[str, Any] = MappingProxyType({})

    def __new__(cls, *positional: Any, **named: Any) -> Self:  # noqa: D102
        encoder = super().__new__(cls)
        parameters = list(inspect.signature(cls.__init__).parameters)[1:]
        # Past a dataclass's __setattr__, which may be frozen.
        encoder.__dict__["arguments"] = {**dict(zip(parameters, positional, strict=False)), **named}
        return encoder

    def declare(self, about: Mapping[str, Any] | None) -> None:
        """Take what the configuration declares.

        Raises:
            ConfigError: it declares what there is not, or modalities that the class does not encode.
        """
        for key in about or {}:
            check_choice("about", key, ABOUT)
        self.about = dict(about or {})
        encodes = self.about.get("encodes")
        if encodes is not None and sorted(encodes) != sorted(self.modalities):
            raise ConfigError(f"about.encodes={encodes!r}, but {type(self).__name__} encodes {list(self.modalities)}")

    def verified(self, module: EncoderModule) -> EncoderModule:
        """Return a loaded module if it is what the configuration declares.

        Raises:
            ConfigError: it has another dimension, or its weights another digest; the message has both sides.
        """
        name = getattr(self, "name", type(self).__name__)
        dim = self.about.get("dim")
        if dim is not None and module.dim != dim:
            raise ConfigError(
                f"encoder {name!r} is declared with {dim} dimensions, and its weights give {module.dim}: they are "
                "others than meant; or set its about.dim to null"
            )
        pinned = self.about.get("sha256")
        if pinned is not None:
            for modality in self.modalities:
                found = self.fingerprint(modality).get("weights")
                if found != pinned:
                    raise ConfigError(
                        f"encoder {name!r}: the weights have the digest {found}, and about.sha256 pins {pinned}: they "
                        "have changed; get the pinned ones, or set about.sha256 to null"
                    )
        return module

    @abstractmethod
    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return a JSON-able mapping of everything which changes a feature of ``modality``.

        Library and version, architecture, digest of the weights, preprocessing, pooling, maximum length. It is
        the encoder's share of the feature key, so it must not need the model in memory where a file digest does.
        """

    @abstractmethod
    def load(self) -> EncoderModule:
        """Load the weights (safetensors, or ``weights_only=True``) and return the frozen module on the CPU."""

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy what it loads into a folder, so that the copy needs nothing else.

        Args:
            folder: exists, and is empty.

        Returns:
            The arguments with which the copy is made, where they differ from this one's; empty where the weights are
            part of a package that krossfuse itself needs.

        Raises:
            ConfigError: this class cannot, or its weights are no safetensors.
        """
        raise ConfigError(f"{type(self).__name__} does not know how to copy its weights; save it without weights=True")
