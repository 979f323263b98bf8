"""Data sets of the library ``datasets``, from parquet files in a folder: no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import published
import pytest

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data import huggingface

NAMES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    for i, (split, rows) in enumerate((("train", 20), ("test", 6))):
        captions = [[f"caption {j} of {row}" for j in range(2)] for row in range(rows)]
        columns = {"label": [row % 2 for row in range(rows)], "caption": captions}
        published.parquet(root / f"{split}-00000-of-00001.parquet", rows, columns, start=100 * i)
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_images_with_labels(folder: Path, streaming: bool) -> None:
    made = [
        huggingface.HuggingFaceImages(path=str(folder), name="made", streaming=streaming, prompts={"p": ["a {}"]})
        for _ in range(2)
    ]
    data = made[0]
    label_set = data.info.label_sets["class"]
    assert label_set.classes == NAMES
    assert label_set.prompts["p"].texts == ("a cat", "a dog")
    assert [len(data.items(Part(split, "image"))) for split in SPLITS] == [18, 2, 6]
    assert label_set.labels["test"].tolist() == [0, 1, 0, 1, 0, 1]
    expected = published.image_bytes(100, "png")
    with published.Image.open(published.io.BytesIO(expected)) as image:
        assert np.array_equal(np.asarray(data.items(Part("test", "image"))[0]), np.asarray(image))
    assert made[0].info.fingerprint == made[1].info.fingerprint
    assert str(folder) not in str(data.info.fingerprint)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_with_captions(folder: Path, streaming: bool) -> None:
    data = huggingface.HuggingFaceCaptions(path=str(folder), name="made", streaming=streaming, captions=2)
    assert [len(data.items(Part(split, "text"))) for split in SPLITS] == [36, 4, 12]
    assert data.items(Part("test", "text"))[:3] == ["caption 0 of 0", "caption 1 of 0", "caption 0 of 1"]
    assert data.info.caption_of["test"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    row = data.info.caption_of["val"].tolist()[2]
    assert len({text.split()[-1] for text in data.items(Part("val", "text"))[2 * row : 2 * row + 2]}) == 1  # type: ignore[union-attr]


def test_streams_see_every_byte(folder: Path) -> None:
    before = huggingface.HuggingFaceImages(path=str(folder), name="made", streaming=True).info.fingerprint
    published.parquet(folder / "test-00000-of-00001.parquet", 6, {"label": [0, 1] * 3, "caption": [["a"]] * 6}, 200)
    assert huggingface.HuggingFaceImages(path=str(folder), name="made", streaming=True).info.fingerprint != before


def test_splits_and_columns_that_are_not_there(folder: Path) -> None:
    def made(**options: object) -> huggingface.HuggingFaceImages:
        return huggingface.HuggingFaceImages(**{"path": str(folder), "name": "made", **options})  # type: ignore[arg-type]

    with pytest.raises(DataError, match=r"no split 'validation'; it has \['train', 'test'\]"):
        made(splits={"train": "train", "test": "validation"}).setup()
    with pytest.raises(DataError, match=r"no column 'labl' \(did you mean 'label'\?\)"):
        made(label="labl").setup()
    with pytest.raises(DataError, match=r"expected 3 items in train, found 20"):
        made(expected={"train": 3}).setup()
    with pytest.raises(ConfigError, match=r"data\.splits='trian' is not one of"):
        made(splits={"trian": "train"})
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        made(path=None)
    with pytest.raises(DataError, match="datasets cannot read 'nobody/nothing'"):
        made(path="nobody/nothing").setup()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krossfuse.core.errors.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package datasets.*krossfuse\[datasets\]"):
        huggingface.HuggingFaceImages(path="a/b", name="x")
