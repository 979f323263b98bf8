"""What a user hands over as images and texts: one or many, of any usual kind, checked and converted."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.data.common import open_image, to_rgb

log = logging.getLogger(__name__)

NO_RANGE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of Pillow whose numbers have no range that an encoder knows."""

_KINDS = "a PIL image, a path, a (3, h, w) tensor, an (h, w, 3) array, or a list of these"


def image_items(images: Any) -> tuple[Pictures, bool]:
    """Return images as a lazy sequence of RGB images, and whether it was a single one.

    Args:
        images: a PIL image, a path, a tensor (channels, h, w) or (n, channels, h, w), a numpy array (h, w),
            (h, w, channels) or (n, h, w, channels); or a sequence of these. Numbers are uint8, or floats from 0 to 1.

    Raises:
        DataError: nothing, or something else.
    """
    if isinstance(images, Pictures):
        return _some(images), False
    if isinstance(images, Image.Image | str | os.PathLike):
        return Pictures([images]), True
    if isinstance(images, Tensor | np.ndarray):
        single = images.ndim == 3 if isinstance(images, Tensor) else images.ndim == 2 or _is_one(images)
        if not single and images.ndim != 4:
            layout = "(n, channels, h, w)" if isinstance(images, Tensor) else "(n, h, w, channels)"
            raise DataError(f"images of shape {tuple(images.shape)}: expected one image or {layout}")
        return _some(Pictures([images] if single else images)), single
    if isinstance(images, Sequence) and not isinstance(images, bytes | bytearray):
        return _some(Pictures(images)), False
    raise DataError(f"cannot encode a {type(images).__name__} as images; give {_KINDS}")


def text_items(texts: Any) -> tuple[list[str], bool]:
    """Return texts as a list, and whether it was a single one.

    Raises:
        DataError: nothing, something that is no text, or a text that cannot be written as UTF-8 (half of a surrogate
            pair); the message says where it stands.
    """
    single = isinstance(texts, str)
    given: Any = [texts] if single else texts
    if isinstance(given, np.ndarray) and given.ndim == 1:
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        raise DataError(f"cannot encode a {type(texts).__name__} as texts; give a text or a list of texts")
    if not len(given):
        raise DataError("no texts were given: the list is empty")
    for row, text in enumerate(given):
        if not isinstance(text, str):
            raise DataError(f"text {row} is a {type(text).__name__}, not a text: {str(text)[:60]!r}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"text {row} cannot be written as UTF-8 ({error.reason}): {text[:60]!r}") from None
    return list(given), single


class Pictures(Sequence[Image.Image]):
    """Images of all kinds as a lazy sequence of RGB images.

    Attributes:
        converted: how many images of which mode were converted so far.
    """

    def __init__(self, images: Any) -> None:
        self.images = images
        self.converted: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        image = self.images[index]
        if isinstance(image, str | os.PathLike):
            return open_image(os.fspath(image))  # its modes are the datasets' matter
        if isinstance(image, Tensor | np.ndarray):
            image = _from_numbers(image, f"image {index}")
        if not isinstance(image, Image.Image):
            raise DataError(f"image {index} is a {type(image).__name__}; give {_KINDS}")
        if 0 in image.size:
            raise DataError(f"image {index} has no pixels: its size is {image.size}")
        if image.mode in NO_RANGE:
            raise DataError(
                f"image {index} has mode {image.mode!r}, whose numbers have no fixed range; scale them to 0 ... 255 "
                "and make it 'L' or 'RGB'"
            )
        if image.mode != "RGB":
            self.converted[image.mode] += 1
        try:
            return to_rgb(image)
        except (OSError, ValueError) as error:
            raise DataError(f"image {index} (mode {image.mode!r}) cannot be converted to RGB: {error}") from error

    def say_converted(self) -> None:
        """Log what was converted since the last time."""
        if self.converted:
            modes = ", ".join(f"{count} of mode {mode!r}" for mode, count in sorted(self.converted.items()))
            log.warning("images were converted to RGB, what is transparent to white: %s", modes)
            self.converted.clear()


def _some(pictures: Pictures) -> Pictures:
    if not len(pictures):
        raise DataError("no images were given: the list is empty")
    return pictures


def _is_one(array: NDArray[Any]) -> bool:
    return array.ndim == 3 and array.shape[-1] in (1, 3, 4)


def _from_numbers(numbers: Tensor | NDArray[Any], name: str) -> Image.Image:
    """Return the image of a (channels, h, w) tensor or an (h, w[, channels]) array."""
    if isinstance(numbers, Tensor):
        if numbers.ndim != 3 or numbers.shape[0] not in (1, 3, 4):
            raise DataError(f"{name}: a tensor of shape {tuple(numbers.shape)}; expected (3, h, w), (1, h, w) or "
                            "(4, h, w)")  # fmt: skip
        pixels = numbers.detach().cpu().permute(1, 2, 0)
        array: NDArray[Any] = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
    else:
        array = numbers[..., None] if numbers.ndim == 2 else numbers
        if not _is_one(array):
            raise DataError(
                f"{name}: an array of shape {numbers.shape}; expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)"
            )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= 0.0 and high <= 1.0):
            raise DataError(
                f"{name}: floats from {low:g} to {high:g}, and an image of floats has values from 0 to 1; if it is "
                "preprocessed already, use the model's open_clip() form, else divide or use uint8"
            )
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"{name}: numbers of type {array.dtype}; an image is uint8, or floats from 0 to 1")
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else np.ascontiguousarray(array))


def say_cut(texts: int, limit: int, role: str) -> None:
    """Log that texts are longer than an encoder reads."""
    log.warning("of the texts, %d fill the %d tokens that %r reads; what is beyond is cut", texts, limit, role)


def cut_texts(tokens: Any, limit: int) -> int:
    """Return how many texts of a tokenised batch fill all the tokens that an encoder reads."""
    mask = tokens.get("attention_mask")
    lengths = (tokens["input_ids"] != 0).sum(1) if mask is None else mask.sum(1)
    return int(torch.count_nonzero(lengths >= limit))
