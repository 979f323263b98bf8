"""The sweeper leans on a private module of Hydra; these tests say when it has moved, and that one file knows it."""

from __future__ import annotations

import inspect
import subprocess
from pathlib import Path

import pytest

from hydra_plugins.krossfuse_sweeper import BasicSweeper
from krossfuse.app.sweep import what_can_run
from krossfuse.core.errors import ConfigError


def test_one_file_imports_hydras_private_modules(repository: Path) -> None:
    listed = subprocess.run(
        ["git", "grep", "-l", r"hydra\._internal", "--", "krossfuse", "hydra_plugins", "experiments"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.split() == ["hydra_plugins/krossfuse_sweeper.py"]


def test_the_private_sweeper_still_has_what_ours_calls() -> None:
    assert list(inspect.signature(BasicSweeper.__init__).parameters) == ["self", "max_batch_size", "params"]
    assert list(inspect.signature(BasicSweeper.split_arguments).parameters) == ["overrides", "max_batch_size"]
    assert list(inspect.signature(BasicSweeper._parse_config).parameters) == ["self"]


def test_a_grid_whose_data_are_missing_is_left_out() -> None:
    grids = [{"fusion": "cross_modal"}, {"_needs_": None, "data": "mnist"}, {"_needs_": "here", "seed": "0,1"}]
    assert what_can_run(grids) == ([{"fusion": "cross_modal"}, {"seed": "0,1"}], [{"data": "mnist"}])
    with pytest.raises(ConfigError, match="every grid needs something"):
        what_can_run(grids[1:2])
