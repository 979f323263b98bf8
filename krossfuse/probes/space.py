"""What a probe is given: one embedding of one dataset, held in memory or made batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.probes.rows import finite_rows

Kernel = Callable[[Part, Tensor, Part, Tensor], Tensor | None]
READ_ROWS = 4096
"""Rows that are read at once."""


class EmbeddingStream(Protocol):
    """Batches of a part with their labels, made as they are asked for; walked again for each epoch.

    Attributes:
        rows: items in a pass.
        dim: of the embeddings.
    """

    rows: int
    dim: int

    def __len__(self) -> int:
        """Batches in a pass."""

    def __iter__(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """Yield embeddings (batch, dim) and, by label set, their labels."""


class StreamMaker(Protocol):
    """Makes streams of one part: in the order of its rows without a seed, else shuffled anew each pass."""

    def __call__(
        self, label_sets: Iterable[str] = (), *, batch_size: int | None = None, seed: int | None = None
    ) -> EmbeddingStream:
        """Return the stream with the labels of these sets, ``batch_size`` rows at a time."""


class HeldStream:
    """The stream of embeddings that are held (or lie over a memory map).

    Shuffled rows ascend within a batch, which is kind to a memory map; the shuffle is
    ``torch.randperm(rows, generator=<seed>)``, another order each pass.

    Args:
        x: (rows, dim).
        labels: by label set, of the rows.
        part: in messages.
        batch_size: rows in a batch.
        seed: of the order; None is that of the rows.
    """

    def __init__(
        self, x: Tensor, labels: Mapping[str, Tensor], part: Part, *, batch_size: int, seed: int | None
    ) -> None:
        self.x, self.labels, self.part, self.batch_size = x, labels, part, batch_size
        self.rows, self.dim = x.shape
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        if self.generator is None:
            order = torch.arange(self.rows)
        else:
            order = torch.randperm(self.rows, generator=self.generator)
        for batch in torch.split(order, self.batch_size):
            rows = batch.sort().values
            x = finite_rows(self.x[rows], self.part, rows=rows)
            yield x, {name: labels[rows] for name, labels in self.labels.items()}


@dataclass(frozen=True)
class EmbeddingSpace:
    """One embedding of one dataset, as a probe sees it.

    Attributes:
        info: the dataset: label sets, prompts, captions.
        parts: by part, the embeddings (n, dim); may lie over a read-only memory map larger than memory, so probes
            read them in blocks of rows.
        kernel: exact kernel between rows of two parts, ``kernel(part_a, rows_a, part_b, rows_b)`` to (a, b), with
            row indices (int64), or None where the embedding has no exact kernel behind it. See :meth:`exact_kernel`.
        reference: by part, the cross-modal encoder's own embeddings, for measures of agreement; may be empty.
        parents: by part and role, the features that the embedding was fused from, for kernels of the parents
            themselves; over a read-only memory map where they come from a store, and empty where they only stream.
        trainers: makes the Trainers of probes that train, from the run's options and tracker.
        streams: of parts that are never held whole, what makes their batches (``FusionModule.stream`` of a part).
            Only probes that train on batches can use them.
    """

    info: DatasetInfo
    parts: Mapping[Part, Tensor]
    kernel: Kernel | None = None
    reference: Mapping[Part, Tensor] = field(default_factory=dict)
    parents: Mapping[Part, Mapping[str, Tensor]] = field(default_factory=dict)
    trainers: TrainerFactory = field(default_factory=TrainerFactory)
    streams: Mapping[Part, StreamMaker] = field(default_factory=dict)

    def __contains__(self, part: object) -> bool:
        return part in self.parts

    def __getitem__(self, part: Part) -> Tensor:
        try:
            return self.parts[part]
        except KeyError:
            pass
        available = [str(p) for p in sorted(self.parts)]
        only = " (it is only streamed)" if part in self.streams else ""
        raise DataError(f"this embedding of {self.info.name!r} has no part {part}{only}; it has {available}")

    def count(self, part: Part) -> int:
        """Return the number of rows of a part, held or streamed."""
        if part not in self.parts and part in self.streams:
            return self.streams[part]().rows
        return len(self[part])

    def stream(
        self, part: Part, label_sets: Iterable[str] = (), *, batch_size: int = READ_ROWS, seed: int | None = None
    ) -> EmbeddingStream:
        """Return the batches of a part with the labels of some label sets, whether it is held or streamed.

        Raises:
            DataError: the part is not there.
        """
        if part not in self.parts and part in self.streams:
            return self.streams[part](label_sets, batch_size=batch_size, seed=seed)
        labels = {name: self.info.labels(name, part) for name in label_sets}
        return HeldStream(self[part], labels, part, batch_size=batch_size, seed=seed)

    def read(self, part: Part, rows: Tensor) -> Iterator[Tensor]:
        """Yield the embeddings of ascending ``rows`` in blocks, checked to be finite.

        Raises:
            DataError: the part is not there, or a value is NaN or infinite.
        """
        if part in self.parts or part not in self.streams:
            for b in blocks(len(rows), READ_ROWS):
                yield finite_rows(self[part][rows[b]], part, rows=rows[b])
            return
        first = 0
        for x, _ in self.stream(part):
            wanted = rows[(rows >= first) & (rows < first + len(x))]
            if len(wanted):
                yield finite_rows(x[(wanted - first).to(x.device)], part, rows=wanted)
            first += len(x)

    def exact_kernel(self) -> Callable[[Part, Tensor, Part, Tensor], Tensor] | None:
        """Return the exact kernel, or None where there is none: some methods know it only when they are asked."""
        if self.kernel is None or not self.parts:
            return None
        kernel, first, row = self.kernel, next(iter(self.parts)), torch.zeros(1, dtype=torch.int64)
        if kernel(first, row, first, row) is None:
            return None

        def exact(part_a: Part, rows_a: Tensor, part_b: Part, rows_b: Tensor) -> Tensor:
            gram = kernel(part_a, rows_a, part_b, rows_b)
            if gram is None:
                raise DataError(f"there is no exact kernel between {part_a} and {part_b}")
            return gram

        return exact
