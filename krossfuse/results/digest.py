"""Digests of a configuration: which runs measured the same thing, and differ in the seed alone.

A digest covers what can change a measurement, and nothing else. Left out are, key by key:

* ``seed``, and every nested ``seed`` outside ``data``: runs that differ in it are what an interval over seeds is made
  of, and the seed of a method or a probe follows the run's. A dataset's decides what is measured, so it stays in.
* ``name``, ``experiment``, ``hydra``: names of the run and of the study.
* ``paths``, ``store``: where runs and stored features lie.
* ``logger``, ``figures``, ``report``, ``save_fusion``: what is shown or kept of a run once it has been measured.
* ``extraction.batch_size``, ``extraction.shard_rows``, ``extraction.progress``, ``extraction.keep_heap``: how many
  items are encoded at a time and stored together, whether a bar shows it, and what becomes of freed memory; features
  do not depend on it. Its dtypes round on purpose.
* ``fuse.block_rows``, ``fuse.memory_limit``, ``fuse.stream``: how many rows are fused at a time, and whether they lie
  in memory, in a file or nowhere.
* ``trainer``: where Lightning works (accelerator, devices, strategy), what it prints and what it keeps. The same draws
  are used on every device, and rounding differs between devices no more than between versions of torch, which are in
  no digest either. ``precision`` and ``float32_matmul_precision`` round on purpose and stay in, and so does
  every option of a Trainer that :data:`OUTSIDE` does not name, for it may change a training.
* ``data.batch_size``, ``data.num_workers``, ``data.download``, ``data.digest``, ``data.duplicates``: how the loader
  works, whether files may be fetched, how a changed file is noticed, and what is said of copies.
* ``data.about``, ``data.expected``, and ``about`` of each encoder: licence, source, and what is checked.
* ``probe.*.block_rows``, ``probe.*.device``, ``probe.*.accelerator``, ``probe.*.checkpoint``: how many rows are probed
  at a time, where, and from which file a killed training goes on.
  (``sgd_probe.batch_size`` changes a training, and stays in.)
* what :data:`DEFAULTS` names and is as it was before there was such an option: runs of then and now are one.
* the other probes: a probe measures the same whichever others run beside it.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

OUTSIDE_DIGEST = frozenset(
    {
        *("seed", "paths", "store", "logger", "hydra", "name", "experiment", "figures", "report"),
        "save_fusion",
    }
)
"""Top keys of the configuration that change no measurement."""

OUTSIDE: dict[str, frozenset[str]] = {
    "extraction": frozenset({"batch_size", "progress", "keep_heap", "shard_rows"}),
    "fuse": frozenset({"block_rows", "memory_limit", "stream"}),
    "data": frozenset({"batch_size", "num_workers", "download", "digest", "duplicates", "about", "expected"}),
    "probe": frozenset({"block_rows", "device", "accelerator", "checkpoint"}),
    "trainer": frozenset(
        {
            *("accelerator", "devices", "num_nodes", "strategy", "use_distributed_sampler", "inference_mode"),
            *("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "log_every_n_steps", "logger"),
            *("default_root_dir", "profiler", "barebones", "enable_autolog_hparams", "detect_anomaly"),
        }
    ),
}
"""By section, the keys in it (of each probe, for ``probe``) that change no measurement; the module says why."""


DEFAULTS: dict[str, dict[str, Any]] = {
    "extraction": {"dtype": None, "store_dtype": "float32"},
    "trainer": {"float32_matmul_precision": "highest"},
}
"""By section, options that came later, with the values that mean what was done before."""

PLACES = frozenset({"path", "root", "name"})
"""Options of a dataset that say where it lies and what it is called."""


def config_digest(config: Mapping[str, Any] | DictConfig, probe: str | None = None) -> str:
    """Return a short digest of a configuration: runs that measured the same but for the seed share it.

    Interpolated paths are replaced by their names, so that the digest is the same on every machine.

    Args:
        config: of a job, resolved or not.
        probe: the probe whose measurements it stands for; None: all of them.

    >>> a = {"seed": 0, "fusion": {"dim": 500, "seed": 0}, "data": {"name": "openmoji"}}
    >>> b = {"seed": 1, "fusion": {"dim": 500, "seed": 1}, "data": {"name": "openmoji"}, "save_fusion": True}
    >>> config_digest(a) == config_digest(b)
    True
    >>> config_digest(a) == config_digest({**a, "fusion": {"dim": 1000, "seed": 0}})
    False
    """
    plain = _plain(config)
    if probe is not None:
        plain["probe"] = {probe: (plain.get("probe") or {}).get(probe)}
    return _digest(plain)


def method_digest(config: Mapping[str, Any] | DictConfig) -> str:
    """Return the digest of a configuration without its probes: measurements of one method on one dataset share it."""
    return _digest(_plain(config) | {"probe": None})


def items_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of what decides which items are tested, and in which order: the dataset's options.

    Where the dataset lies, and what it is called, is not in it. Empty where the configuration has no dataset.

    >>> items_digest({"data": {"folds": 3, "root": "/a"}}) == items_digest({"data": {"folds": 3, "root": "/b"}})
    True
    >>> items_digest({"data": {"folds": 3}}) == items_digest({"data": {"folds": None}})
    False
    """
    node = config.get("data")
    return _digest({"data": _without(node, PLACES)}) if isinstance(node, Mapping) else ""


def point_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of what a job leaves: its measurements, seeds included, and its fusion where that is kept.

    Args:
        config: of a job, resolved.

    >>> a = {"seed": 0, "fusion": {"dim": 500, "seed": 0}, "save_fusion": False, "paths": {"runs": "/a"}}
    >>> point_digest(a) == point_digest({**a, "paths": {"runs": "/b"}})
    True
    >>> len({point_digest(a), point_digest({**a, "seed": 1}), point_digest({**a, "save_fusion": True})})
    3
    """
    return _hashed(_kept(config, seeds=True) | {name: config.get(name) for name in ("seed", "save_fusion")})


def _plain(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(config, DictConfig):
        return dict(config)
    unresolved = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    if isinstance(paths := unresolved.get("paths"), dict):
        unresolved["paths"] = {name: f"<{name}>" for name in paths}
    unresolved.pop("hydra", None)
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(unresolved), resolve=True))


def _digest(config: Mapping[str, Any]) -> str:
    return _hashed(_kept(config, seeds=False))


def _hashed(kept: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _kept(config: Mapping[str, Any], *, seeds: bool) -> dict[str, Any]:
    """Return what can change a measurement, with or without the seeds of what is drawn by them."""
    kept: dict[str, Any] = {}
    for name, node in config.items():
        if name in OUTSIDE_DIGEST:
            continue
        outside = OUTSIDE.get(name, frozenset())
        if name == "probe" and isinstance(node, Mapping):
            kept[name] = {probe: _without(options, outside) for probe, options in node.items()}
        else:
            kept[name] = _without(node, outside | _unchanged(name, node))
        if name == "extraction" and not kept[name]:
            del kept[name]
            continue
        if name == "pair":
            kept[name] = _without_key(kept[name], "about")
        if name != "data" and not seeds:
            kept[name] = _without_key(kept[name], "seed")
    return kept


def _unchanged(section: str, node: Any) -> set[str]:
    if not isinstance(node, Mapping):
        return set()
    return {name for name, value in DEFAULTS.get(section, {}).items() if name in node and node[name] == value}


def _without(node: Any, keys: frozenset[str]) -> Any:
    return {name: child for name, child in node.items() if name not in keys} if isinstance(node, Mapping) else node


def _without_key(node: Any, key: str) -> Any:
    """Return a node without a key at any depth."""
    if isinstance(node, Mapping):
        return {name: _without_key(child, key) for name, child in node.items() if name != key}
    if isinstance(node, (list, tuple)):
        return [_without_key(child, key) for child in node]
    return node
