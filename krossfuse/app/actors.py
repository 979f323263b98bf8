"""Shards by a pool of Ray Data's actors: each keeps its encoders loaded, and takes one shard after the other."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krossfuse.core import errors
from krossfuse.core.errors import ConfigError, DataError, KrossFuseError, check_positive

Work = Callable[[Sequence[int], dict[int, Any]], int]
"""Work on shards by number, with the encoders that are loaded already; returns how many needed it."""


def check_actors(actors: int | None) -> int | None:
    """Return the number of actors, or None for none.

    Raises:
        ConfigError: it is not positive, or Ray Data is not installed.
    """
    if actors is None:
        return None
    check_positive("job.actors", actors, integer=True)
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")):
        raise ConfigError(f"job.actors={actors}: Ray Data is not installed; pip install 'krossfuse[ray]'")
    return actors


def by_actors(work: Work, shards: Sequence[int], actors: int, *, gpus: bool) -> int:
    """Work on shards by so many actors at once, wherever Ray has room for them; return how many needed it.

    A shard that fails does not stop the others. An actor that is killed is started again by Ray, with the shard it had.

    Args:
        work: picklable, with all that it needs; its results go to a store that every actor sees.
        shards: their numbers.
        actors: how many at once.
        gpus: give each actor a GPU.

    Raises:
        KrossFuseError: of the first shard that failed, when all others are done; its class is that of the shard's.
    """
    import ray.data

    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster; without it Ray starts on this machine.
        ray.init(log_to_driver=False, configure_logging=False, runtime_env={"env_vars": _ours()})
    items = ray.data.from_items([{"shard": int(shard)} for shard in shards], override_num_blocks=len(shards))
    done = items.map_batches(
        _Actor,
        fn_constructor_args=(work,),
        batch_size=1,
        concurrency=actors,
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    ended = sorted(done.take_all(), key=lambda row: row["shard"])
    failed = [row for row in ended if row["error"]]
    if failed:
        kind = getattr(errors, failed[0]["kind"], DataError)
        others = f" (and {len(failed) - 1} more shards)" if len(failed) > 1 else ""
        raise kind(f"shard {failed[0]['shard']}: {failed[0]['error']}{others}")
    return sum(row["count"] for row in ended)


def _ours() -> dict[str, str]:
    """Return the variables that an actor must have as this process has them."""
    return {name: value for name, value in os.environ.items() if name.startswith("KROSSFUSE_")}


class _Actor:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.loaded: dict[int, Any] = {}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"shard": [], "count": [], "error": [], "kind": []}
        for shard in map(int, batch["shard"]):
            count, error, kind = 0, "", ""
            try:
                count = self.work([shard], self.loaded)
            except KrossFuseError as failure:
                error, kind = str(failure), type(failure).__name__
            for name, value in zip(rows, (shard, count, error, kind), strict=True):
                rows[name].append(value)
        return rows
