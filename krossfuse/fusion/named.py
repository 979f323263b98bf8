"""Kernels and sketches by name, for the places that have no YAML: the transformer, the diagnostic, the benchmark."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

from krossfuse.core.errors import check_choice
from krossfuse.fusion import kernels, sketches
from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.methods import KernelFactory, SketchFactory
from krossfuse.fusion.sketches import Sketch


def _concrete(module: ModuleType, base: type) -> dict[str, Any]:
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    return {c.name: c for c in classes if not inspect.isabstract(c) and hasattr(c, "name")}


KERNELS: dict[str, type[Kernel]] = _concrete(kernels, Kernel)
SKETCHES: dict[str, type[Sketch]] = _concrete(sketches, Sketch)


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
