from __future__ import annotations

import struct

import numpy as np
import pytest

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.torchvision_set import TorchvisionDataset


def write_idx(path, array):
    path.write_bytes(
        struct.pack(">I", 0x800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


@pytest.fixture
def mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in (("train", 60), ("t10k", 20)):
        images = (np.arange(n * 784) % 251).astype(np.uint8).reshape(n, 28, 28)
        write_idx(raw / f"{name}-images-idx3-ubyte", images)
        write_idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    return tmp_path


def test_splits_images_and_names(mnist):
    digits = [str(i) for i in range(10)]
    dm = TorchvisionDataset(dataset="MNIST", root=str(mnist), class_names=digits, prompts={"p": ["the {}"]})
    sizes = [len(dm.items(Part(split, "image"))) for split in SPLITS]
    assert sizes == [50, 10, 20]
    labels = dm.info.label_sets["class"]
    assert labels.classes == tuple(digits)
    assert labels.prompts["p"].texts[3] == "the 3"
    assert all(
        labels.labels[split].bincount().tolist() == [n // 10] * 10 for split, n in zip(SPLITS, sizes, strict=True)
    )
    image = dm.items(Part("test", "image"))[1]
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[:, :, 0].ravel(), np.arange(784, 1568) % 251)
    assert TorchvisionDataset(dataset="MNIST", root=str(mnist)).info.label_sets["class"].classes[0] == "0 - zero"


def test_a_limit_takes_the_first_of_each_class(mnist):
    whole = TorchvisionDataset(dataset="MNIST", root=str(mnist))
    few = TorchvisionDataset(dataset="MNIST", root=str(mnist), limit=13)
    for split, size in zip(SPLITS, (13, 10, 13), strict=True):
        labels = few.info.label_sets["class"].labels[split]
        assert len(labels) == len(few.items(Part(split, "image"))) == size
        assert set(labels.bincount(minlength=10).tolist()) <= {1, 2}
    assert few.info.fingerprint == {**whole.info.fingerprint, "limit": 13}
    with pytest.raises(ConfigError, match=r"data\.limit=0"):
        TorchvisionDataset(dataset="MNIST", root=str(mnist), limit=0)


def test_fingerprint_sees_the_pixels(mnist):
    before = TorchvisionDataset(dataset="MNIST", root=str(mnist)).info.fingerprint
    file = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert TorchvisionDataset(dataset="MNIST", root=str(mnist)).info.fingerprint != before


def test_absent(tmp_path):
    with pytest.raises(DataError, match=r"cannot read MNIST below .*data\.download=true"):
        TorchvisionDataset(dataset="MNIST", root=str(tmp_path)).setup()


def test_bad_options(mnist):
    with pytest.raises(ConfigError, match="did you mean 'MNIST'"):
        TorchvisionDataset(dataset="MNISTT", root="x")
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        TorchvisionDataset(dataset="MNIST", root=None)
    with pytest.raises(ConfigError, match="2 names, but dataset 'mnist' has 10 classes"):
        TorchvisionDataset(dataset="MNIST", root=str(mnist), class_names=["a", "b"]).setup()


def test_real_mnist(shared):
    if not (shared / "data" / "mnist").is_dir():
        pytest.skip("needs data/mnist/ of the development data")
    dm = TorchvisionDataset(dataset="MNIST", root=str(shared / "data" / "mnist"))
    sizes = [len(dm.items(Part(split, "image"))) for split in SPLITS]
    assert sum(sizes) == 70000
    assert sizes[1:] == [5999, 10000]  # a tenth of each digit, rounded
    assert dm.info.label_sets["class"].labels["test"][:5].tolist() == [7, 2, 1, 0, 4]
