"""Classes that files name: under which name one is found again, and which may be built from a file.

Three kinds only: those of one room of this package, registered ones (:func:`register`), and those of modules that the
user names, in ``KROSSFUSE_PLUGINS`` or in ``plugins=``. A file cannot make anything else be imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TypeVar

from krossfuse.core.errors import ConfigError, did_you_mean
from krossfuse.core.plugins import VARIABLE, is_plugin

REGISTERED: dict[str, type] = {}

_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Allow a class from outside this package to be built from a file; usable as a decorator."""
    REGISTERED[path_of(cls)] = cls
    return cls


def path_of(cls: type) -> str:
    """Return the module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_found_again(cls: type, register_with: str) -> None:
    """Check that another process can import a class by its path.

    Args:
        cls: the class.
        register_with: what makes it known otherwise, for the message.

    Raises:
        ConfigError: it is defined inside a function, or in a script.
    """
    path, other = path_of(cls), f"or register it with {register_with}"
    if path in REGISTERED:
        return
    if "<locals>" in path:
        raise ConfigError(
            f"{path} could not be loaded again: it is defined inside a function; move it to the top of a module, "
            f"{other}"
        )
    if cls.__module__ == "__main__" or getattr(import_module(cls.__module__), cls.__qualname__, None) is not cls:
        raise ConfigError(
            f"{path} could not be loaded again: no other process can import it; move it to a module of its own, {other}"
        )


def check_allowed(path: str, home: str, plugins: Iterable[str], way_out: str) -> bool:
    """Check that a class may be imported by its path, and return whether a plugin has it.

    Args:
        path: as the file says it.
        home: the room of this package whose classes may be built, with a dot at its end.
        plugins: the user's modules (:func:`krossfuse.core.plugins.plugin_modules`).
        way_out: where else modules can be named, with ``{}`` in the place of the module.

    Raises:
        ConfigError: it is of none of the three kinds.
    """
    module, _, name = path.rpartition(".")
    plugin = is_plugin(module, plugins)
    if not (path.startswith(home) or plugin) or not name.isidentifier():
        raise ConfigError(
            f"{path!r} is neither a class of {home.rstrip('.')} nor registered{did_you_mean(path, REGISTERED)}; if it "
            f"is your own, name its module in {VARIABLE} or in {way_out.format(repr(module))}"
        )
    return plugin


def defined_class(path: str, bases: type | tuple[type, ...], what: str) -> type:
    """Import a class that :func:`check_allowed` has passed; it must be defined where its path says.

    Args:
        path: of the class.
        bases: it must derive from one of them: an imported name is no way out of a room.
        what: it must be, for the message.

    Raises:
        ConfigError: it cannot be imported, or is another thing.
    """
    module, _, name = path.rpartition(".")
    try:
        cls = vars(import_module(module)).get(name)
    except ImportError as error:
        raise ConfigError(f"{path!r} cannot be imported: {error}") from None
    if not isinstance(cls, type) or path_of(cls) != path or not issubclass(cls, bases):
        raise ConfigError(f"{path!r} is no {what}")
    return cls
