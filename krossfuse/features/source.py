"""Where the features of a run come from: extraction by encoders, a file, or a class of one's own.

What ``data`` names in the configuration decides: a dataset (``BaseDataModule``) is encoded by ``pair`` into the store;
anything with :meth:`FeatureSource.bundle` brings its own features, and takes no pair.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import EncoderModule
from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract, keys_for
from krossfuse.features.keys import FeatureKey
from krossfuse.features.stores.base import FeatureStore
from krossfuse.features.units import OneUnit, Unit, encode_units, extract_units, units


class FeatureSource(Protocol):
    """What gives a run its features.

    Constructing one validates, and reads nothing.
    """

    @property
    def name(self) -> str:
        """Name of the dataset, for messages."""

    @property
    def info(self) -> DatasetInfo:
        """Everything about the dataset but its items; may read."""

    def check(self) -> None:
        """Check what can be known at once, before any work: that files are where they should be.

        Raises:
            KrossFuseError: they are not.
        """

    def bundle(self) -> FeatureBundle:
        """Return the features.

        Raises:
            KrossFuseError: what is wrong with the data, the encoders or the store.
        """


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Features by encoding the items of a dataset, kept in a store (:func:`krossfuse.features.extract.extract`).

    Attributes:
        data: the dataset.
        pair: the encoders, by role.
        store: where features are kept; None = nowhere: the items can only be streamed.
        trainers: makes the Trainer that encodes.
        batch_size: items a batch; None = the dataset's own.
        dtype: of the stored features, ``float32``, ``float16`` or ``bfloat16``.
        progress: whether to show a progress bar.
        keep_heap: keep freed memory for the next batch (:func:`krossfuse.core.heap.kept_heap`).
        shard_rows: parts of more rows are encoded in shards of so many; None = where the dataset itself has shards.
    """

    data: BaseDataModule
    pair: Pair
    store: FeatureStore | None
    trainers: TrainerFactory
    batch_size: int | None = None
    dtype: str = "float32"
    progress: bool = True
    keep_heap: bool = True
    shard_rows: int | None = None

    @property
    def name(self) -> str:
        """Name of the dataset, for messages."""
        return name_of(self.data)

    @property
    def info(self) -> DatasetInfo:
        """Everything about the dataset but its items."""
        return self.data.info

    def check(self) -> None:
        """Check that the dataset is there, and that the device is.

        Raises:
            DataError: the dataset is not.
            ConfigError: the device is not, or Lightning refuses the options.
        """
        self.data.check()
        _ = self.trainers.device

    def unit_keys(self) -> list[tuple[Unit, dict[str, FeatureKey]]]:
        """Return the keys of each unit by role; nothing is loaded but the list of items."""
        size = self.data.batch_size if self.batch_size is None else self.batch_size
        found = []
        for unit in units(self.data, self.shard_rows):
            for roles in keys_for(OneUnit(self.data, unit), self.pair, self.trainers, size, self.dtype)[0].values():
                found.append((unit, roles))
        return found

    def bundle(self) -> FeatureBundle:
        """Return the features: stored ones, and what the store lacks computed.

        Raises:
            ConfigError: there is no store to keep them in.
        """
        options = self._options()
        if any(unit.name for unit in units(self.data, self.shard_rows)):
            return extract_units(self.data, self.pair, self._store(), shard_rows=self.shard_rows, **options)
        return extract(self.data, self.pair, self._store(), **options)

    def of_unit(self, unit: Unit, loaded: dict[int, EncoderModule]) -> FeatureBundle:
        """Return the features of one unit alone, computed where the store lacks them.

        Args:
            unit: of :meth:`unit_keys`.
            loaded: by identity, encoders that are loaded already; those that are loaded now join them.

        Raises:
            ConfigError: there is no store to keep them in.
            BusyError: another job is encoding it.
        """
        options = {**self._options(), "trainers": self.trainers.having(devices=1)}
        return extract(OneUnit(self.data, unit), self.pair, self._store(), wait=False, loaded=loaded, **options)

    def encode(self, shards: Sequence[int] | None = None, loaded: dict[int, EncoderModule] | None = None) -> int:
        """Encode units that the store lacks, beside any number of other jobs; return how many this one has encoded.

        Args:
            shards: their numbers, in the order of :meth:`unit_keys`; None = all.
            loaded: see :meth:`of_unit`.

        Raises:
            ConfigError: there is no store, or no such unit.
        """
        which: dict[str, Any] = {"shard_rows": self.shard_rows, "chosen": shards, "loaded": loaded}
        return encode_units(self.data, self.pair, self._store(), **which, **self._options())

    def _store(self) -> FeatureStore:
        if self.store is None:
            raise ConfigError(f"store=none keeps no features of {self.name!r}; choose store=local")
        return self.store

    def _options(self) -> dict[str, Any]:
        return {
            "trainers": self.trainers,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "progress": self.progress,
            "keep_heap": self.keep_heap,
        }


def feature_source(
    data: Any, pair: Pair | None, store: FeatureStore | None, trainers: TrainerFactory, **options: Any
) -> FeatureSource:
    """Return what gives a run its features.

    Args:
        data: what the configuration names as ``data``: a dataset, or a feature source.
        pair: the encoders; None for a source.
        store: where features are kept; None = nowhere.
        trainers: makes the Trainer that encodes.
        **options: of :class:`Extraction`.

    Raises:
        ConfigError: ``data`` is neither, a source with a pair, or a dataset without.
    """
    if _has(data, "bundle"):
        if lacks := [name for name in ("name", "info", "check") if not _has(data, name)]:
            raise ConfigError(
                f"data: {type(data).__name__} has bundle(), so it brings its own features, but it lacks {lacks}; a "
                "feature source has name, info, check() and bundle() (krossfuse.features.source.FeatureSource)"
            )
        if pair is not None:
            raise ConfigError(
                f"data={data.name!r} brings its own features, so it takes no pair={pair.name!r}; say pair=none"
            )
        source: FeatureSource = data
        return source
    if not isinstance(data, BaseDataModule):
        raise ConfigError(
            f"data: {type(data).__name__} is neither a dataset (a subclass of krossfuse.data.module.BaseDataModule) "
            "nor a feature source (a class with name, info, check() and bundle())"
        )
    if pair is None:
        raise ConfigError(f"pair=none has no encoders for data={name_of(data)!r}; choose a pair, or data=embeddings")
    return Extraction(data=data, pair=pair, store=store, trainers=trainers, **options)


def name_of(data: BaseDataModule) -> str:
    """Return the name of a dataset for messages; nothing is read."""
    return str(getattr(data, "name", None) or getattr(data, "dataset_name", None) or type(data).__name__)


def _has(component: Any, name: str) -> bool:
    """Whether it has an attribute, without asking for its value: a source's ``info`` may read a file."""
    try:
        inspect.getattr_static(component, name)
    except AttributeError:
        return False
    return True
