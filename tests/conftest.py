"""What all tests share: no network, no user cache, one thread a worker, the picture backend without a screen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["run_folders", "browser"]

LONGEST = ("test_notebooks.py", "test_kills.py", "test_experiments.py", "test_resume.py")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that workers end together; skip what cannot run here, with the reason."""
    import torch

    items.sort(key=lambda item: item.path.name not in LONGEST)

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; there is none here"))


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature store of all tests, in every worker, that only want features and not their making."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_store"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the checkout, which users do not have; skips where it is absent."""
    folder = Path(os.environ.get("KROSSFUSE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the development data in {folder.name}/ beside the checkout (or KROSSFUSE_SHARED)")
    return folder
