"""A kind of job that only encodes: shards of a dataset into the store, beside any number of jobs like it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import ClassVar

from krossfuse.app.actors import by_actors, check_actors
from krossfuse.app.fuse_and_probe import FEATURE_KEYS, FuseAndProbe, make_source
from krossfuse.app.kind import Kind, Plain, Session
from krossfuse.core.errors import ConfigError
from krossfuse.core.trainers import TrainerFactory
from krossfuse.features.keys import FeatureKey
from krossfuse.features.source import Extraction
from krossfuse.features.units import Unit

log = logging.getLogger(__name__)


class Encode(Kind):
    """Encode what the store lacks of a dataset, or of one of its shards; nothing is fused and nothing is measured.

    Args:
        shard: number of the shard, from 0, in the order of parts and rows; None = every shard that no other job is
            encoding at the moment, until all are there.
        actors: let so many of Ray Data's actors encode (:mod:`krossfuse.app.actors`); None = this process.

    Raises:
        ConfigError: one is no whole number, or Ray Data is not installed.
    """

    keys: ClassVar[Mapping[str | None, tuple[str, ...]]] = FuseAndProbe.keys
    data_keys = FEATURE_KEYS

    def __init__(self, *, shard: int | None = None, actors: int | None = None) -> None:
        if shard is not None and (isinstance(shard, bool) or not isinstance(shard, int) or shard < 0):
            raise ConfigError(f"shard={shard!r} must be null or a whole number, 0 or more")
        self.shard, self.actors = shard, check_actors(actors)

    def build(self, cfg: Plain, choices: Mapping[str, str]) -> Extraction:
        """Return the extraction; see :meth:`Kind.build`."""
        source = make_source(cfg, TrainerFactory(cfg["trainer"]))
        if not isinstance(source, Extraction) or source.store is None:
            raise ConfigError(
                "job=encode takes a dataset, a pair of encoders and a store; these have nothing to encode"
            )
        return source

    def check_data(self, built: Extraction) -> None:
        """Check that the dataset is there, the device, and that there is such a shard."""
        built.check()
        count = len(built.unit_keys())
        if self.shard is not None and self.shard >= count:
            raise ConfigError(f"job.shard={self.shard}: {built.name!r} has {count} shards, 0 to {count - 1}")

    def fingerprint(self, built: Extraction) -> str:
        """Return the keys of what is to be encoded."""
        keys = [key.digest for _, roles in self._chosen(built) for key in roles.values()]
        return hashlib.sha256("".join(keys).encode()).hexdigest()[:12]

    def to_encode(self, built: Extraction) -> list[str]:
        """Return the shards that the store lacks, with their sizes."""
        assert built.store is not None
        return [
            f"{built.name}/{unit}: {unit.stop - unit.start} items"
            for unit, roles in self._chosen(built)
            if any(key not in built.store for key in roles.values())
        ]

    def _chosen(self, built: Extraction) -> list[tuple[Unit, dict[str, FeatureKey]]]:
        every = built.unit_keys()
        return every if self.shard is None else [every[self.shard]]

    def share(self, built: Extraction, work: Callable[..., int]) -> int:
        """Work on the chosen shards, here or by actors; return how many needed it."""
        if self.actors is None:
            return work(None if self.shard is None else [self.shard])
        shards = range(len(built.unit_keys())) if self.shard is None else [self.shard]
        return by_actors(work, shards, self.actors, gpus=built.trainers.device.type == "cuda")

    def label(self, built: Extraction) -> str:
        """Return the dataset, the pair and the shard."""
        shard = "" if self.shard is None else f"-shard{self.shard}"
        return f"encode-{built.name}-{built.pair.name}{shard}"

    def tags(self, built: Extraction) -> list[str]:
        """Return the dataset and the pair."""
        return ["encode", built.name, built.pair.name]

    def run(self, built: Extraction, session: Session) -> None:
        """Encode what the store lacks."""
        self.check_data(built)
        count = self.share(built, built.encode)
        log.info("%s: %d shards encoded by this job, the others were there", session.label, count)
