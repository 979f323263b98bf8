"""What is encoded by one job into one entry an encoder: a whole part, or a shard of one.

Units may be encoded in any order, by any number of jobs at once and anywhere that shares the store. Each is idempotent:
a job that finds the entry skips it, one that is killed is taken up at its last batch, and one that fails is retried
alone. The features of all units of a part look like one tensor, memory-mapped and never joined.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, KrossFuseError, check_positive
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import Part
from krossfuse.core.processes import EndWithParent
from krossfuse.core.sharded import below_one_another
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.common import digest
from krossfuse.data.module import BaseDataModule, Item, ShardOfPart
from krossfuse.encoders.base import EncoderModule
from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract, keys_for
from krossfuse.features.keys import FeatureKey
from krossfuse.features.plan import TEXTS
from krossfuse.features.stores.base import BusyError, FeatureStore

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """Some consecutive rows of a part.

    Attributes:
        part: the part.
        start: first row.
        stop: the row after the last.
        name: of the shard; empty for a whole part.
        fingerprint: of the shard's items; None = the part's own.
    """

    part: Part
    start: int
    stop: int
    name: str = ""
    fingerprint: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.part} {self.name}".strip()


def check_shard_rows(name: str, rows: object) -> None:
    """Check that shards of so many rows begin where blocks do that are encoded together, so that no bit changes.

    Raises:
        ConfigError: it is no positive multiple of :data:`~krossfuse.features.plan.TEXTS`.
    """
    check_positive(name, rows, integer=True)
    if int(rows) % TEXTS:  # type: ignore[call-overload]
        raise ConfigError(f"{name}={rows} must be a multiple of {TEXTS}: as many rows may be encoded together")


def units(data: BaseDataModule, shard_rows: int | None = None) -> list[Unit]:
    """Return the units of a dataset in the order of its parts and rows; only the list of its items is read.

    Args:
        data: the dataset.
        shard_rows: parts of more rows that have no shards of their own are cut into shards of so many; None = whole.

    Raises:
        ConfigError: see :func:`check_shard_rows`.
    """
    if shard_rows is not None:
        check_shard_rows("shard_rows", shard_rows)
    found = []
    for part in data.parts():
        n = len(data.items(part))
        if shards := data.shards(part):
            found += [Unit(part, *shard.rows, shard.name, shard.fingerprint) for shard in shards]
        elif shard_rows is None or n <= shard_rows:
            found.append(Unit(part, 0, n))
        else:
            for rows in blocks(n, shard_rows):
                given: dict[str, Any]
                if part.modality == "text":
                    texts = data.items(part)
                    given = {"sha256": digest(str(texts[row]) for row in range(rows.start, rows.stop))}
                else:
                    given = {**data.part_fingerprint(part), "rows": [rows.start, rows.stop]}
                found.append(Unit(part, rows.start, rows.stop, f"rows {rows.start}-{rows.stop - 1}", given))
    return found


class OneUnit(BaseDataModule):
    """A dataset of which only one unit is there.

    Args:
        data: the whole dataset.
        unit: of it.
    """

    def __init__(self, data: BaseDataModule, unit: Unit) -> None:
        super().__init__(batch_size=data.batch_size, num_workers=data.num_workers, duplicates="ignore")
        self.data, self.unit = data, unit
        self._items = _Some(data.items(unit.part), unit.start, unit.stop) if unit.name else data.items(unit.part)

    def load(self) -> Any:
        """Not used: the whole dataset is listed."""
        return self.data.load()

    def setup(self, stage: str | None = None) -> None:
        """List the whole dataset."""
        self.data.setup(stage)

    @property
    def info(self) -> DatasetInfo:
        """That of the whole dataset."""
        return self.data.info

    def parts(self) -> list[Part]:
        """Return the unit's part."""
        return [self.unit.part]

    def items(self, part: Part) -> Sequence[Item]:
        """Return the unit's items."""
        return self._items

    def part_name(self, part: Part) -> str:
        """Return the part's name and the shard's."""
        return str(self.unit)

    def part_fingerprint(self, part: Part) -> dict[str, Any]:
        """Return what decides the unit's items."""
        if self.unit.fingerprint is None:
            return self.data.part_fingerprint(part)
        return {"n": self.unit.stop - self.unit.start, **self.unit.fingerprint}


class _Some(Sequence[Item]):
    def __init__(self, items: Sequence[Item], start: int, stop: int) -> None:
        self.items, self.start, self.stop = items, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.items[self.start + index]


def encode_units(
    data: BaseDataModule,
    pair: Pair,
    store: FeatureStore,
    *,
    shard_rows: int | None = None,
    chosen: Sequence[int] | None = None,
    loaded: dict[int, EncoderModule] | None = None,
    **options: Any,
) -> int:
    """Encode the units that the store lacks, and leave to other jobs what they are encoding.

    Args:
        data: the dataset.
        pair: the encoders, by role.
        store: where features are kept.
        shard_rows: see :func:`units`.
        chosen: numbers of units; None = all, in an order of this process's own, so that several seldom meet.
        loaded: by identity, encoders that are loaded already; those that are loaded now join them.
        **options: of :func:`krossfuse.features.extract.extract`; on several devices one process each encodes units.

    Returns:
        How many units this job has encoded; when it returns, all chosen ones are in the store.

    Raises:
        ConfigError: a number of no unit.
        DataError: an item of a unit cannot be read, or its shard is not what it was. Other units stay encoded.
    """
    pending = chosen_units(units(data, shard_rows), chosen)
    devices = _devices(options["trainers"])
    if len(devices) > 1 and len(pending) > 1:
        return _on_each(devices, data, pair, store, shard_rows=shard_rows, chosen=chosen, **options)
    kept: dict[int, EncoderModule] = {} if loaded is None else loaded
    return share(pending, lambda unit: _encode(data, unit, pair, store, wait=False, loaded=kept, **options))


def chosen_units(every: Sequence[T], chosen: Sequence[int] | None) -> list[T]:
    """Return some of all units; all, where None are chosen, in an order of this process's own.

    Raises:
        ConfigError: a number of no unit.
    """
    if chosen is None:
        first = os.getpid() * 2654435761 % max(1, len(every))
        return [*every[first:], *every[:first]]
    for number in chosen:
        if not 0 <= number < len(every):
            raise ConfigError(f"shard={number}: there are {len(every)}, 0 to {len(every) - 1}")
    return [every[number] for number in chosen]


def share(pending: Sequence[T], work: Callable[[T], int]) -> int:
    """Work on what no other job is working on, until all is done.

    Args:
        pending: what there is to do.
        work: returns how many this job has done (0 or 1); BusyError where another job is at it, which is then looked
            at again after the others.

    Returns:
        How many this job has done.
    """
    count = 0
    while pending:
        busy = []
        for one in pending:
            try:
                count += work(one)
            except BusyError:
                busy.append(one)
        if len(busy) == len(pending):
            time.sleep(_POLL_SECONDS)
        pending = busy
    return count


def _devices(trainers: TrainerFactory) -> list[Any]:
    """Return, for each device of a Trainer, the option ``devices`` of a Trainer on it alone."""
    trainer = trainers(one_device=False)
    if trainers.device.type == "cpu":
        return [1] * trainer.num_devices
    return [[number] for number in trainer.device_ids]


def _on_each(devices: Sequence[Any], *what: Any, trainers: TrainerFactory, **options: Any) -> int:
    """Run :func:`encode_units` in one process a device, which share the units as any jobs do.

    Raises:
        KrossFuseError: of the first process that failed; the others have gone on to their ends.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(devices))
    running = []
    for on in devices:
        ours, theirs = context.Pipe(duplex=False)
        given = (EndWithParent(), theirs, threads, {**trainers.options, "devices": on}, what, options)
        process = context.Process(target=_on_one, args=given)
        process.start()
        theirs.close()
        running.append((process, ours))
    count, failed = 0, []
    for process, ours in running:
        try:
            told = ours.recv()
        except EOFError:
            told = None
        process.join()
        if told is None:
            told = DataError(
                f"a process that encodes ended (status {process.exitcode}); was there enough memory? What was encoded "
                "is kept: run again, on fewer devices if it happens again"
            )
        if isinstance(told, int):
            count += told
        else:
            failed.append(told)
    if failed:
        raise failed[0]
    return count


def _on_one(guard: Any, told: Any, threads: int, trainer: dict[str, Any], what: Any, options: dict[str, Any]) -> None:
    torch.set_num_threads(threads)
    try:
        told.send(encode_units(*what, trainers=TrainerFactory(trainer), **options))
    except KrossFuseError as error:
        told.send(error)


def _encode(data: BaseDataModule, unit: Unit, pair: Pair, store: FeatureStore, *, wait: bool, **options: Any) -> int:
    """Return 1 if this job computed features of a unit, 0 if the store had them."""
    view = OneUnit(data, unit)
    size, trainers = options["batch_size"] or data.batch_size, options["trainers"]
    keys = [key for of in keys_for(view, pair, trainers, size, options["dtype"])[0].values() for key in of.values()]
    if all(key in store for key in keys):
        return 0
    computed: list[FeatureKey] = []
    extract(view, pair, store, wait=wait, computed=computed, **options)
    if unit.name:
        data.finished(unit.part, ShardOfPart(unit.name, (unit.start, unit.stop), unit.fingerprint or {}))
    return int(bool(computed))


def extract_units(
    data: BaseDataModule, pair: Pair, store: FeatureStore, *, shard_rows: int | None = None, **options: Any
) -> FeatureBundle:
    """Return the features of all units as one bundle; compute what the store lacks.

    Args:
        data: the dataset.
        pair: the encoders, by role.
        store: where features are kept.
        shard_rows: see :func:`units`.
        **options: of :func:`krossfuse.features.extract.extract`.

    Raises:
        DataError: see :func:`encode_units`.
    """
    encode_units(data, pair, store, shard_rows=shard_rows, **options)
    pieces: dict[Part, dict[str, list[Tensor]]] = {}
    encoders: Mapping[str, Mapping[str, Any]] = {}
    loaded: dict[int, EncoderModule] = {}
    options["trainers"] = options["trainers"].having(devices=1)
    for unit in units(data, shard_rows):
        # All is there; only what is damaged is computed anew.
        bundle = extract(OneUnit(data, unit), pair, store, loaded=loaded, **options)
        encoders = bundle.encoders
        for part, roles in bundle.features.items():
            for role, x in roles.items():
                pieces.setdefault(part, {}).setdefault(role, []).append(x)
    features = {part: {role: below_one_another(of) for role, of in roles.items()} for part, roles in pieces.items()}
    return FeatureBundle(info=data.info, pair=pair.name, features=features, encoders=encoders)
