"""A real run on a few emoji, with the fusion kept in one folder and not in the other, and the model that it becomes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from krossfuse.app.command import main
from krossfuse.app.export import export
from krossfuse.core.bundle import FeatureBundle
from krossfuse.model.encoder import FusedEncoder

LIMIT = 40
RUN = (
    "data=openmoji", f"data.limit={LIMIT}", "fusion=spectral_krossfuse", "fusion.dim=300", "probe=[zero_shot,knn]",
    "logger=none", "extraction.progress=false", "trainer=cpu", "data.num_workers=0",
)  # fmt: skip


def krossfuse(*arguments: str) -> None:
    """Run the command in this process."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with mock.patch.object(sys, "argv", ["krossfuse", *arguments]), contextlib.suppress(SystemExit):
        main()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, shared_store: Path) -> Path:
    """A run that kept its fusion."""
    folder = tmp_path_factory.mktemp("run") / "kept"
    krossfuse(*RUN, f"paths.store={shared_store}", "save_fusion=true", f"hydra.run.dir={folder}")
    assert (folder / "fusion.safetensors").is_file()
    return folder


@pytest.fixture(scope="session")
def bundle(run: Path) -> FeatureBundle:
    """The features that the run has stored."""
    from krossfuse.app.fuse_and_probe import features
    from krossfuse.results.runs import read_run

    return features(read_run(run).config)


@pytest.fixture(scope="session")
def _made(run: Path) -> FusedEncoder:
    return export(run)[0]


@pytest.fixture
def model(_made: FusedEncoder) -> Iterator[FusedEncoder]:
    """The model of the run."""
    yield _made
    assert _made.device == torch.device("cpu")


@pytest.fixture(scope="session")
def saved(_made: FusedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; whoever changes it takes a copy."""
    folder = tmp_path_factory.mktemp("model") / "fused"
    _made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def emoji_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test emoji of the run, as PNG files whose order is that of their names."""
    from krossfuse.data.openmoji import RenderedEmoji, split_emoji

    folder = tmp_path_factory.mktemp("emoji")
    for number, picture in enumerate(RenderedEmoji(split_emoji(LIMIT)["test"][:12], 224)):
        picture.save(folder / f"{number:02}.png")
    return folder
