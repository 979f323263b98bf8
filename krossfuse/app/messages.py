"""Errors that are the user's to mend: one message that says what was meant, and an exit status; no traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from krossfuse.app.launchers import why_missing
from krossfuse.app.paths import CONFIG_DIR
from krossfuse.app.sweep_folder import JobsFailedError
from krossfuse.core.errors import KrossFuseError, did_you_mean
from krossfuse.core.stopping import listening


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

    def groups(self, below: str = "") -> list[str]:
        """Return every group of options, nested ones too."""
        from hydra.core.object_type import ObjectType

        here = self._loader.get_group_options(below, results_filter=ObjectType.GROUP)
        here = [f"{below}/{name}" if below else name for name in here if name != "hydra"]
        return sorted({*here, *(group for name in here for group in self.groups(name))})

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
    if isinstance(error, InstantiationException):  # of the sweeper, which Hydra makes
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KrossFuseError):
                return str(cause)
            cause = cause.__cause__ or cause.__context__
    if isinstance(error, OmegaConfBaseException):
        return _of_omegaconf(error)
    if isinstance(error, JobsFailedError):
        return str(error)
    if re.search(r"Error parsing override|no viable alternative|missing EQUAL|mismatched input|extraneous", str(error)):
        return _unreadable(error, overrides)
    key = re.search(r"Could not override '([^']+)'|Could not append to config.*'([^']+)'", str(error))
    if key:
        return _unknown_key((key[1] or key[2]).lstrip("+~"), error, overrides)
    if merging := re.search(r"Error merging override (\S+?)=(.*)", str(error)):
        return _misfit(merging[1], merging[2], overrides)
    missing = re.search(r"Could not (?:load|find) '([^']+)/([^'/]+)'", str(error))
    if missing:
        group, name = missing.groups()
        if group == "hydra/launcher" and (extra := why_missing(name)):
            return extra
        with _Composer() as composer:
            options = composer.options(group)
        return f"group {group!r} has no option {name!r}{did_you_mean(name, options)}; it has: {', '.join(options)}"
    return str(error).strip()


def _of_omegaconf(error: OmegaConfBaseException) -> str:
    """Return what OmegaConf says, without its words for programmers."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = re.sub(r"^\w+ raised while resolving interpolation: ", "", said[0])
    where = next((line.removeprefix("full_key: ") for line in said[1:] if line.startswith("full_key: ")), "")
    # The run folder's name is made of other keys: theirs is the mistake.
    return first if where in first or where.startswith("hydra.") else f"{where}: {first}"


def _unknown_key(bad: str, error: BaseException, overrides: list[str]) -> str:
    """Return the message for a key that no chosen option has."""
    with _Composer() as composer:
        valid, groups = composer.keys(overrides), composer.groups()
        section, _, rest = bad.partition(".")
        option = rest.partition(".")[0]
        left_out = section if option in composer.options(section) and f"{section}.{option}" not in valid else None
    if left_out:
        given = next((o.partition("=")[2].strip("[]") for o in overrides if o.startswith(f"{left_out}=")), "...")
        return f"the configuration has no key {bad!r}: {option} is not chosen; say {left_out}=[{given},{option}]"
    if "/" in bad:
        return f"there is no group {bad!r}{did_you_mean(bad, groups)}; groups are {', '.join(groups)}"
    if bad in valid and any(_choices(override) for override in overrides):
        # The keys are those of the first of several options.
        return f"one of the chosen options has no key {bad!r}: sweep it in a grid of its own (hydra.sweeper.grids)"
    if bad in valid:
        lines = str(error.__cause__ or error).splitlines()
        return f"{bad} cannot be set so: {lines[0] if lines else error}"
    near = difflib.get_close_matches(bad, valid, n=1, cutoff=0.5)
    if not near:  # compare the last names: fusion.projection_dim -> fusion.dim
        near = difflib.get_close_matches(bad.split(".")[-1], [k.split(".")[-1] for k in valid], n=1, cutoff=0.5)
        near = [k for k in valid if near and k.split(".")[-1] == near[0]][:1]
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    siblings = sorted(k for k in valid if k.rpartition(".")[0] == bad.rpartition(".")[0])
    return f"the configuration has no key {bad!r}{hint}; keys beside it: {', '.join(siblings) or 'none'}"


def _choices(override: str) -> bool:
    """Whether an override chooses several options of a group."""
    key, _, value = override.partition("=")
    return "." not in key and "," in value and not value.startswith(("[", "{", "'", '"'))


def _unreadable(error: BaseException, overrides: list[str]) -> str:
    """Return the message for an argument that is neither a command nor an override."""
    bad = next((o for o in overrides if not o.startswith("-") and not _parses(o)), "")
    why = [line.strip() for line in str(error).splitlines() if line.strip() and "https:" not in line][-1]
    return (
        f"cannot read the argument {bad!r} ({why}): every argument is key=value, without blanks around the sign "
        "(in quotes where it holds brackets or blanks), or the first one is a command: report FOLDER, list, store, "
        "diagnose, export, encode, index, search"
    )


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _misfit(key: str, value: str, overrides: list[str]) -> str:
    """Return the message for a value in the place of a mapping, or of a list."""
    key = key.lstrip("+~")
    with _Composer() as composer:
        below = [k.removeprefix(f"{key}.") for k in composer.keys(overrides) if k.startswith(f"{key}.")]
    keys = ", ".join(name for name in below if "." not in name)
    return (
        f"{key}={value} does not fit: {key} is a mapping with the keys {keys}; say {key}.KEY=VALUE"
        if keys
        else (f"{key}={value} does not fit what {key} holds; krossfuse --cfg job shows it")
    )


def _no_option(overrides: list[str]) -> str:
    """Return the message for a group without an option (``fusion=null``)."""
    with _Composer() as composer:
        for override in overrides:
            group, _, value = override.partition("=")
            if value in ("", "null") and (options := composer.options(group)):
                return f"{override}: group {group!r} needs an option; it has: {', '.join(options)}"
    return "a group needs the name of an option"


@contextmanager
def friendly() -> Iterator[None]:
    """Turn errors that are the user's to mend into one message and an exit status; leave bugs their traceback.

    HYDRA_FULL_ERROR=1 keeps every traceback. A job that is told to end (SIGTERM) closes what it has open, and ends.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    wants_traceback = (before or "0") != "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit by itself otherwise
    try:
        with listening():
            yield
    except KeyboardInterrupt:
        print("interrupted; whatever was complete is kept, the rest resumes where it stopped", file=sys.stderr)
        sys.exit(130)
    except (KrossFuseError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        print(f"krossfuse: error: {explain(error, sys.argv[1:])}", file=sys.stderr)
        sys.exit(2 if isinstance(error, HydraException | OmegaConfBaseException | ValueError) else 1)
    except YAMLError as error:  # of a file in a configuration folder of the user's
        if wants_traceback:
            raise
        print(f"krossfuse: error: a configuration file is no YAML: {error}", file=sys.stderr)
        sys.exit(2)
    except ValueError as error:
        if wants_traceback or "Config group override must be" not in str(error):
            raise
        print(f"krossfuse: error: {_no_option(sys.argv[1:])}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if wants_traceback:
            raise
        of_a_job = not sys.argv[1:2] or "=" in sys.argv[1] or sys.argv[1].startswith("-")
        hint = "; check the folder (paths.runs=, paths.store=)" if of_a_job else ""
        print(f"krossfuse: error: {error}{hint}", file=sys.stderr)
        sys.exit(1)
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
