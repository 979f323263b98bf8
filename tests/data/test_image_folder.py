from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from PIL import Image

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import Part
from krossfuse.data.image_folder import ImageFolder

PROMPTS = {"default": ["a photo of a {}."]}


def names(dm, split):
    return [path.split(os.sep, -1)[-2:] for path in dm.items(Part(split, "image")).paths]


def test_drawn_splits(folder_of_images):
    root = folder_of_images({"tabby_cat": 10, "dog": 20})
    (root / "notes.txt").write_text("not an image")
    (root / "dog" / ".hidden.png").write_text("neither")
    dm = ImageFolder(root=str(root), prompts=PROMPTS)
    classes = dm.info.label_sets["class"]
    assert classes.classes == ("dog", "tabby cat")
    assert classes.prompts["default"].texts == ("a photo of a dog.", "a photo of a tabby cat.")
    assert {split: labels.bincount().tolist() for split, labels in classes.labels.items()} == {
        "train": [14, 7],
        "val": [2, 1],
        "test": [4, 2],
    }
    seen = []
    for split, labels in classes.labels.items():
        files = names(dm, split)
        assert [folder for folder, _ in files] == [["dog", "tabby_cat"][label] for label in labels.tolist()]
        seen += [tuple(file) for file in files]
    assert len(seen) == len(set(seen)) == 30
    image = dm.items(Part("train", "image"))[0]
    assert image.mode == "RGB"
    assert image.size == (8, 8)
    assert "seed 0" in dm.info.fingerprint["splits"]["test"]
    again, other = ImageFolder(root=str(root)), ImageFolder(root=str(root), split_seed=1)
    assert names(again, "test") == names(dm, "test") != names(other, "test")
    assert again.info.fingerprint == dm.info.fingerprint != other.info.fingerprint


@pytest.mark.parametrize(
    ("folders", "rule"),
    [
        (("train", "val", "test"), {"train": "folder train", "val": "folder val", "test": "folder test"}),
        (("train", "test"), {"train": "folder train", "val": "0.1 of train", "test": "folder test"}),
        (("train", "val"), {"train": "folder train", "val": "0.1 of train", "test": "folder val"}),
    ],
)
def test_given_splits(folder_of_images, folders, rule):
    root = folder_of_images({f"{split}/{name}": 5 for split in folders for name in ("a", "b")})
    dm = ImageFolder(root=str(root))
    fingerprint = dm.info.fingerprint["splits"]
    assert all(fingerprint[split].startswith(text) for split, text in rule.items())
    for split, text in rule.items():
        source = text.rsplit(" ", 1)[-1]
        assert all(f"{os.sep}{source}{os.sep}" in path for path in dm.items(Part(split, "image")).paths)
    sizes = [len(dm.items(Part(split, "image"))) for split in ("train", "val", "test")]
    assert sizes == ([10, 10, 10] if len(folders) == 3 else [8, 2, 10])


@pytest.mark.parametrize("digest", ["stat", "content"])
def test_a_changed_image_changes_the_fingerprint(folder_of_images, digest):
    root = folder_of_images({"a": 5, "b": 5})
    before = ImageFolder(root=str(root), digest=digest).info.fingerprint
    file = root / "b" / "003.png"
    Image.new("RGB", (8, 8), "purple").save(file)
    os.utime(file, ns=(0, 10**18))
    changed = ImageFolder(root=str(root), digest=digest).info.fingerprint
    assert changed != before
    os.utime(file, ns=(0, 2 * 10**18))
    touched = ImageFolder(root=str(root), digest=digest).info.fingerprint
    assert (touched == changed) == (digest == "content")


def test_class_names_from_a_file(folder_of_images, tmp_path):
    root = folder_of_images({"n01": 5, "n02": 5})
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"n01": "tench", "n02": "goldfish", "n03": "shark"}))
    assert ImageFolder(root=str(root), class_names=str(file)).info.label_sets["class"].classes == ("tench", "goldfish")
    file.write_text(json.dumps({"n01": "tench", "n002": "goldfish"}))
    with pytest.raises(DataError, match=r"no name for folder 'n02' \(did you mean 'n002'"):
        ImageFolder(root=str(root), class_names=str(file)).setup()
    with pytest.raises(DataError, match=r"class_names: cannot read .*gone\.json"):
        ImageFolder(root=str(root), class_names=str(tmp_path / "gone.json")).setup()


def test_unreadable_image_is_named_when_it_is_read(folder_of_images):
    root = folder_of_images({"a": 5, "b": 5})
    broken = root / "a" / "000.png"
    broken.write_bytes(broken.read_bytes()[:40])
    dm = ImageFolder(root=str(root), num_workers=1)
    part = next(part for part in dm.parts() if str(broken) in dm.items(part).paths)
    loader = dm.loader(part, lambda image: image.size, list, [range(len(dm.items(part)))])
    with pytest.raises(DataError, match=r"cannot read image .*a/000\.png"):
        list(loader)


def test_bad_folders(folder_of_images, tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        ImageFolder(root=str(tmp_path / "gone")).setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        ImageFolder(root=str(tmp_path / "empty")).setup()
    root = folder_of_images({"train/a": 3, "val/a": 3, "test/a": 3, "test/b": 1})
    with pytest.raises(DataError, match=r"classes have no training samples: \['b'\]"):
        ImageFolder(root=str(root)).setup()


def test_empty_split(folder_of_images):
    root = folder_of_images({"train/a": 3, "val/a": 3, "test/a": 0})
    with pytest.raises(DataError, match="test:image is empty"):
        ImageFolder(root=str(root)).setup()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"root": None}, "data.root is not set"),
        ({"digest": "md5"}, "data.digest='md5' is not one of"),
        ({"val_fraction": 0}, "val_fraction=0"),
        ({"test_fraction": 0.95}, "leave nothing"),
        ({"prompts": {"p": ["photo"]}}, r"prompts\.p"),
    ],
)
def test_bad_options(bad, message):
    with pytest.raises(ConfigError, match=message):
        ImageFolder(**{"root": "x", **bad})


def test_a_link_to_a_folder_around_it_is_not_followed(folder_of_images, caplog):
    root = folder_of_images({"a": 6, "b": 6})
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "all").symlink_to(root)
    (root / "b" / "deeper").mkdir()
    (root / "b" / "deeper" / "up").symlink_to("../..")
    dm = ImageFolder(root=str(root))
    assert sum(len(dm.items(part)) for part in dm.parts()) == 12
    assert dm.info.label_sets["class"].classes == ("a", "b")
    assert caplog.text.count("it is not followed") == 4


def test_links_out_of_the_tree_are_followed_but_not_round(folder_of_images, tmp_path):
    root = folder_of_images({"a": 6, "b": 6})
    far, farther = tmp_path / "far", tmp_path / "farther"
    far.mkdir()
    farther.mkdir()
    Image.new("RGB", (8, 8), "orange").save(far / "x.png")
    (root / "a" / "more").symlink_to(far)
    (far / "more").symlink_to(farther)
    (farther / "back").symlink_to(far)
    dm = ImageFolder(root=str(root))
    assert sum(len(dm.items(part)) for part in dm.parts()) == 13


def test_a_named_pipe_among_the_images(folder_of_images):
    root = folder_of_images({"a": 6, "b": 6})
    os.mkfifo(root / "a" / "pipe.png")
    with pytest.raises(DataError, match=r"cannot read image '.*a/pipe\.png': it is a named pipe, not a file; remove"):
        ImageFolder(root=str(root)).setup()


def test_identical_images_in_two_splits(folder_of_images, caplog):
    root = folder_of_images({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("a", "b")})
    shutil.copy(root / "train" / "a" / "001.png", root / "test" / "a" / "copy.png")
    shutil.copy(root / "train" / "a" / "002.png", root / "test" / "b" / "copy.png")
    ImageFolder(root=str(root)).setup()
    assert re.search(
        r"identical items in two splits: 2 of 8 items of 'train' are in 'test' too "
        r"\(the first: '.*train/a/001\.png' is '.*test/a/copy\.png'\)",
        caplog.text,
    )
    with pytest.raises(DataError, match=r"2 of 8 items of 'train'.*data\.duplicates=warn"):
        ImageFolder(root=str(root), duplicates="error").setup()
    caplog.clear()
    ImageFolder(root=str(root), duplicates="ignore").setup()
    assert "identical" not in caplog.text


def test_copies_within_a_split_and_images_of_one_size_are_no_duplicates(folder_of_images, caplog):
    root = folder_of_images({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("a", "b")})
    for i in range(4):
        (root / "val" / "a" / f"{i:03}.png").write_bytes(b"\x89PNG" + bytes(20_000) + bytes([i]) + bytes(20_000))
        (root / "test" / "a" / f"{i:03}.png").write_bytes(b"\x89PNG" + bytes(20_000) + bytes([i + 9]) + bytes(20_000))
    shutil.copy(root / "train" / "a" / "001.png", root / "train" / "a" / "copy.png")
    ImageFolder(root=str(root), duplicates="error").setup()
    assert not caplog.text


def test_class_names_that_coincide(folder_of_images):
    root = folder_of_images({"big_cat": 5, "big cat": 5, "dog": 5})
    with pytest.raises(DataError, match=r"1 class name.* \{'big cat': \['big cat', 'big_cat'\]\}; give each folder"):
        ImageFolder(root=str(root)).setup()


def test_an_empty_class_folder_is_named(folder_of_images, caplog):
    root = folder_of_images({"a": 5, "b": 5})
    (root / "otter").mkdir()
    assert ImageFolder(root=str(root)).info.label_sets["class"].classes == ("a", "b")
    assert "1 class folder(s) without an image, left out: 'otter'" in caplog.text


def test_check_reads_no_folder(folder_of_images, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="there is no folder"):
        ImageFolder(root=str(tmp_path / "gone")).check()
    root = folder_of_images({"a": 5, "b": 5})
    with pytest.raises(DataError, match="class_names"):
        ImageFolder(root=str(root), class_names=str(tmp_path / "gone.json")).check()
    monkeypatch.setattr(os, "scandir", None)
    ImageFolder(root=str(root)).check()
