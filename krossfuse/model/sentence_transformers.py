"""A fused encoder as a module of sentence-transformers, for images and texts.

    from sentence_transformers import SentenceTransformer
    from krossfuse.model.sentence_transformers import FusedModule

    model = SentenceTransformer(modules=[FusedModule(krossfuse.FusedEncoder.from_pretrained(folder))])
    model.encode(["a red mushroom", "a dog"])
    model.encode([Image.open("one.png")])

What is a text is encoded as a text, everything else as an image. The module takes lists of both; sentence-transformers
from version 6 on wants one call each. ``model.save_pretrained`` writes the fused encoder's own folder beside
sentence-transformers' files; ``FusedModule.load`` reads it (``SentenceTransformer(folder)`` takes every class that is
not its own for remote code, and asks for ``trust_remote_code=True``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from krossfuse.core.parts import Modality
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.items import image_items, text_items


class FusedModule(nn.Module):
    """The module; it takes the first place, and needs none behind it but, where wanted, ``Normalize``.

    Args:
        model: the fused encoder.
    """

    save_in_root = True
    config_keys: tuple[str, ...] = ()

    def __init__(self, model: FusedEncoder) -> None:
        super().__init__()
        self.model = model

    @property
    def modalities(self) -> list[str]:
        """What it encodes."""
        return list(self.model.modalities)

    def get_sentence_embedding_dimension(self) -> int:
        """Dimension of the embeddings."""
        return self.model.dim

    get_embedding_dimension = get_sentence_embedding_dimension

    @property
    def max_seq_length(self) -> int | None:
        """The fewest tokens that one of the text encoders reads; None = not known."""
        modules = self.model.loaded("text").values() if "text" in self.model.modalities else ()
        return min((m.max_length for m in modules if m.max_length is not None), default=None)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Prepare images and texts, which may be mixed.

        Args:
            inputs: texts, and images of the kinds that :meth:`FusedEncoder.encode_image` takes.
            prompt: put before each text.

        Returns:
            ``MODALITY:rows`` (their places), and ``MODALITY:ROLE`` or ``MODALITY:ROLE:NAME``, what the encoder of that
            role takes.

        Raises:
            DataError: an item that is neither, or cannot be read.
            ConfigError: the fusion has no such side.
        """
        made: dict[str, Tensor] = {}
        rows: dict[Modality, list[int]] = {"image": [], "text": []}
        for row, item in enumerate(inputs):
            rows["text" if isinstance(item, str) else "image"].append(row)
        if rows["text"]:
            texts, _single = text_items([(prompt or "") + inputs[row] for row in rows["text"]])
            for role, module in self.model.loaded("text").items():
                made |= {f"text:{role}:{name}": x for name, x in module.prepare_text(texts).items()}
        if rows["image"]:
            images, _single = image_items([inputs[row] for row in rows["image"]])
            pictures = list(images)
            images.say_converted()
            for role, module in self.model.loaded("image").items():
                made[f"image:{role}"] = torch.stack([module.prepare_image(picture) for picture in pictures])
        return made | {f"{modality}:rows": torch.tensor(of) for modality, of in rows.items() if of}

    def tokenize(self, texts: Sequence[Any], **options: Any) -> dict[str, Tensor]:
        """Prepare: the name that older versions of sentence-transformers call."""
        return self.preprocess(texts, **options)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, (n, dim), to what :meth:`preprocess` made."""
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for modality in self.model.modalities:
            if f"{modality}:rows" in features:
                places.append(features[f"{modality}:rows"])
                parts.append(self.model(modality, self._inputs(modality, features)))
        order = torch.cat(places).argsort()
        return {**features, "sentence_embedding": torch.cat(parts)[order.to(parts[0].device)]}

    def _inputs(self, modality: Modality, features: dict[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for role in self.model.loaded(modality):
            head = f"{modality}:{role}"
            named = {key.removeprefix(f"{head}:"): x for key, x in features.items() if key.startswith(f"{head}:")}
            inputs[role] = features.get(head, named)
        return inputs

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Write the fused encoder's folder."""
        self.model.save_pretrained(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Self:
        """Read what :meth:`save` wrote."""
        return cls(FusedEncoder.from_pretrained(os.path.join(model_name_or_path, subfolder)))
