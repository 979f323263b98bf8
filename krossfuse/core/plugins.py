"""The user's own modules, outside the package, that classes may be loaded from: named by the user, never by a file."""

from __future__ import annotations

import os
from collections.abc import Iterable

VARIABLE = "KROSSFUSE_PLUGINS"


def plugin_modules(more: Iterable[str] = ()) -> list[str]:
    """Return the modules that the user trusts: those of ``KROSSFUSE_PLUGINS`` (comma-separated) and ``more``.

    >>> plugin_modules(["my_package.methods"])
    ['my_package.methods']
    """
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    return list(dict.fromkeys([*(name for name in named if name), *more]))


def is_plugin(module: str, plugins: Iterable[str]) -> bool:
    """Return whether a module is one of ``plugins`` or lies in one.

    >>> is_plugin("mine.methods", ["mine"]), is_plugin("mineral", ["mine"])
    (True, False)
    """
    return any(module == name or module.startswith(f"{name}.") for name in plugins)
