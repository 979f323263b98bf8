"""Versions of the libraries that can change a measurement."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

from krossfuse.core.installed import version

LIBRARIES = (
    "krossfuse",
    "torch",
    "torchvision",
    "torchmetrics",
    "pytorch-lightning",
    "open_clip_torch",
    "transformers",
    "timm",
    "sentence-transformers",
    "scikit-learn",
    "scipy",
    "numpy",
)


def versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the installed versions of some libraries, and Python's; nothing is imported."""
    installed = {"python": platform.python_version()}
    found = {library: _version(library) for library in libraries}
    return installed | {library: known for library, known in found.items() if known is not None}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except metadata.PackageNotFoundError:
        return None
