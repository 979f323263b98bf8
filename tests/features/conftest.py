"""Fixtures of the feature tests. ``feature_toys`` is importable by name, also in processes that a test spawns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from krossfuse.features.stores import LocalStore

sys.path.insert(0, str(Path(__file__).parent))

from shard_toys import write_tars

from krossfuse.data.shards import make_manifest


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "features")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def tars(tmp_path: Path, images: Path) -> Path:
    """A set in tars, with its manifest."""
    folder = tmp_path / "tars"
    make_manifest(folder / "manifest.json", write_tars(folder, images), classes=["cat", "dog"])
    return folder
