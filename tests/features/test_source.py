"""Feature sources: an extraction, a file, a class of one's own; chosen by what the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from feature_toys import ToyData
from test_extract import make_pair

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.image_folder import ImageFolder
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.features.source import Extraction, FeatureSource, feature_source
from krossfuse.features.stores import LocalStore


class Drawn:
    """A source of one's own: features out of a generator."""

    name = "drawn"

    def __init__(self, rows: int = 12) -> None:
        self.rows = rows

    @property
    def info(self) -> DatasetInfo:
        labels = {split: torch.arange(self.rows) % 2 for split in SPLITS}
        return DatasetInfo("drawn", {"rows": self.rows}, {"class": LabelSet(("a", "b"), labels)})

    def check(self) -> None:
        if self.rows < 4:
            raise DataError(f"data.rows={self.rows} must be 4 or more")

    def bundle(self) -> FeatureBundle:
        generator = torch.Generator().manual_seed(0)
        features = {
            Part(split, "image"): {
                "cross_modal": torch.randn(self.rows, 6, generator=generator),
                "expert": torch.randn(self.rows, 5, generator=generator),
            }
            for split in SPLITS
        }
        return FeatureBundle(self.info, "none", features)


def source(data: Any, pair: Any, store: LocalStore | None, **options: Any) -> FeatureSource:
    return feature_source(data, pair, store, TrainerFactory({"accelerator": "cpu", "devices": 1}), **options)


def test_a_dataset_is_extracted(images: Path, store: LocalStore) -> None:
    made = source(ToyData(images), make_pair(), store, batch_size=16, progress=False)
    assert isinstance(made, Extraction)
    assert (made.name, made.info.name) == ("ToyData", "toy")
    made.check()
    assert made.bundle().dims("image") == {"cross_modal": 8, "dino.v2": 5}


def test_a_file_and_a_class_of_ones_own_are_sources_themselves(store: LocalStore, tmp_path: Path) -> None:
    file = EmbeddingsFile(path=str(tmp_path / "not yet.npz"))
    assert source(file, None, store) is file
    own = Drawn()
    assert source(own, None, store) is own
    assert own.bundle().dims("image") == {"cross_modal": 6, "expert": 5}


def test_what_does_not_go_together_is_named(images: Path, store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data='mine' brings its own features, so it takes no pair='toys'"):
        source(EmbeddingsFile(path=str(tmp_path / "mine.npz")), make_pair(), store)
    with pytest.raises(ConfigError, match=r"pair=none has no encoders for data='image_folder'; choose a pair"):
        source(ImageFolder(root=str(images)), None, store)

    class Half:
        def bundle(self) -> None: ...

    with pytest.raises(ConfigError, match=r"Half has bundle\(\).*it lacks \['name', 'info', 'check'\]"):
        source(Half(), None, store)
    with pytest.raises(ConfigError, match=r"int is neither a dataset .* nor a feature source"):
        source(3, make_pair(), store)


def test_a_flag_changes_nothing(images: Path, store: LocalStore) -> None:
    """It once sent a dataset down the wrong road, into a traceback."""

    class Flagged(ToyData):
        provides_features = True

    assert isinstance(source(Flagged(images), make_pair(), store), Extraction)


def test_check_finds_what_is_not_there(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        source(ImageFolder(root=str(tmp_path / "gone")), make_pair(), store).check()
    with pytest.raises(DataError, match="there is no such file"):
        source(EmbeddingsFile(path=str(tmp_path / "gone.npz")), None, store).check()
    with pytest.raises(ConfigError, match="quantum"):
        feature_source(
            ImageFolder(root=str(tmp_path)), make_pair(), store, TrainerFactory({"accelerator": "quantum"})
        ).check()


def test_a_source_of_ones_own_by_configuration(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from krossfuse.app.fuse_and_probe import make_source
    from krossfuse.app.paths import CONFIG_DIR

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "drawn.yaml").write_text("_target_: test_source.Drawn\nrows: 20\n")
    overrides = [
        f"hydra.searchpath=[file://{tmp_path}]",
        "data=drawn",
        "pair=none",
        "probe=[linear_probe]",
        "fusion.dim=16",
        f"paths.store={tmp_path}",
    ]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    made = make_source(cfg, TrainerFactory())
    made.check()
    assert made.name == "drawn"
    assert len(made.bundle()[Part("test", "image")]["expert"]) == 20


def test_no_store_keeps_nothing(images: Path) -> None:
    with pytest.raises(ConfigError, match="store=none keeps no features"):
        source(ToyData(images), make_pair(), None).bundle()
