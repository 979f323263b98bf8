"""The Hydra application: composing, checking and reporting, with errors that say what was meant."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from krossfuse.core.errors import KrossFuseError, did_you_mean
from krossfuse.core.files import cache_dir

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configuration groups: inside the package in a wheel, beside it in a checkout."""


OmegaConf.register_new_resolver("krossfuse_cache", cache_dir, replace=True)


@functools.cache
def _checked(resolved: str) -> None:
    from krossfuse.run import build

    cfg = OmegaConf.to_container(OmegaConf.create(resolved))
    assert isinstance(cfg, dict)
    build({str(key): value for key, value in cfg.items()}, "check")


def check(cfg: DictConfig) -> None:
    """Build every component of a job, which validates it, and throw them away. Loads no data and no weights.

    Raises:
        ConfigError: a value is impossible.
    """
    from krossfuse.run import job_config

    _checked(OmegaConf.to_yaml(OmegaConf.create(job_config(cfg))))


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def hydra_main(cfg: DictConfig) -> None:
    """Run one job: what Hydra calls for a single run, and for each job of a sweep."""
    from krossfuse.run import run

    job = HydraConfig.get()
    run(cfg, Path(job.runtime.output_dir), fusion=job.runtime.choices["fusion"], with_report=job.mode == RunMode.RUN)


def _flat_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_"):  # _target_ and _partial_ are no options
                continue
            yield f"{prefix}{key}"
            yield from _flat_keys(value, f"{prefix}{key}.")


def _valid_keys(overrides: list[str]) -> list[str]:
    """Return the dotted keys of the configuration that the groups chosen in ``overrides`` give."""
    from hydra.core.global_hydra import GlobalHydra

    groups = []
    for override in overrides:
        group, _, option = override.partition("=")
        if option and (CONFIG_DIR / group).is_dir():
            # In a sweep an option is a list of choices; the first is as good as any for the names of the keys.
            groups.append(override if option.startswith("[") else f"{group}={option.split(',')[0]}")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            cfg = hydra.compose("config", overrides=groups)
        except HydraException:  # an option from another folder, say: then there is no hint
            return []
    return list(_flat_keys(OmegaConf.to_container(cfg, resolve=False)))


def explain(error: BaseException, overrides: list[str]) -> str:
    """Return the message for a configuration that does not compose, with the nearest valid name."""
    key = re.search(r"Could not override '([^']+)'|Could not append to config.*'([^']+)'", str(error))
    if key:
        bad = (key[1] or key[2]).lstrip("+~")
        valid = _valid_keys(overrides)
        if bad in valid:  # of the first of several choices, that is
            return f"one of the chosen options has no key {bad!r}: sweep it in a grid of its own (hydra.sweeper.grids)"
        near = difflib.get_close_matches(bad, valid, n=1, cutoff=0.5)
        if not near:  # compare the last names: fusion.projection_dim -> fusion.dim
            near = difflib.get_close_matches(bad.split(".")[-1], [k.split(".")[-1] for k in valid], n=1, cutoff=0.5)
            near = [k for k in valid if near and k.split(".")[-1] == near[0]][:1]
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        siblings = sorted(k for k in valid if k.rpartition(".")[0] == bad.rpartition(".")[0])
        return f"the configuration has no key {bad!r}{hint}; keys beside it: {', '.join(siblings) or 'none'}"
    missing = re.search(r"Could not (?:load|find) '([^']+)/([^'/]+)'", str(error))
    if missing:
        group, name = missing.groups()
        options = sorted(file.stem for file in (CONFIG_DIR / group).glob("*.yaml"))
        return f"group {group!r} has no option {name!r}{did_you_mean(name, options)}; it has: {', '.join(options)}"
    return str(error).strip()


@contextmanager
def friendly() -> Iterator[None]:
    """Turn errors that are the user's to mend into one message and an exit status; leave bugs their traceback.

    HYDRA_FULL_ERROR=1 keeps every traceback.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    wants_traceback = (before or "0") != "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit by itself otherwise
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; whatever was complete is kept, the rest resumes where it stopped", file=sys.stderr)
        sys.exit(130)
    except (KrossFuseError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        print(f"krossfuse: error: {explain(error, sys.argv[1:])}", file=sys.stderr)
        sys.exit(2 if isinstance(error, HydraException | OmegaConfBaseException | ValueError) else 1)
    except OSError as error:
        if wants_traceback:
            raise
        print(f"krossfuse: error: {error}; check the folder (paths.runs=, paths.store=)", file=sys.stderr)
        sys.exit(1)
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
