"""Names of a package that are imported when they are first used: what a package's ``__getattr__`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def attribute(package: str, homes: Mapping[str, str], name: str) -> Any:
    """Return a name of a package from the module that it lives in.

    Args:
        package: the package's own name.
        homes: by name, the module inside the package.
        name: what is asked for.

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{homes[name]}"), name)
