"""A fused encoder in the form of open_clip's models: ``model.encode_image(preprocess(image)[None])`` and a tokenizer.

    model, preprocess, tokenizer = krossfuse.FusedEncoder.from_pretrained(folder).open_clip()

Code that was written for open_clip runs on it as it is. What ``preprocess`` and ``tokenizer`` return holds the inputs
of all encoders side by side, in one tensor that loaders can stack and move: a prepared image is a vector, not
(channels, h, w); a tokenised text is a row of numbers with a head that says how long each encoder's share is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.errors import DataError
from krossfuse.core.unit import normalised
from krossfuse.model.fused import Fused
from krossfuse.model.items import Pictures, image_items, text_items


class Preprocess:
    """An image (PIL, path, array or tensor) to the inputs of all image encoders, side by side: (numbers,) float32."""

    def __init__(self, model: Fused) -> None:
        self.modules = model.loaded("image")
        blank = Pictures([torch.zeros(3, 64, 64, dtype=torch.uint8)])[0]
        self.shapes = {role: tuple(module.prepare_image(blank).shape) for role, module in self.modules.items()}

    def __call__(self, image: Any) -> Tensor:
        """Prepare one image.

        Raises:
            DataError: it is no image, or an encoder prepares images of different shapes, which cannot be stacked.
        """
        items, single = image_items(image)
        if not single:
            raise DataError("preprocess takes one image at a time; stack what it returns")
        prepared = {role: module.prepare_image(items[0]) for role, module in self.modules.items()}
        for role, x in prepared.items():
            if tuple(x.shape) != self.shapes[role]:
                raise DataError(f"encoder {role!r} prepares this image as {tuple(x.shape)} and another as "
                                f"{self.shapes[role]}; use FusedEncoder.encode_image")  # fmt: skip
        return torch.cat([x.flatten() for x in prepared.values()])

    def split(self, images: Tensor) -> dict[str, Tensor]:
        """Return by role the (n, channels, h, w) images of stacked prepared ones.

        Raises:
            DataError: they are not what this made.
        """
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        if images.ndim != 2 or images.shape[1] != sum(sizes):
            raise DataError(
                f"images of shape {tuple(images.shape)}: expected (n, {sum(sizes)}), rows of the model's own preprocess"
            )
        parts = torch.split(images, sizes, 1)
        return {role: x.reshape(len(x), *shape) for (role, shape), x in zip(self.shapes.items(), parts, strict=True)}


class Tokenizer:
    """Texts to the tokens of all text encoders, side by side: (n, numbers) int64.

    Each encoder's share is a head of two numbers, its width and how much of that the longest text of the call fills,
    and then the named tensors of its own tokenizer, padded with zeros to the tokens that it reads at most (or, where
    that is not known, to the longest text).
    """

    def __init__(self, model: Fused) -> None:
        self.modules = model.loaded("text")
        self.names = {role: tuple(module.prepare_text(["a"])) for role, module in self.modules.items()}

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Tokenise texts; ``context_length`` is there for open_clip's sake and must be None.

        Raises:
            DataError: no texts, or a length was asked for.
        """
        if context_length is not None:
            raise DataError(f"context_length={context_length}: each encoder has its own length here; leave it out")
        items, _ = text_items(texts)
        shares = []
        for module in self.modules.values():
            tokens = module.prepare_text(items)
            used = next(iter(tokens.values())).shape[1]
            width = max(module.max_length or used, used)
            head = torch.tensor([[width, used]]).expand(len(items), 2)
            shares += [head, *(nn.functional.pad(x, (0, width - used)) for x in tokens.values())]
        return torch.cat(shares, 1)

    def split(self, rows: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return by role the named tokens of stacked rows, cut to the longest.

        Raises:
            DataError: they are not what this made.
        """
        made, at = {}, 0
        for role, names in self.names.items():
            if rows.ndim != 2 or rows.is_floating_point() or at + 2 > rows.shape[1]:
                raise DataError(f"tokens of shape {tuple(rows.shape)} ({rows.dtype}): expected rows of the model's own "
                                "tokenizer")  # fmt: skip
            width, used = int(rows[:, at].max()), int(rows[:, at + 1].max())
            tokens = rows[:, at + 2 : at + 2 + len(names) * width]
            at += 2 + len(names) * width
            if (
                not 0 < used <= width
                or at > rows.shape[1]
                or bool((rows[:, at - len(names) * width - 2] != width).any())
            ):
                raise DataError(f"tokens of shape {tuple(rows.shape)} are not rows of the model's own tokenizer")
            made[role] = {name: x[:, :used] for name, x in zip(names, torch.split(tokens, width, 1), strict=True)}
        return made


class OpenCLIPForm(nn.Module):
    """The model; see the module's words.

    Args:
        model: the fused encoder; ``to``, ``half`` and the like act on it.

    Attributes:
        visual: itself, for code that asks for ``model.visual.output_dim``.
        logit_scale: 0, so that ``logit_scale.exp()`` is 1.
    """

    def __init__(self, model: Fused) -> None:
        super().__init__()
        self.fused = model
        self.output_dim = model.dim
        self.register_buffer("logit_scale", torch.zeros(()), persistent=False)
        self.preprocess = Preprocess(model) if "image" in model.modalities else None
        self.tokenizer = Tokenizer(model) if "text" in model.modalities else None

    @property
    def visual(self) -> OpenCLIPForm:
        """The model itself."""
        return self

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Encode stacked prepared images, (n, numbers) to (n, dim); raises as :class:`Preprocess`."""
        self.fused.check_modality("image")
        assert self.preprocess is not None
        fused = self.fused("image", self.preprocess.split(image))
        return normalised(fused) if normalize else fused

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Encode tokenised texts, (n, numbers) to (n, dim); raises as :class:`Tokenizer`."""
        self.fused.check_modality("text")
        assert self.tokenizer is not None
        fused = self.fused("text", self.tokenizer.split(text))
        return normalised(fused) if normalize else fused

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Any, Any, Any]:
        """Return the normalised embeddings of images and of texts, None for what is not given, and the scale, 1."""
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        return images, texts, torch.as_tensor(self.logit_scale).exp()
