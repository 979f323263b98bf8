"""What a wrapped strategy holds between rounds (momentum, second moments), for the checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

_PREFIX = "strategy"


def read_state(strategy: Strategy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays in a strategy's attributes (bare, in lists, in dicts, in ArrayRecords), and its numbers.

    What it keeps in another way (objects of its own, closures) is not seen.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, bool | int | float | str):
            numbers[name] = value
            continue
        kind, items = _items(value)
        for key, array in items:
            tensors[f"{_PREFIX}/{name}/{kind}/{key}"] = torch.from_numpy(np.array(array))
    return tensors, numbers


def write_state(strategy: Strategy, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put back what :func:`read_state` returned."""
    for name, value in numbers.items():
        setattr(strategy, name, value)
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for path, tensor in tensors.items():
        _, name, kind, key = path.split("/", 3)
        found.setdefault((name, kind), {})[key] = tensor.numpy()
    for (name, kind), arrays in found.items():
        setattr(strategy, name, _made(kind, arrays))


def of_strategy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return those of ``tensors`` that are a strategy's."""
    return {path: tensor for path, tensor in tensors.items() if path.startswith(f"{_PREFIX}/")}


def _items(value: Any) -> tuple[str, list[tuple[str, np.ndarray]]]:
    if isinstance(value, np.ndarray):
        return "array", [("0", value)]
    if isinstance(value, ArrayRecord):
        return "record", [(key, array.numpy()) for key, array in value.items()]
    if isinstance(value, dict) and value and all(isinstance(v, np.ndarray) for v in value.values()):
        return "dict", [(str(key), array) for key, array in value.items()]
    if isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
        return "list", [(f"{i:06d}", array) for i, array in enumerate(value)]
    return "", []


def _made(kind: str, arrays: dict[str, np.ndarray]) -> Any:
    if kind == "array":
        return arrays["0"]
    if kind == "record":
        return ArrayRecord({key: Array(array) for key, array in arrays.items()})
    return arrays if kind == "dict" else [arrays[key] for key in sorted(arrays)]
