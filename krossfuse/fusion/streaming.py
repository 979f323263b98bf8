"""What walks over fused batches: a stream of them for others, and the callback that hands them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from krossfuse.core.lightning import pl
from krossfuse.fusion.batches import Batch

FusedBatch = tuple[Tensor, Mapping[str, Tensor]]
"""Embeddings (batch, dim), and labels by label set."""


class FusedStream:
    """The fused batches of a part, made as they are asked for; :meth:`~krossfuse.fusion.module.FusionModule.stream`.

    Args:
        batches: the loader.
        fuse: a batch in, its embeddings and labels out.
        ready: what is open while the stream is walked.
        dim: of the embeddings.

    Attributes:
        rows: items in a pass.
        dim: of the embeddings.
    """

    def __init__(
        self,
        batches: DataLoader[Batch],
        fuse: Callable[[Batch], FusedBatch],
        ready: Callable[[], AbstractContextManager[None]],
        *,
        dim: int,
    ) -> None:
        self.batches, self.dim = batches, dim
        self._fuse, self._ready = fuse, ready
        self.rows = len(batches.dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[FusedBatch]:
        with self._ready():
            for batch in self.batches:
                yield self._fuse(batch)


class EachBatch(pl.Callback):
    """Hands on what each predicted batch became: ``write(number of the loader, outputs)``."""

    def __init__(self, write: Callable[[int, Any], None]) -> None:
        self.write = write

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand on the outputs."""
        self.write(dataloader_idx, outputs)
