"""Keys and values for the store's tests; small, since other processes import it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from krossfuse.features.keys import FeatureKey
from krossfuse.features.stores import LocalStore

ROWS, DIM = 10, 6


def key(**ingredients: object) -> FeatureKey:
    about = {"dataset": "toy", "part": "train:image", "encoder": "net"}
    return FeatureKey({"encoder": {"weights": "abc"}, "part": "train:image", **ingredients}, about)


def values(rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))


__all__ = ["DIM", "ROWS", "FeatureKey", "LocalStore", "Path", "key", "time", "torch", "values"]
