"""Where features are kept: a folder, or a URL by fsspec."""

from __future__ import annotations

import os

from krossfuse.core.files import cache_dir
from krossfuse.features.stores.base import FeatureStore, Writer
from krossfuse.features.stores.local import LocalStore
from krossfuse.features.stores.remote import FsspecStore

__all__ = ["FeatureStore", "FsspecStore", "LocalStore", "Writer", "default_store_root", "open_store"]


def default_store_root() -> str:
    """Return the store of this user: KROSSFUSE_STORE, else a folder in the cache."""
    return os.environ.get("KROSSFUSE_STORE") or cache_dir("features")


def open_store(where: str) -> FeatureStore:
    """Return the store of a folder or of a URL.

    Raises:
        ConfigError: a URL that fsspec does not know.
    """
    return FsspecStore(where, cache=cache_dir("remote")) if "://" in where else LocalStore(where)
