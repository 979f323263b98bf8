"""From a composed configuration to validated components; no data and no weights are loaded here."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from krossfuse.app.kind import Kind, Plain
from krossfuse.core.errors import ConfigError, KrossFuseError, did_you_mean

COMMON: dict[str | None, tuple[str, ...]] = {
    None: ("name", "seed", "paths", "job", "trainer", "logger"),
    "paths": ("runs", "store"),
}
"""The keys that every kind of job has."""


def job_config(cfg: DictConfig) -> Plain:
    """Return the resolved configuration of a job, as plain containers and without Hydra's own keys."""
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    plain = OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def make(node: Any, name: str) -> Any:
    """Instantiate one node of a plain configuration.

    Raises:
        ConfigError: the component refuses a value, or has no such option; the message names the node.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KrossFuseError):
                raise type(cause)(f"{name}: {cause}") from None
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(f"{name}: {error}") from None


def check_keys(cfg: Plain, sections: Mapping[str | None, Iterable[str]]) -> None:
    """Refuse keys that nobody reads. Hydra refuses unknown ones, but not those that are appended with ``+``.

    Args:
        cfg: the configuration of a job.
        sections: by section (None: the top), the keys that it has.

    Raises:
        ConfigError: another key; the message names the nearest.
    """
    for section, known in sections.items():
        for key in cfg if section is None else cfg[section]:
            if key not in known:
                name = key if section is None else f"{section}.{key}"
                raise ConfigError(f"the configuration has no key {name!r}{did_you_mean(key, known)}")


def make_kind(cfg: Plain) -> Kind:
    """Return the kind of a job, its common keys checked.

    Raises:
        ConfigError: an unknown key, an impossible seed or name, or ``job`` is no kind of job.
    """
    kind = make(cfg["job"], "job")
    if not isinstance(kind, Kind):
        raise ConfigError(f"job={cfg['job']!r} is no kind of job: it is a {type(kind).__name__}")
    top = (*COMMON[None], *kind.keys.get(None, ()))
    check_keys(cfg, {**COMMON, **kind.keys, None: top})
    seed, name = cfg["seed"], cfg["name"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed={seed!r} must be a whole number, 0 or more")
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\:\0\n"):
        raise ConfigError(f"name={name!r} must be the name of a folder in paths.runs, without / or \\")
    return kind


def check(cfg: DictConfig, choices: Mapping[str, str] | None = None, *, data: bool = False) -> None:
    """Build every component of a job, which validates it, and throw them away. Loads no weights.

    Args:
        cfg: the composed configuration.
        choices: by group, the chosen option.
        data: also look at what can be known of the data before any work: paths, names, numbers of rows.

    Raises:
        ConfigError: a value is impossible.
        DataError: with ``data``: they are not there, or not as they should be.
    """
    _checked(OmegaConf.to_yaml(OmegaConf.create(job_config(cfg))), tuple(sorted((choices or {}).items())), data)


@functools.cache
def _checked(resolved: str, choices: tuple[tuple[str, str], ...], data: bool) -> None:
    cfg = OmegaConf.create(resolved)
    assert isinstance(cfg, DictConfig)
    plain = job_config(cfg)
    kind = make_kind(plain)
    built = kind.build(plain, dict(choices))
    if data:
        kind.check_data(built)
