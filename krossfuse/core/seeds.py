"""Independent random streams from one seed, on the CPU, so that every device sees the same bits."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *key: object) -> int:
    """Return the 31-bit seed of the stream named by ``key``; different keys give independent streams.

    Example:
        >>> derive_seed(0, "factor", 0) == derive_seed(0, "factor", 1)
        False
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *key))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def derived_generator(seed: int, *key: object) -> torch.Generator:
    """Return the CPU generator of the stream named by ``key``."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))
