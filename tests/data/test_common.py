from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import Part
from krossfuse.data.common import (
    ImageFiles,
    check_info,
    digest,
    make_prompt_sets,
    make_prompts,
    open_image,
    required_path,
    stratified_split,
)

IMAGES = {Part(split, "image"): 4 for split in ("train", "val", "test")}


def info(labels=None, *, caption_of=None, prompts=None, classes=("a", "b"), multilabel=False) -> DatasetInfo:
    given = {split: torch.tensor([0, 1, 0, 1]) for split in ("train", "val", "test")} | (labels or {})
    return DatasetInfo("toy", {}, {"class": LabelSet(classes, given, prompts or {}, multilabel)}, caption_of or {})


@pytest.mark.parametrize("templates", [[], "a photo of a {}", ["{}", "no place"]])
def test_bad_templates(templates):
    with pytest.raises(ConfigError, match="template"):
        make_prompts(templates, ["cat"])


def test_prompt_sets_name_the_bad_one():
    with pytest.raises(ConfigError, match=r"prompts\.odd: .*has no"):
        make_prompt_sets({"good": ["{}"], "odd": ["cat"]}, ["cat"])


def test_digest_sees_borders():
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["ab", "c"]) == digest(iter(["ab", "c"]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=60),
    st.floats(0.05, 0.45),
    st.floats(0.05, 0.45),
    st.integers(0, 9),
)
def test_split_is_a_partition(labels, val, test, seed):
    labels = torch.tensor(labels)
    rows = stratified_split(labels, {"val": val, "test": test}, seed=seed)
    assert torch.equal(torch.cat(list(rows.values())).sort().values, torch.arange(len(labels)))
    assert set(labels.tolist()) == set(labels[rows["train"]].tolist())  # no class without training items
    for label in labels.unique():
        m = int((labels == label).sum())
        if m >= 3:
            assert all(bool((labels[rows[split]] == label).any()) for split in rows)
            assert int((labels[rows["val"]] == label).sum()) == max(1, round(m * val))
    again = stratified_split(labels, {"val": val, "test": test}, seed=seed)
    assert all(torch.equal(rows[split], again[split]) for split in rows)


def test_split_depends_on_the_seed_alone():
    labels = torch.zeros(50, dtype=torch.int64)
    first = stratified_split(labels, {"val": 0.2}, seed=0)["val"]
    torch.manual_seed(123)
    assert torch.equal(first, stratified_split(labels, {"val": 0.2}, seed=0)["val"])
    assert not torch.equal(first, stratified_split(labels, {"val": 0.2}, seed=1)["val"])


@pytest.mark.parametrize("fractions", [{"val": 0.0}, {"val": 1.0}, {"val": 0.6, "test": 0.5}, {"val": "much"}])
def test_bad_fractions(fractions):
    with pytest.raises(ConfigError, match="fraction"):
        stratified_split(torch.zeros(5, dtype=torch.int64), fractions, seed=0)


def test_transparent_becomes_white(tmp_path):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    picture.save(tmp_path / "a.png")
    opened = ImageFiles([tmp_path / "a.png"])[0]
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (255, 0, 0)
    assert opened.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "I;16", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (5, 3)).save(tmp_path / f"a.{suffix}")
    assert open_image(tmp_path / f"a.{suffix}").mode == "RGB"


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_truncated_image_is_named(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.radial_gradient("L").convert("RGB").save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:400])
    with pytest.raises(DataError, match=rf"cut\.{suffix}"):
        open_image(cut)
    with pytest.raises(DataError, match=r"gone\.png"):
        open_image(tmp_path / "gone.png")


def test_good_info_passes():
    prompts = {"p": make_prompts(["{}", "the {}"], ["a", "b"])}
    given = info(prompts=prompts, caption_of={"train": torch.tensor([0, 0, 3])})
    assert check_info(given, {**IMAGES, Part("train", "text"): 3}) is given
    many = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.bool)
    check_info(info(dict.fromkeys(("train", "val", "test"), many), multilabel=True), IMAGES)


@pytest.mark.parametrize(
    ("given", "sizes", "message"),
    [
        (
            info({"test": torch.tensor([0, 1, 2, 0])}),
            IMAGES,
            r"test: label 2 of row 2 is out of range: .*2 class names",
        ),
        (info({"test": torch.tensor([0, 1, -2, 0])}), IMAGES, "label -2 of row 2"),
        (info({"val": torch.tensor([0, 1, 0])}), IMAGES, "val: 3 labels but 4 items"),
        (info({"val": torch.zeros(4)}), IMAGES, "must be .* int64"),
        (info({"train": torch.tensor([0, 0, 0, -1])}), IMAGES, r"no training samples: \['b'\]"),
        (info(), IMAGES | {Part("val", "image"): 0}, "val:image is empty"),
        (info(), {Part("train", "image"): 4}, r"no items in split \['val', 'test'\]"),
        (info(caption_of={"val": torch.tensor([0, 4])}), IMAGES | {Part("val", "text"): 2}, "caption without an image"),
        (info(caption_of={"val": torch.tensor([0, 1])}), IMAGES | {Part("val", "text"): 3}, "2 rows but .* 3 texts"),
        (info(caption_of={"val": torch.tensor([0.0])}), IMAGES, "one int64 a caption"),
        (info(multilabel=True), IMAGES, r"multilabel labels must be \(n, 2\) bool"),
        (
            info(prompts={"p": Prompts(("x",), torch.tensor([0]))}),
            IMAGES,
            r"prompts 'p': texts for 1 of 2 classes \(\['a'\]\), .* two classes to tell apart: give more",
        ),
        (info(classes=("a", "a")), IMAGES, r"1 class name.* given to several classes: \['a'\]"),
        (info(prompts={"p": Prompts(("x",), torch.tensor([0, 1]))}), IMAGES, "1 texts but 2 owners"),
        (info(prompts={"p": Prompts(("x", "y"), torch.tensor([0, 2]))}), IMAGES, "outside the 2 classes"),
    ],
)
def test_bad_info(given, sizes, message):
    with pytest.raises(DataError, match=message):
        check_info(given, sizes)


def test_required_path_says_how():
    with pytest.raises(ConfigError, match=r"data\.root is not set: give the folder as data\.root=PATH"):
        required_path("root", None, "the folder")


def test_what_is_missing_is_counted_and_the_way_out_said():
    names = tuple(f"class {i}" for i in range(44))
    labels = {split: torch.arange(44) for split in ("train", "val", "test")}
    sizes = {Part(split, "image"): 44 for split in labels}
    prompts = {"p": Prompts(tuple("xxxx"), torch.arange(4))}
    check_info(info(labels, classes=names, prompts=prompts), sizes)  # 40 classes have no text, which is allowed
    with pytest.raises(DataError, match=r"44 of 44 classes .*'class 9'\] and 34 more; add some"):
        check_info(info(labels | {"train": torch.full((44,), -1)}, classes=names), sizes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png.*it is a named pipe, not a file"):
        open_image(tmp_path / "a.png")
