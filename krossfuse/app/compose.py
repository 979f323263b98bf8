"""The configurations of many jobs, composed in milliseconds each.

Hydra composes a configuration from its defaults list in a third of a second. Jobs of a sweep mostly differ in values
(``fusion.dim=500``), which change no choice of an option: what they share is composed once, and the values are set in
it as Hydra sets them. Whatever is not certain to be the same that way is composed by Hydra alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from krossfuse.app.build import job_config
from krossfuse.app.kind import Plain

BY_NUMBER = "${hydra.job.num}"
"""``hydra.sweep.subdir``, unless the user has another."""


@dataclass(frozen=True)
class Composed:
    """The configuration of one job.

    Attributes:
        plain: resolved, without Hydra's own keys.
        choices: by group, the chosen option.
        subdir: the folder of the job below the sweep's, where it is not its number.
    """

    plain: Plain
    choices: Mapping[str, str]
    subdir: str | None


class Composer:
    """Composes the jobs of one sweep.

    Args:
        loader: Hydra's.
        master: the sweep's configuration.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed = functools.cache(self._parse)
        self._base = functools.lru_cache(maxsize=64)(self._load)
        self._base_digest = functools.cache(self._digest_of_base)
        self._told: DictConfig | None = None
        self._is_group = functools.cache(self._group)

    def key(self, overrides: Sequence[str]) -> str:
        """Return what the configuration of a job follows from; jobs with one key have one configuration.

        It is known without composing the job itself: a digest of what it shares with others, and its own values.
        """
        shared, own = self._split(tuple(overrides))
        return json.dumps([self._base_digest(shared), *own])

    def __call__(self, overrides: Sequence[str], number: int) -> Composed:
        """Compose a job.

        Args:
            overrides: the job's, without sweeps.
            number: of the job in the sweep (``hydra.job.num``).

        Raises:
            HydraException, OmegaConfBaseException: it does not compose.
            ConfigError: a key has no value.
        """
        shared, own = self._split(tuple(overrides))
        master = self._base(shared)
        raw: Any = OmegaConf.to_container(master.hydra.sweep, resolve=False)
        if raw["subdir"] != BY_NUMBER:  # it may be made of any of the job's own values
            master, own = self._load(tuple(overrides)), ()
        self._tell_hydra(master, overrides, number)
        cfg = OmegaConf.masked_copy(master, [str(key) for key in master if key != "hydra"])
        OmegaConf.set_struct(cfg, True)
        try:
            for override in map(self._parsed, own):
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            cfg = self._load(tuple(overrides))  # which says what is wrong with it in the words that are known
        plain = job_config(cfg)
        choices = dict(master.hydra.runtime.choices)
        return Composed(plain, choices, None if raw["subdir"] == BY_NUMBER else str(master.hydra.sweep.subdir))

    def _load(self, overrides: tuple[str, ...]) -> DictConfig:
        return self._loader.load_sweep_config(self._master, list(overrides))

    def _digest_of_base(self, overrides: tuple[str, ...]) -> str:
        base = self._base(overrides)
        self._tell_hydra(base, overrides, 0)
        cfg = OmegaConf.masked_copy(base, [str(key) for key in base if key != "hydra"])
        try:
            read: Any = OmegaConf.to_container(cfg, resolve=True)
        except OmegaConfBaseException:  # what a job's own values make whole
            read = OmegaConf.to_container(cfg, resolve=False)
        choices = OmegaConf.to_container(base.hydra.runtime.choices)
        return hashlib.sha256(json.dumps([read, choices], sort_keys=True, default=repr).encode()).hexdigest()[:16]

    def _tell_hydra(self, base: DictConfig, overrides: Sequence[str], number: int) -> None:
        """Let ``${hydra:...}`` and the name of the job's folder know which job it is."""
        if self._told is not base:
            HydraConfig.instance().set_config(base)  # which copies it
            self._told = base
        options = base.hydra.job.config.override_dirname
        named = [text for text in overrides if self._parsed(text).key_or_group not in options.exclude_keys]
        nodes: list[Any] = [base.hydra, HydraConfig.get()]
        for hydra in nodes:
            with read_write(hydra), open_dict(hydra):
                hydra.job.num, hydra.job.id = number, str(number)
                hydra.overrides.task = list(overrides)
                hydra.job.override_dirname = options.item_sep.join(sorted(named)).replace("=", options.kv_sep)

    def _split(self, overrides: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the overrides that decide what is composed, and those that only set a value in it."""
        parsed = [self._parsed(override) for override in overrides]
        own = [override for override, read in zip(overrides, parsed, strict=True) if self._sets_a_value(read)]
        keys = [read.key_or_group for read in parsed if not self._is_group(read.key_or_group)]
        within = {key[:end] for key in keys for end, letter in enumerate(key) if letter == "."}
        if len(set(keys)) < len(keys) or within & set(keys):  # one key within another: then their order matters
            return overrides, ()
        return tuple(override for override in overrides if override not in own), tuple(own)

    def _parse(self, override: str) -> Override:
        return self._parser.parse_override(override)

    def _sets_a_value(self, override: Override) -> bool:
        key = override.key_or_group
        plain = override.type == OverrideType.CHANGE and override.package is None
        return plain and key.partition(".")[0] != "hydra" and not self._is_group(key)

    def _group(self, key: str) -> bool:
        return bool(self._loader.get_group_options(key, results_filter=None))
