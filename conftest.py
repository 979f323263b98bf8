"""What tests and doctests share: which rooms are collected, and surroundings that no test before has changed."""

import importlib.util
from pathlib import Path

import pytest

# The room that needs the extra flower is collected only where that is installed.
collect_ignore_glob = [] if importlib.util.find_spec("flwr") else ["krossfuse/flower/*"]


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's feature store, and from what a command run in this process has set."""
    monkeypatch.setenv("KROSSFUSE_STORE", str(tmp_path / "store"))
    for name in ("KROSSFUSE_CONF", "KROSSFUSE_PLUGINS", "COLUMNS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
