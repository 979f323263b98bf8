"""The joint kernels of paired data."""

from __future__ import annotations

from torch import Tensor

from krossfuse.core.errors import DataError


def paired_kernels(image: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Return the joint kernels of paired data, where item i is an image and a text: K_I, K_T, their sum and product.

    Two items are similar under the sum if either part says so, under the product only if both do: of groups that
    cross (2 genders × 3 professions), the product alone separates all.

    Args:
        image: kernel matrix (n, m) of the images.
        text: kernel matrix (n, m) of the texts.

    Raises:
        DataError: the matrices differ in shape.

    Example:
        >>> import torch
        >>> image = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
        >>> paired_kernels(image, torch.eye(2))["product"]
        tensor([[1., 0.],
                [0., 1.]])
    """
    if image.shape != text.shape:
        raise DataError(f"paired kernels are of the same items, got {tuple(image.shape)} and {tuple(text.shape)}")
    return {"image": image, "text": text, "sum": image + text, "product": image * text}
