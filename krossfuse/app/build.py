"""From a composed configuration to validated components; no data and no weights are loaded here."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, overload

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from krossfuse.app.kind import Kind, Plain
from krossfuse.app.paths import check_name
from krossfuse.core.collector import uncollected
from krossfuse.core.errors import ConfigError, KrossFuseError, did_you_mean
from krossfuse.core.plugins import VARIABLE, plugin_modules

COMMON: dict[str | None, tuple[str, ...]] = {
    None: ("name", "seed", "paths", "job", "trainer", "logger", "report"),
    "paths": ("runs", "store"),
    "report": ("baselines",),
}
"""The keys that every kind of job has."""

OPTIONAL = ("pair", "store", "probe")
"""Keys that an option of the group may leave out (``pair=none``), or that have a message of their own."""


def job_config(cfg: DictConfig) -> Plain:
    """Return the resolved configuration of a job, as plain containers and without Hydra's own keys."""
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]) if "hydra" in cfg else cfg
    plain = OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def packed(plain: Plain) -> str:
    """Return a resolved configuration as one line of text: JSON, or YAML where JSON would change it."""
    text = json.dumps(plain, default=repr)
    return text if json.loads(text) == plain else json.dumps(OmegaConf.to_yaml(OmegaConf.create(plain)))


def unpacked(text: str) -> Plain:
    """Return the configuration of :func:`packed`."""
    read: Any = json.loads(text)
    if isinstance(read, str):
        read = OmegaConf.to_container(OmegaConf.create(read))
    assert isinstance(read, dict)
    return read


_Part = TypeVar("_Part")


@overload
def make(node: Any, name: str) -> Any: ...
@overload
def make(node: Any, name: str, kind: type[_Part]) -> _Part: ...
def make(node: Any, name: str, kind: type | None = None) -> Any:
    """Instantiate one node of a plain configuration.

    Args:
        node: the node.
        name: of the node, for messages.
        kind: that it must be.

    Raises:
        ConfigError: the component refuses a value, has no such option, cannot be imported, or is of another kind; the
            message names the node.
    """
    made_already = _made.get()
    key = (name, json.dumps(node, sort_keys=True, default=repr))
    if made_already is not None and key in made_already:
        return made_already[key]
    try:
        made = instantiate(node, _convert_="all")
    except InstantiationException as error:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, KrossFuseError):
                raise type(cause)(f"{name}: {cause}") from None
        raise ConfigError(f"{name}: {plain_words(error, causes, node)}") from None
    if kind is not None and not isinstance(made, kind):
        target = node.get("_target_") if isinstance(node, Mapping) else node
        raise ConfigError(
            f"{name}: {target} gives a {type(made).__name__}, and this takes a {kind.__module__}.{kind.__name__}"
        )
    if made_already is not None:
        made_already[key] = made
    return made


_made: ContextVar[dict[tuple[str, str], Any] | None] = ContextVar("made", default=None)


@contextlib.contextmanager
def making_each_once() -> Iterator[None]:
    """Make equal nodes once, while many configurations are checked that differ in a few of them."""
    already = _made.get()
    token = _made.set({} if already is None else already)
    try:
        yield
    finally:
        _made.reset(token)


def plain_words(error: BaseException, causes: Sequence[BaseException] = (), node: object = None) -> str:
    """Return why a component could not be made, without Hydra's words for programmers.

    Args:
        error: Hydra's, or the component's own TypeError.
        causes: of the error.
        node: the component's node.
    """
    first = str(error).strip().splitlines()[0].removesuffix(".").removesuffix(":")
    first = re.sub(r", set env var HYDRA_FULL_ERROR=1.*|Error in call to target ", "", first)
    reason = next((cause for cause in reversed(causes) if not isinstance(cause, InstantiationException)), None)
    text = first if reason is None else f"{first}: {_said(reason)}"
    if unknown := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        owner, option = unknown.groups()
        return f"{owner} has no option {option!r}{did_you_mean(option, _options(node, owner))}"
    return text


def _said(reason: BaseException) -> str:
    """Return an error in one line; a mistake of the user's own code keeps its kind and its line."""
    if isinstance(reason, TypeError | AttributeError | ImportError) and not isinstance(reason, ModuleNotFoundError):
        return str(reason)
    return f"{type(reason).__name__}: {reason}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _options(node: object, owner: str) -> list[str]:
    """Return the names of the options of the class that refused one, if a node, or one inside of it, names it."""
    cls = next((c for c in _classes(node) if owner in [base.__name__ for base in c.__mro__]), None)
    if cls is None:
        return []
    names: list[str] = []
    for base in (base for base in cls.__mro__ if "__init__" in vars(base)):
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        names += [name for name in parameters if name not in ("self", "inputs")]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break  # it hands nothing on to the class above it
    return names


def trust_modules_of(node: Any) -> None:
    """Let a saved fusion be made of the user's own classes that a configuration names: she has named them herself."""
    modules = [target.rpartition(".")[0] for target in _targets(node)]
    fresh = [module for module in modules if module.partition(".")[0] not in ("krossfuse", "torch")]
    if fresh:
        os.environ[VARIABLE] = ",".join(plugin_modules(fresh))


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for child in node.values():
            yield from _targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _classes(node: object) -> Iterator[type]:
    """Yield the classes that a node, and those inside of it, name."""
    if isinstance(node, Mapping):
        with contextlib.suppress(Exception):  # whatever the import of a user's module raises: then there is no hint
            yield get_class(str(node["_target_"]))
        for child in node.values():
            yield from _classes(child)


def check_keys(cfg: Plain, sections: Mapping[str | None, Iterable[str]]) -> None:
    """Refuse keys that nobody reads, and miss none that somebody does.

    Hydra refuses unknown ones, but not those that are appended with ``+``, nor known ones that ``~`` takes out.

    Args:
        cfg: the configuration of a job.
        sections: by section (None: the top), the keys that it has.

    Raises:
        ConfigError: another key (the message names the nearest), a missing one, or a section that is none.
    """
    for section, known in sections.items():
        node = cfg if section is None else cfg.get(section)
        if not isinstance(node, Mapping):
            raise ConfigError(f"{section}={node!r} must hold the keys {', '.join(known)}: say {section}.KEY=VALUE")
        names = {key: key if section is None else f"{section}.{key}" for key in (*known, *node)}
        for key in node:
            if key not in known:
                raise ConfigError(f"the configuration has no key {names[key]!r}{did_you_mean(key, known)}")
        for key in known:
            if key not in node and key not in OPTIONAL:
                raise ConfigError(f"the configuration has no key {names[key]!r} any more; say {names[key]}=...")


def make_kind(cfg: Plain) -> Kind:
    """Return the kind of a job, its common keys checked.

    Raises:
        ConfigError: an unknown key, an impossible seed or name, or ``job`` is no kind of job.
    """
    check_keys(cfg, {None: ("job", *cfg)})
    with uncollected(for_good="torch" not in sys.modules):  # then this imports it, and Lightning
        kind: Kind = make(cfg["job"], "job", Kind)  # type: ignore[type-abstract]
    top = (*COMMON[None], *kind.keys.get(None, ()))
    check_keys(cfg, {**COMMON, **kind.keys, None: top})
    seed, name = cfg["seed"], cfg["name"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed!r} must be a whole number, 0 or more, and below 2^32")
    check_name(name)
    rows = cfg["report"]["baselines"]
    if rows is not None and not (isinstance(rows, list) and rows and all(isinstance(r, str) and r for r in rows)):
        raise ConfigError(
            f"report.baselines={rows!r} must be a list of rows' names, as in [cross_modal,concatenation], or null"
        )
    for key, path in cfg["paths"].items():
        if not isinstance(path, str) or not path:
            raise ConfigError(f"paths.{key}={path!r} must be a folder")
    return kind


def check(plain: Plain, choices: Mapping[str, str], *, data: bool) -> None:
    """Build every component of a job, which validates it, and throw them away. Loads no weights.

    Args:
        plain: the resolved configuration.
        choices: by group, the chosen option.
        data: also look at what can be known of the data before any work: paths, names, numbers of rows.

    Raises:
        ConfigError: a value is impossible.
        DataError: with ``data``: they are not there, or not as they should be.
    """
    kind = make_kind(plain)
    built = kind.build(plain, choices)
    if data:
        kind.check_data(built)
