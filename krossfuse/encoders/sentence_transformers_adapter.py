"""Text experts of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    weights_digest,
)


class SentenceTransformerText(Encoder):
    """A model of sentence-transformers with all its modules (pooling, dense layers, normalisation where it has one).

    Args:
        model: folder, or name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        prefix: put before each text.
        max_length: tokens a text, longer ones are cut; None = the model's own.
        name: for tables; None = the last part of ``model``.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: ``max_length`` is not positive.
    """

    modalities: tuple[Modality, ...] = ("text",)

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        prefix: str = "",
        max_length: int | None = None,
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.declare(about)
        if max_length is not None:
            check_positive("max_length", max_length, integer=True)
        self.model, self.revision, self.prefix, self.max_length = model, revision, prefix, max_length
        self.name = name or Path(model).name

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return libraries, weights' digest, prefix and length (no model library is imported)."""
        check_choice("modality", modality, self.modalities)
        libraries = ("sentence-transformers", "transformers", "tokenizers")
        return {
            **{library: version(library) for library in libraries},
            "model": "local" if Path(self.model).expanduser().is_dir() else self.model,
            "weights": weights_digest(self._folder()),
            "prefix": self.prefix,
            "max_length": self.max_length,
        }

    def load(self) -> EncoderModule:
        """Load the model by sentence-transformers, on the CPU.

        Raises:
            ConfigError: it cannot be loaded.
        """
        from sentence_transformers import SentenceTransformer

        folder = self._folder()
        try:
            network = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
        except Exception as error:  # OSError, ValueError, KeyError, ...
            raise ConfigError(
                f"sentence-transformers cannot load model {self.model!r}: {type(error).__name__}: {error}"
            ) from error
        if self.max_length is not None:
            network.max_seq_length = self.max_length
        return self.verified(_SentenceTransformer(network.float().requires_grad_(False).eval(), self.prefix))

    @property
    def licence(self) -> str:  # type: ignore[override]
        """What the model's card says, where the folder has one; else what the configuration declares."""
        return licence_of(self._folder()) or str(self.about.get("licence", ""))

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy the model's folder; see :meth:`Encoder.copy_weights`."""
        return {"model": str(copy_model(self._folder(), folder)), "revision": None, "name": self.name}

    def _folder(self) -> Path:
        return local_or_hub(self.model, self.revision, needs=[("modules.json",), WEIGHTS, TOKENIZER])


class _SentenceTransformer(EncoderModule):
    def __init__(self, network: Any, prefix: str) -> None:
        super().__init__()
        self.network, self.prefix = network, prefix
        self.max_length = network.max_seq_length
        self.dim = output_dim(self, "text")

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        # ``tokenize`` was renamed in version 6.
        prepare = getattr(self.network, "preprocess", None) or self.network.tokenize
        encoded = prepare([self.prefix + text for text in texts])
        return {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)}

    def encode_text(self, batch: TextBatch) -> Tensor:
        features: Tensor = self.network(dict(batch))["sentence_embedding"]
        return features
