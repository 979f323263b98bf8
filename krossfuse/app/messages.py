"""Errors that are the user's to mend: one message that says what was meant, and an exit status; no traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from krossfuse.app.paths import CONFIG_DIR
from krossfuse.core.errors import KrossFuseError, did_you_mean


def flat_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration."""
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_"):  # _target_ and _partial_ are no options
                continue
            yield f"{prefix}{key}"
            yield from flat_keys(value, f"{prefix}{key}.")


class _Composer:
    """Composes the configuration once more, with the user's folders, for its keys and its groups' options."""

    def __enter__(self) -> _Composer:
        import hydra
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        self._context = hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3")
        self._context.__enter__()
        self._loader = GlobalHydra.instance().config_loader()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def options(self, group: str) -> list[str]:
        """Return the options of a group; none if there is no such group."""
        from hydra.core.object_type import ObjectType

        return sorted(set(self._loader.get_group_options(group, results_filter=ObjectType.CONFIG)))

    def keys(self, overrides: list[str]) -> list[str]:
        """Return the dotted keys that the groups chosen in ``overrides`` give."""
        import hydra

        groups = []
        for override in overrides:
            group, _, option = override.partition("=")
            if option and self.options(group):
                # In a sweep an option is a list of choices; the first is as good as any for the names of the keys.
                groups.append(override if option.startswith("[") else f"{group}={option.split(',')[0]}")
        try:
            cfg = hydra.compose("config", overrides=groups)
        except HydraException:  # an option from another folder, say: then there is no hint
            return []
        return list(flat_keys(OmegaConf.to_container(cfg, resolve=False)))


def explain(error: BaseException, overrides: list[str]) -> str:
    """Return the message for a configuration that does not compose, with the nearest valid name."""
    key = re.search(r"Could not override '([^']+)'|Could not append to config.*'([^']+)'", str(error))
    if key:
        bad = (key[1] or key[2]).lstrip("+~")
        with _Composer() as composer:
            valid = composer.keys(overrides)
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
        with _Composer() as composer:
            options = composer.options(group)
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
