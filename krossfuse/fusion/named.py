"""Kernels, sketches and alignments by name, for the places that have no YAML: the transformer, the diagnostic, ...

A class is known by its ``name`` as soon as its file lies in the package of its kind: nothing else is touched to add it.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from krossfuse.core.errors import check_choice
from krossfuse.fusion import alignments, kernels, sketches
from krossfuse.fusion.alignments import Alignment, AlignmentFactory
from krossfuse.fusion.factories import KernelFactory, SketchFactory
from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.sketches import Sketch


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package  # first, because the order of its exports is that of tables and messages
    for file in pkgutil.iter_modules(package.__path__):
        yield import_module(f"{package.__name__}.{file.name}")


def concrete(package: ModuleType, base: type) -> dict[str, Any]:
    """Return, by name, the classes of a package and its files that derive from ``base`` and can be built."""
    classes = [c for module in _modules(package) for c in vars(module).values() if isinstance(c, type)]
    return {c.name: c for c in classes if issubclass(c, base) and not inspect.isabstract(c) and hasattr(c, "name")}


KERNELS: dict[str, type[Kernel]] = concrete(kernels, Kernel)
SKETCHES: dict[str, type[Sketch]] = concrete(sketches, Sketch)
ALIGNMENTS: dict[str, type[Alignment]] = concrete(alignments, Alignment)


def kernel_named(kernel: str | KernelFactory) -> KernelFactory:
    """Return the kernel class of that name; a factory is returned as it is.

    Raises:
        ConfigError: there is no such kernel.
    """
    return KERNELS[check_choice("kernel", kernel, KERNELS)] if isinstance(kernel, str) else kernel


def sketch_named(sketch: str | SketchFactory) -> SketchFactory:
    """Return the sketch class of that name; a factory is returned as it is.

    Raises:
        ConfigError: there is no such sketch.
    """
    return SKETCHES[check_choice("sketch", sketch, SKETCHES)] if isinstance(sketch, str) else sketch


def alignment_named(alignment: str | AlignmentFactory) -> AlignmentFactory:
    """Return the alignment class of that name; a factory is returned as it is.

    Raises:
        ConfigError: there is no such alignment.
    """
    if callable(alignment):
        return alignment
    return ALIGNMENTS[check_choice("alignment", alignment, ALIGNMENTS)]
