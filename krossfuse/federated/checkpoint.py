"""Checkpoints of a federation: one file, whole or not there, that only the same federation can go on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.files import write_whole
from krossfuse.federated.partition import Rows

_SAMPLED_ROWS = 64


class Checkpoint:
    """A safetensors file with the state as JSON in its metadata.

    A round is charged and saved in one piece. A run that is killed inside a round plays that round again: with the same
    keys and the same parameters it sends the same bits, which is no second release.

    Args:
        path: the file.
        identity: digest of all that decides the bits; another federation's file is refused.
    """

    def __init__(self, path: str | Path, identity: str) -> None:
        self.path, self.identity = Path(path), identity

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write."""
        metadata = {"identity": self.identity, "state": json.dumps(state)}
        write_whole(self.path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and state, or None where there is no file.

        Raises:
            DataError: the file is damaged, or of another federation.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise DataError(f"checkpoint {self.path} is damaged ({error}); remove it to start again") from error
        if metadata.get("identity") != self.identity:
            raise DataError(
                f"checkpoint {self.path} is of a federation with other settings, data or secret: going on from it "
                "would use keys twice and spend privacy that no account shows; give another file"
            )
        return tensors, json.loads(metadata["state"])


def fingerprint(settings: str, d: int, secret: bytes, x: Tensor, y: Tensor, parts: Sequence[Rows]) -> str:
    """Return a digest of what decides a federation's bits; of the inputs, shape and a sample of rows."""
    digest = hashlib.sha256(f"{settings}|{d}|{tuple(x.shape)}|{x.dtype}".encode())
    digest.update(hashlib.sha256(b"krossfuse/checkpoint" + secret).digest())
    rows = torch.linspace(0, len(x) - 1, min(len(x), _SAMPLED_ROWS)).long()
    digest.update(np.ascontiguousarray(x[rows].cpu().float().numpy()).tobytes())
    digest.update(np.ascontiguousarray(y.cpu().numpy()).tobytes())
    for part in parts:
        digest.update(np.int64(len(part)).tobytes() + np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return digest.hexdigest()
