"""Data sets by name whose files, lists or counts are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import published
import pytest
from published import Files

from krossfuse.app.build import make
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.module import BaseDataModule


def test_classes_that_are_not_those_of_the_list(tmp_path: Path, node: Any) -> None:
    published.imagenet(Files(tmp_path), "list:imagewoof")
    bad = node("imagewoof", root=str(tmp_path), expected=None)
    moved = tmp_path / "train" / "n02086240"
    moved.rename(tmp_path / "train" / "n02086241")
    with pytest.raises(DataError, match=r"class 'n02086241' is not one of the 10 .*did you mean 'n02086240'"):
        make(bad, "data", BaseDataModule).setup()
    for split in ("train", "val"):
        for file in (tmp_path / split).glob("n0208624*/*"):
            file.unlink()
    with pytest.raises(DataError, match=r"1 of the 10 classes of list:imagewoof have no images: \['n02086240'\]"):
        make(bad, "data", BaseDataModule).setup()


def test_unknown_lists(node: Any) -> None:
    with pytest.raises(ConfigError, match=r"no list 'imagewof' \(did you mean 'imagewoof'"):
        make(node("imagewoof", root="/nowhere", class_names="list:imagewof"), "data")
    with pytest.raises(ConfigError, match="has templates but no class names"):
        make(node("imagewoof", root="/nowhere", class_names="list:food101"), "data")
    with pytest.raises(ConfigError, match="no list 'x'"):
        make(node("imagewoof", root="/nowhere", prompts={"plain": "list:x"}), "data")


def test_absent_files_say_where_they_are_got(tmp_path: Path, node: Any) -> None:
    def missing(name: str) -> str:
        with pytest.raises(DataError) as caught:
            make(node(name, root=str(tmp_path / "absent")), "data").check()
        return str(caught.value)

    assert "got by agreeing to ImageNet's terms at https://www.image-net.org" in missing("imagenet")
    assert "put train/n01440764/*.JPEG" in missing("imagenet")
    assert "asking with the form at https://shannon" in missing("flickr30k")
    assert "data.download=true" in missing("food101")


# ------------------------------------------------------------------------------------------------------- bad inputs


def test_a_tar_is_read_with_care(tmp_path: Path, node: Any) -> None:
    def error(members: dict[str, bytes | str], shards: int = 1) -> str:
        files = Files(tmp_path)
        published.webdataset(files)
        published.tar(tmp_path / "test" / "0.tar", members)
        files.write("test/nshards.txt", str(shards))
        with pytest.raises(DataError) as caught:
            make(node("webdataset", root=str(tmp_path)), "data", BaseDataModule).setup()
        return str(caught.value)

    image = published.image_bytes()
    assert "leads outside it" in error({"../a.jpg": image, "../a.cls": "0"})
    assert "a pickle, which would run code" in error({"a.jpg": image, "a.pkl": b"x"})
    assert "has no label (cls)" in error({"a.jpg": image})
    assert "has no image" in error({"a.cls": "0"})
    assert "label 'one' is no number" in error({"a.jpg": image, "a.cls": "one"})
    assert "label 2, but classnames.txt has 2 names" in error({"a.jpg": image, "a.cls": "2"})
    assert "counts 3 tars, and there are 1" in error({"a.jpg": image, "a.cls": "1"}, shards=3)
    assert "'a' twice" in error({"a.jpg": image, "a.cls": "1", "b.jpg": image, "b.cls": "1", "a.png": image})


def test_a_truncated_tar_is_named(tmp_path: Path, node: Any) -> None:
    published.webdataset(Files(tmp_path))
    path = tmp_path / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"test/0\.tar.*fetch it again"):
        make(node("webdataset", root=str(tmp_path)), "data", BaseDataModule).setup()


def test_webdatasets_of_the_other_kind(tmp_path: Path, node: Any) -> None:
    published.webdataset(Files(tmp_path / "labels"))
    (tmp_path / "labels" / "dataset_type.txt").write_text("classification")
    published.webdataset(Files(tmp_path / "captions"), captions=True)
    for kind, other in (("captions", "webdataset"), ("labels", "webdataset_captions")):
        right = "webdataset_captions" if kind == "captions" else "webdataset"
        with pytest.raises(DataError, match=f"say data={right}"):
            make(node(other, root=str(tmp_path / kind)), "data", BaseDataModule).setup()


def test_captions_that_are_lacking(tmp_path: Path, node: Any) -> None:
    published.karpathy(Files(tmp_path), "dataset_flickr30k.json", dict.fromkeys(SPLITS, ""))
    options = {"root": str(tmp_path), "expected": None}
    with pytest.raises(DataError, match=r"image 1 has 5 caption\(s\), expected 6; say data.captions=5"):
        make(node("flickr30k", **options, captions=6), "data", BaseDataModule).setup()
    every = make(node("flickr30k", **options, captions=None), "data", BaseDataModule)
    assert len(every.items(Part("train", "text"))) == 11
    (tmp_path / "000000000000.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000000\.jpg"):
        make(node("flickr30k", **options), "data", BaseDataModule).setup()
    (tmp_path / "dataset_flickr30k.json").write_text("{}")
    with pytest.raises(DataError, match="is not Karpathy's JSON"):
        make(node("flickr30k", **options), "data", BaseDataModule).setup()


def test_files_of_tweets_dogs_and_pairs_of_another_form(tmp_path: Path, node: Any) -> None:
    def error(name: str, **options: object) -> str:
        with pytest.raises(DataError) as caught:
            make(node(name, root=str(tmp_path), expected=None, **options), "data", BaseDataModule).setup()
        return str(caught.value)

    files = Files(tmp_path)
    assert "has no 'labelResultAll.txt'; it is got from https://mcrlab.net" in error("mvsa_single")
    published.mvsa(files, 1)
    (tmp_path / "data" / "3.txt").unlink()
    assert "3.txt" in error("mvsa_single")
    files.write("labelResultAll.txt", "ID\ttext,image\n1\tpositive,happy\n")
    assert "line 2: expected the number of a tweet" in error("mvsa_single")
    files.write("labelResultAll.txt", "ID\ttext,image\n")
    assert "has no tweets" in error("mvsa_single")
    published.stanford_dogs(files)
    (tmp_path / "test_list.mat").write_bytes((tmp_path / "train_list.mat").read_bytes()[:300])
    assert "not of the form 'dogs'" in error("stanford_dogs")
    published.mrpc(files)
    files.write("msr_paraphrase_test.txt", "Quality\n1\t2\t3\tone sentence\n")
    assert "msr_paraphrase_test.txt', line 2: expected label (0 or 1)" in error("mrpc")
    (tmp_path / "msr_paraphrase_test.txt").unlink()
    assert "put msr_paraphrase_train.txt and msr_paraphrase_test.txt below data.root" in error("mrpc")


@pytest.mark.parametrize("value", [{"train": "many"}, 3, {"train": 0}])
def test_impossible_counts(value: object, tmp_path: Path, node: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.expected"):
        make(node("food101", root=str(tmp_path), expected=value), "data")
