"""What every feature store can do, wherever it keeps its entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from torch import Tensor

from krossfuse.core.errors import StoreError
from krossfuse.features.entry import Entry
from krossfuse.features.keys import FeatureKey


class Writer(Protocol):
    """Writes one entry. It can be pickled: each process of a multi-device run writes its own rows."""

    rows: int
    dim: int
    finished: bool

    def done(self) -> np.ndarray:
        """Return which rows are written: (rows,) bool."""

    def missing(self) -> tuple[int, int]:
        """Return how many rows are not yet written, and the first of them (-1: none)."""

    def write(self, rows: Sequence[int] | np.ndarray, features: Tensor) -> None:
        """Store the features (batch, dim) of some rows (batch,)."""

    def finish(self) -> None:
        """Make the entry visible, all at once; StoreError if rows are missing."""

    def close(self) -> None:
        """Let go; what is written stays and can be taken up again."""


class BusyError(StoreError):
    """Another job is writing an entry, and this one was not to wait."""


class FeatureStore(Protocol):
    """Features by content: an entry is found by the digest of all that changes a feature.

    A store is chosen by the configuration (``store=local``, ``store=fsspec``); a store of one's own is a class with
    these methods, named as ``store._target_``.

    Attributes:
        where: the place, for messages: a folder or a URL.
    """

    where: str

    def __contains__(self, key: object) -> bool:
        """Return whether there is a finished entry of a key."""

    def read(self, key: FeatureKey) -> Tensor:
        """Return the features of a key: (rows, dim).

        Raises:
            StoreError: there is no such entry, it was written in another format, or the place cannot be reached.
            DamagedEntryError: it is not what was written.
        """

    def lock(self, keys: Iterable[FeatureKey], *, wait: bool = True) -> AbstractContextManager[None]:
        """Hold the right to write some keys; wait, and say so, while another job holds one of them.

        Raises:
            BusyError: another job holds one, and ``wait`` is False.
        """

    def writer(self, key: FeatureKey, *, rows: int, dim: int, dtype: str = "float32") -> Writer:
        """Begin an entry, or take up what a killed job left of it. Call it under :meth:`lock`."""

    def entries(self) -> list[Entry]:
        """Return all entries, finished, partial and unreadable, oldest first."""

    def record(self, entry: Entry) -> str:
        """Return the record of an entry, JSON, as it was written."""

    def verify(self, entry: Entry, *, again: bool = False) -> None:
        """Check every byte of a finished entry (``again``: also what this process has checked already).

        Raises:
            DamagedEntryError: a difference; the message names it and the way out.
        """

    def delete(self, name: str, *, partial: bool = False) -> bool:
        """Delete the entry of a full key (``partial``: what a killed job left of it).

        Returns:
            False if a job is writing it just now, so it was left alone.
        """
