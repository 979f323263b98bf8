"""Batches of a part: of its stored features, or of its raw items, in order or shuffled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from krossfuse.core.blocks import blocks
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.parts import Modality, Part
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import EncoderModule
from krossfuse.features.encoding import Prepare
from krossfuse.features.plan import SHARD, TEXTS
from krossfuse.fusion.base import Features

Rows = slice | Tensor
"""Row numbers of one batch."""


class Batch(NamedTuple):
    """One batch of one modality.

    Attributes:
        modality: of its rows.
        features: by role, (batch, dim); empty where ``inputs`` are given.
        inputs: by role, what the encoder of that role takes (images (batch, c, h, w), or blocks of tokenised texts).
        labels: by label set, (batch,) int64 with -1 where there is no label, or (batch, classes) bool.
        first: row of its first item in the part.
    """

    modality: Modality
    features: Features = {}  # noqa: RUF012 - never mutated
    inputs: Mapping[str, Any] = {}
    labels: Mapping[str, Tensor] = {}
    first: int = 0


class Order(Sampler[Rows]):
    """The rows of each batch: all in order, or shuffled, another order each epoch.

    Shuffled rows ascend within a batch, which is kind to a memory map.

    Args:
        rows: number of rows.
        size: rows a batch.
        seed: of the shuffle; None = in order.
    """

    def __init__(self, rows: int, size: int, seed: int | None = None) -> None:
        self.rows, self.size = rows, size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Rows]:
        # Drawn when the first batch is asked for: a loader with workers makes two iterators an epoch, and walks one.
        if self.generator is None:
            yield from blocks(self.rows, self.size)
        else:
            shuffled = torch.randperm(self.rows, generator=self.generator)
            yield from (batch.sort().values for batch in torch.split(shuffled, self.size))

    def __len__(self) -> int:
        return math.ceil(self.rows / self.size)


class PartRows(Dataset[Batch], Sized):
    """The rows of one part, asked for batch by batch."""

    def __init__(self, rows: int, modality: Modality, labels: Mapping[str, Tensor]) -> None:
        self.rows, self.modality, self.labels = rows, modality, labels

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: Rows) -> Batch:
        labels = {name: values[rows] for name, values in self.labels.items()}
        first = rows.start if isinstance(rows, slice) else int(rows[0])
        return self.batch(rows)._replace(labels=labels, first=first)

    def batch(self, rows: Rows) -> Batch:
        """Return the features or inputs of some rows."""
        raise NotImplementedError

    @property
    def num_workers(self) -> int:
        """Loader processes."""
        return 0


class StoredRows(PartRows):
    """Rows of stored features, read from their memory map when asked for."""

    def __init__(self, modality: Modality, features: Features, labels: Mapping[str, Tensor]) -> None:
        super().__init__(len(next(iter(features.values()))), modality, labels)
        self.features = features

    def batch(self, rows: Rows) -> Batch:
        """Return the stored features."""
        return Batch(self.modality, {role: x[rows] for role, x in self.features.items()})


class RawRows(PartRows):
    """Raw images or texts, decoded and prepared for every encoder when asked for (images in loader processes)."""

    def __init__(
        self,
        modality: Modality,
        items: Sequence[Any],
        encoders: Mapping[str, EncoderModule],
        labels: Mapping[str, Tensor],
        num_workers: int = 0,
    ) -> None:
        super().__init__(len(items), modality, labels)
        self.items, self.encoders = items, dict(encoders)
        self._workers = num_workers

    def batch(self, rows: Rows) -> Batch:
        """Return the prepared inputs."""
        numbers = range(*rows.indices(self.rows)) if isinstance(rows, slice) else rows.tolist()
        prepare = Prepare(self.encoders, self.modality, TEXTS)
        return Batch(self.modality, inputs=prepare.batch([prepare.item(self.items[i]) for i in numbers]))

    def take(self, rows: Tensor) -> RawRows:
        """Return some rows, in that order."""
        labels = {name: values[rows] for name, values in self.labels.items()}
        return RawRows(self.modality, _Chosen(self.items, rows.tolist()), self.encoders, labels, self._workers)

    @property
    def num_workers(self) -> int:
        """The data module's for images; texts are tokenised in the main process, whose tokenizers have threads."""
        return self._workers if self.modality == "image" else 0


class _Chosen(Sequence[Any]):
    """Some of the items, read when asked for."""

    def __init__(self, items: Sequence[Any], rows: Sequence[int]) -> None:
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.items[self.rows[index]]


Source = FeatureBundle | BaseDataModule
"""Where batches come from: stored features, or a dataset's raw items, which are encoded on the way."""


def sizes_of(source: Source) -> dict[Part, int]:
    """Return the number of rows of every part; of a raw dataset the list of its items is read, but no item."""
    if isinstance(source, FeatureBundle):
        return {part: len(next(iter(roles.values()))) for part, roles in source.features.items()}
    return {part: len(source.items(part)) for part in source.parts()}


def loader(rows: PartRows, size: int, *, seed: int | None = None) -> DataLoader[Batch]:
    """Return the loader over a part, ``size`` rows at a time, in order or shuffled by ``seed``.

    Raw items in order come in whole blocks, those that extraction encodes together, so that the features are the same
    to the bit.
    """
    if isinstance(rows, RawRows) and seed is None:
        block = SHARD if rows.modality == "image" else TEXTS
        size = max(block, size // block * block)
    return DataLoader(
        rows,
        batch_size=None,
        sampler=Order(len(rows), size, seed),
        num_workers=rows.num_workers,
        pin_memory=torch.cuda.is_available(),  # so that the copy to the device does not wait
    )
