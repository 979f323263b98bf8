"""Libraries that another library imports at once, and that are loaded when they are used instead."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Deferred:
    """Stands for a member of a module that is not loaded yet, and does what that member does once it is used.

    While it cannot be loaded, its members are named (in annotations) and it may decorate functions: a decorated one is
    decorated when it is called.
    """

    def __init__(self, module: str, *path: str) -> None:
        self._module, self._path = module, path

    def _load(self) -> Any:
        found: Any = importlib.import_module(self._module)
        for at, name in enumerate(self._path):
            try:
                found = getattr(found, name)
            except AttributeError:  # a module inside of it that it does not import by itself
                found = importlib.import_module(".".join([self._module, *self._path[: at + 1]]))
        return found

    @property
    def _closed(self) -> bool:
        return isinstance(sys.modules.get(self._module), _Placeholder)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what inspection asks for
            raise AttributeError(name)
        if self._closed:
            return Deferred(self._module, *self._path, name)
        return getattr(self._load(), name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the member; or return what decorates a function with it, later."""
        if not self._closed:
            return self._load()(*args, **options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            decorated = functools.cache(lambda: self._load()(*args, **options)(function))
            return functools.wraps(function)(lambda *a, **o: decorated()(*a, **o))

        return decorate

    def __instancecheck__(self, instance: object) -> bool:
        """Whether it is an instance of the class; of a class that nobody has loaded there is none."""
        return self._module in sys.modules and not self._closed and isinstance(instance, self._load())


class _Placeholder(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Deferred(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if any(fullname == module or fullname.startswith(f"{module}.") for module in self._modules):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is nothing in it."""


@contextmanager
def deferring(*modules: str) -> Iterator[None]:
    """Load modules that are imported in the block when something of them is used, and not before.

    What is imported after the block is the module itself, at once. One that is loaded already stays as it is.

    >>> import sys
    >>> _ = sys.modules.pop("colorsys", None)
    >>> with deferring("colorsys"):
    ...     from colorsys import rgb_to_hls
    >>> "colorsys" in sys.modules, rgb_to_hls(0.0, 0.0, 0.0), "colorsys" in sys.modules
    (False, (0.0, 0.0, 0.0), True)
    """
    finder = _Finder([module for module in modules if module not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Placeholder)]:
            module = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            if vars(sys.modules.get(parent, module)).get(child) is module:  # importing it made it its parent's member
                delattr(sys.modules[parent], child)
