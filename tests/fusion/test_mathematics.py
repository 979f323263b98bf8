"""docs/mathematics.md: its examples run, and it speaks of every kernel and sketch that can be configured."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.sketches import Sketch


def test_the_examples_run(repository: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = doctest.testfile(str(repository / "docs" / "mathematics.md"), module_relative=False)
    assert result.attempted > 15
    assert result.failed == 0


@pytest.mark.parametrize("group", ["kernel", "sketch"])
def test_every_option_is_described_and_builds(repository: Path, group: str) -> None:
    text = (repository / "docs" / "mathematics.md").read_text(encoding="utf-8")
    files = sorted((repository / "conf" / "fusion" / group).glob("*.yaml"))
    assert len(files) >= 7
    for file in files:
        factory = instantiate(OmegaConf.load(file), _convert_="all")
        # Dimensions that suit every option: the Kronecker product of 2 × 2, joint features of one size.
        built = factory(in_dim=4, seed=1) if group == "kernel" else factory(
            (4, 4), 16 if file.stem == "kronecker" else 4, seed=1)  # fmt: skip
        assert isinstance(built, Kernel | Sketch)
        assert built.name == file.stem
        assert f"`{file.stem}`" in text
