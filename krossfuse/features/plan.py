"""What is encoded together: a rule that knows row numbers only, so that a feature's bits depend on nothing else.

The last bits of a feature depend on how many rows share a forward pass, and a text's on the longest text beside it, to
which it is padded. So rows are encoded in blocks that begin at fixed rows of the part, whatever the batch size, the
number of devices, workers and threads, and wherever a killed job is taken up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from krossfuse.core.blocks import blocks
from krossfuse.core.parts import Modality

SHARD = 8
"""Rows of one forward pass on a CPU: few, so that activations stay in the cache of the one thread that runs it."""

TEXTS = 64
"""Texts that are padded together on a CPU."""

DEFAULT_BATCH = 64
"""Batch size on an accelerator that needs no word in the key of a feature."""


@dataclass(frozen=True)
class Together:
    """The blocks of one run.

    Attributes:
        accelerator: whether it runs on anything but a CPU. There a batch is one forward pass, so that the batch size
            decides the bits, and the key of a feature holds it (:meth:`ingredient`).
        batch_size: items decoded, encoded and stored at a time; on a CPU rounded down to whole blocks, or up to one.
    """

    accelerator: bool
    batch_size: int

    def block(self, modality: Modality) -> int:
        """Return how many rows are prepared together."""
        if self.accelerator:
            return self.batch_size
        return SHARD if modality == "image" else TEXTS

    @property
    def shard(self) -> int:
        """How many rows share a forward pass."""
        return self.batch_size if self.accelerator else SHARD

    @property
    def ingredient(self) -> dict[str, Any]:
        """What the key of a feature has to say of it, and of an accelerator's own rounding of float32."""
        if not self.accelerator:
            return {}
        together = {} if self.batch_size == DEFAULT_BATCH else {"encoded_together": self.batch_size}
        # PyTorch's own setting is TF32, which entries without the word were made in.
        return together if torch.backends.cudnn.allow_tf32 else {**together, "convolutions": "float32"}

    def batches(self, done: Iterable[np.ndarray], n: int, modality: Modality) -> list[tuple[int, ...]]:
        """Return the rows of each batch that is still to be encoded.

        Args:
            done: for each writer, which of its rows are stored: (n,) bool.
            n: number of rows of the part.
            modality: of the part.

        Returns:
            Whole blocks only, those in which any writer lacks a row.
        """
        stored = list(done)
        size = self.block(modality)
        pending = [block for block in blocks(n, size) if not all(of[block].all() for of in stored)]
        each = max(1, self.batch_size // size)
        return [
            tuple(row for block in pending[group] for row in range(block.start, block.stop))
            for group in blocks(len(pending), each)
        ]
