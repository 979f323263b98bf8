"""Embeddings in fewer bytes: int8 numbers, or bits; and similarities of what is left.

Nothing is fitted, so that items can be added to an index at any time, and queries may come from another machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.draws import orthogonal_rows

Precision = Literal["int8", "binary"]
PRECISIONS = ("int8", "binary")

_MOST = 127
_ROWS = 4096


@dataclass(frozen=True)
class Quantised:
    """Quantised embeddings.

    Attributes:
        codes: (n, dim) int8; or (n, bits / 8) uint8, eight bits a byte, the first one the lowest.
        scale: (n,) float32; ``int8``: what a code of 1 stands for; ``binary``: the embedding's norm.
        precision: ``"int8"`` or ``"binary"``.
        dim: of the embeddings.
        seed: of the directions of ``binary``.
    """

    codes: Tensor
    scale: Tensor
    precision: Precision
    dim: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.numel() + 4 * self.scale.numel()

    def dequantised(self) -> Tensor:
        """Return the (n, dim) float32 embeddings that ``int8`` codes stand for.

        Raises:
            ConfigError: bits stand for no embedding.
        """
        if self.precision != "int8":
            raise ConfigError("binary codes keep angles, not embeddings; ask for their similarity")
        return self.codes.float() * self.scale[:, None]

    def similarity(self, other: Quantised, *, cosine: bool = False) -> Tensor:
        """Return the (n, m) float32 estimates of inner products, or of cosines.

        Args:
            other: quantised in the same way.
            cosine: estimate cosines.

        Raises:
            DataError: the other is of another precision, dimension, number of bits or seed.
        """
        mine, theirs = (
            (x.precision, x.dim, x.codes.shape[1], x.seed if x.precision == "binary" else 0) for x in (self, other)
        )
        if mine != theirs:
            words = "precision, dimension, bytes a row and seed"
            raise DataError(f"codes of {words} {mine} and {theirs} have no similarity; quantise both alike")
        if self.precision == "int8":
            # Sums of products of integers are exact up to 2^24 in float32.
            exact = torch.float32 if self.dim * _MOST**2 < 2**24 else torch.float64
            dots = (self.codes.to(exact) @ other.codes.to(exact).T).float()
            a, b = self.scale, other.scale
            if cosine:
                a, b = (1 / x.codes.to(exact).norm(dim=1).float() for x in (self, other))
            return dots * a[:, None] * b[None, :]
        bits = 8 * self.codes.shape[1]
        differ = (bits - _signs(self.codes) @ _signs(other.codes).T) / 2
        cosines = torch.cos(math.pi * differ / bits)
        return cosines if cosine else cosines * self.scale[:, None] * other.scale[None, :]


def quantise(embeddings: Any, precision: Precision, *, bits: int | None = None, seed: int = 0) -> Quantised:
    """Quantise embeddings, each by itself.

    ``int8``: x ≈ s·q, s = max|x_j| / 127, so that no number is off by more than s/2. ``binary``: the signs of x along
    random directions, orthogonal in blocks of ``dim`` (Ji et al., NIPS 2012). Each separates two embeddings at an angle
    θ with probability θ/π (Goemans and Williamson 1995; Charikar 2002), so the share of signs that differ is an
    unbiased estimate of θ/π, of standard deviation √(θ/π·(1 − θ/π)/bits) for independent directions. That a fused
    embedding's coordinates are of very different size does not matter. The norm is kept beside the bits.

    Args:
        embeddings: (n, dim) tensor or array; as the model gave them, or normalised.
        precision: ``"int8"`` or ``"binary"``.
        bits: of ``"binary"``, a multiple of 8; None = ``dim``, rounded up to one.
        seed: of the directions; both sides of a similarity need the same.

    Raises:
        ConfigError: a bad option.
        DataError: they are no rows of finite floats, or a row is zero.

    Examples:
        >>> x = torch.eye(3)[:2]
        >>> quantise(x, "int8").similarity(quantise(x, "int8"))
        tensor([[1., 0.],
                [0., 1.]])
    """
    check_choice("precision", precision, PRECISIONS)
    x = torch.as_tensor(embeddings).detach()
    if x.ndim != 2 or not x.is_floating_point() or not x.shape[1]:
        raise DataError(f"embeddings must be (n, dim) floats, got {tuple(x.shape)} {x.dtype}")
    x = x.float() if x.dtype != torch.float64 else x
    largest = x.abs().amax(1)
    if not bool(torch.isfinite(largest).all()):
        raise DataError(f"row {int((~torch.isfinite(largest)).nonzero()[0])} of the embeddings is not finite")
    if not bool((largest > 0).all()):
        raise DataError(f"row {int((largest == 0).nonzero()[0])} of the embeddings is zero, and has no direction")
    if precision == "int8":
        if bits is not None:
            raise ConfigError(f"bits={bits} is of precision='binary'; int8 has 8 a number")
        codes = torch.round(x / largest[:, None] * _MOST).to(torch.int8)
        return Quantised(codes, (largest / _MOST).float(), precision, x.shape[1])
    bits = -(-x.shape[1] // 8) * 8 if bits is None else bits
    check_positive("bits", bits, integer=True)
    if bits % 8:
        raise ConfigError(f"bits={bits} must be a multiple of 8: they are kept in bytes")
    directions = _directions(bits, x.shape[1], seed).to(x)
    places = (2 ** torch.arange(8, device=x.device)).to(torch.uint8)
    made = []
    for block in blocks(len(x), _ROWS):
        positive = (x[block] @ directions.T > 0).to(torch.uint8).reshape(-1, bits // 8, 8)
        made.append((positive * places).sum(-1, dtype=torch.uint8))
    packed = torch.cat(made) if made else torch.zeros(0, bits // 8, dtype=torch.uint8)
    return Quantised(packed, x.norm(dim=1).float(), precision, x.shape[1], seed)


@lru_cache(maxsize=4)
def _directions(bits: int, dim: int, seed: int) -> Tensor:
    return orthogonal_rows(bits, dim, derived_generator(seed, "quantise", bits, dim)).float()


def _signs(packed: Tensor) -> Tensor:
    """Return the (n, bits) signs, ±1 as float32, of (n, bits / 8) bytes."""
    bits = packed[:, :, None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1
    return bits.flatten(1).float() * 2 - 1
