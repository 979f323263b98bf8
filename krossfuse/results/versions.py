"""Versions of the libraries that can change a measurement."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

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
    for library in libraries:
        try:
            installed[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return installed
