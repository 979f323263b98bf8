"""Every data set by its name: composed, built on a small one in its real form, and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import published
import pytest
import torchvision.datasets
import yaml
from published import Files

from krossfuse.app.build import check, make
from krossfuse.app.paths import CONFIG_DIR
from krossfuse.core.errors import DataError
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.class_lists import class_list
from krossfuse.data.module import BaseDataModule

IMAGE_PAIRS = ["openmoji_image", "openmoji_both", "clip_dinov2"]
TEXT_PAIRS = ["openmoji_text", "openmoji_both", "clip_e5"]


@dataclass
class Case:
    """``sizes``: of train, val, test; ``names``: the first class names; ``prompt``: the first text of the first set."""

    build: Callable[[Files], object]
    sizes: tuple[int, int, int]
    classes: int
    names: tuple[str, ...]
    prompt: str
    of_root: str = "data.root"
    more: dict[str, str] = field(default_factory=dict)


def variant(labels: str) -> Callable[[Files], object]:
    return lambda files: published.wnids(files, labels)


CASES: dict[str, Case] = {
    "cifar10": Case(published.cifar10, (90, 10, 10), 10, ("airplane", "automobile"), "a photo of a airplane."),
    "cifar100": Case(published.cifar100, (100, 100, 100), 100, ("apple", "aquarium fish"), "a photo of a apple."),
    "svhn": Case(published.svhn, (30, 10, 20), 10, ("zero", "one"), "a photo of the number zero written on a sign"),
    "caltech101": Case(
        published.caltech101, (101, 101, 101), 101, ("off-center face",), "a photo of a off-center face."
    ),
    "food101": Case(
        published.food101, (4, 2, 4), 2, ("apple pie", "baby back ribs"), "a photo of apple pie, a type of food."
    ),
    "flowers102": Case(
        published.flowers102, (102, 102, 102), 102, ("pink primrose",), "a photo of a pink primrose, a type of flower."
    ),
    "oxford_pets": Case(
        published.oxford_pets, (74, 37, 74), 37, ("Abyssinian",), "a photo of a Abyssinian, a type of pet."
    ),
    "dtd": Case(published.dtd, (2, 2, 2), 2, ("banded", "blotchy"), "a photo of a banded texture."),
    "fgvc_aircraft": Case(
        published.fgvc_aircraft, (2, 2, 2), 2, ("707-320",), "a photo of a 707-320, a type of aircraft."
    ),
    "gtsrb": Case(
        published.gtsrb, (43, 43, 43), 43, ("red and white circle 20 kph speed limit",),
        'a zoomed in photo of a "red and white circle 20 kph speed limit" traffic sign.',
    ),
    "eurosat": Case(
        published.eurosat, (10, 10, 10), 10, ("annual crop land", "forest"),
        "a centered satellite photo of annual crop land.",
    ),
    "sun397": Case(
        published.sun397, (4, 2, 2), 2, ("abbey", "badminton court/indoor"), "a photo of a abbey."
    ),
    "stanford_cars": Case(
        published.stanford_cars, (2, 2, 4), 2, ("AM General Hummer SUV 2000",),
        "a photo of a AM General Hummer SUV 2000.",
    ),
    "imagenet": Case(published.imagenet, (1000, 1000, 1000), 1000, ("tench", "goldfish"), "a bad photo of a tench."),
    "imagenet_a": Case(
        variant("list:imagenet_a"), (200, 200, 200), 200, ("stingray", "goldfinch"), "a bad photo of a stingray."
    ),
    "imagenet_r": Case(
        variant("list:imagenet_r"), (200, 200, 200), 200, ("goldfish",), "a bad photo of a goldfish."
    ),
    "imagenet_sketch": Case(
        variant("list:imagenet"), (1000, 1000, 1000), 1000, ("tench",), "a bad photo of a tench."
    ),
    "imagenet_v2": Case(published.imagenet_v2, (1000, 1000, 1000), 1000, ("tench",), "a bad photo of a tench."),
    "imagewoof": Case(
        lambda files: published.imagenet(files, "list:imagewoof"), (10, 10, 10), 10, ("Shih Tzu",),
        "a bad photo of a Shih Tzu.",
    ),
    "cub200": Case(
        published.cub200, (4, 2, 2), 2, ("Black footed Albatross",),
        "a photo of a Black footed Albatross, a type of bird.",
    ),
    "ucf101": Case(
        published.ucf101, (2, 2, 2), 2, ("Apply Eye Makeup", "Archery"), "a photo of a person Apply Eye Makeup."
    ),
    "image_list": Case(
        published.ucf101, (2, 2, 2), 2, ("Apply Eye Makeup",), "a photo of a Apply Eye Makeup.",
        more={"data.images": "UCF-101-midframes", "data.file": "split_zhou_UCF101.json"},
    ),
    "webdataset": Case(published.webdataset, (6, 2, 4), 2, ("cat", "dog"), "a photo of a cat."),
    "stanford_dogs": Case(
        published.stanford_dogs, (4, 2, 4), 2, ("Chihuahua", "Japanese spaniel"),
        "a photo of a Chihuahua, a type of dog.",
    ),
    "mscoco_objects": Case(
        published.coco_objects, (4, 2, 1), 2, ("person", "car"), "a photo of a person."
    ),
    "mvsa_single": Case(
        lambda files: published.mvsa(files, 1), (6, 3, 3), 3, ("negative", "neutral", "positive"), "a negative photo."
    ),
    "mvsa_multiple": Case(
        lambda files: published.mvsa(files, 3), (6, 3, 3), 3, ("negative", "neutral", "positive"), "a negative photo."
    ),
    "tfds": Case(published.tfds, (6, 2, 4), 2, ("cat", "dog"), "a photo of a cat."),
}  # fmt: skip

CAPTIONS: dict[str, tuple[Callable[[Files], object], tuple[int, int, int]]] = {
    "mscoco": (
        lambda files: published.karpathy(
            files,
            "dataset_coco.json",
            {"train": "train2014", "restval": "val2014", "val": "val2014", "test": "val2014"},
        ),
        (4, 2, 2),
    ),
    "flickr30k": (
        lambda files: published.karpathy(files, "dataset_flickr30k.json", dict.fromkeys(SPLITS, "")),
        (2, 2, 2),
    ),
    "webdataset_captions": (lambda files: published.webdataset(files, captions=True), (7, 1, 4)),
    "tfds_captions": (lambda files: published.tfds(files, captions=True), (7, 1, 4)),
}

TEXTS = {
    "mr": {"rt-polarity.all": 2},
    "cr": {"custrev.all": 2},
    "subj": {"subj.all": 2},
    "mpqa": {"mpqa.all": 2},
    "sst2": {f"stsa.binary.{part}": 2 for part in ("train", "dev", "test")},
    "trec": {f"TREC.{part}.all": 6 for part in ("train", "test")},
}

ELSEWHERE = {
    *("embeddings", "image_folder", "mnist", "mnist_pixels", "openmoji", "openmoji_typographic", "senteval"),
    *("text_files", "typographic", "imagenet_typographic", "huggingface", "huggingface_captions", "shards", "mrpc"),
}
"""Options that other tests build."""


def published_counts(name: str) -> dict[str, int]:
    counts: dict[str, int] = yaml.safe_load((CONFIG_DIR / "data" / f"{name}.yaml").read_text())["expected"]
    return counts


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    published.imagenet(Files(root))
    return root


@pytest.fixture(autouse=True)
def _made_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made files have other checksums than the published ones, which torchvision knows."""
    for name in ("CIFAR10", "SVHN"):
        monkeypatch.setattr(getattr(torchvision.datasets, name), "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)


def test_every_option_is_built_somewhere() -> None:
    options = {file.stem for file in (CONFIG_DIR / "data").glob("*.yaml") if not file.stem.startswith("synthetic")}
    assert options == {*CASES, *CAPTIONS, *TEXTS, *ELSEWHERE}


def made(name: str, root: Path, imagenet: Path) -> dict[str, object]:
    """Build a set's files, and return the overrides that find them; counts are not the published ones."""
    case = CASES[name]
    words: dict[str, object] = {"data": name, "data.expected": "null", **case.more}
    if name == "imagenet":
        return {**words, "data.root": imagenet}
    case.build(Files(root))
    if name in ("imagenet_a", "imagenet_r", "imagenet_v2", "imagenet_sketch"):
        words["data.train_root"] = imagenet
    return {**words, "data.root": root}


@pytest.mark.parametrize("name", CASES)
def test_images_by_name(name: str, tmp_path: Path, imagenet: Path, compose: Any) -> None:
    case, words = CASES[name], made(name, tmp_path, imagenet)
    pair = IMAGE_PAIRS[list(CASES).index(name) % len(IMAGE_PAIRS)]
    plain, choices = compose(**words, pair=pair)
    check(plain, choices, data=True)
    data = make(plain["data"], "data", BaseDataModule)
    label_set = data.info.label_sets["class"]
    assert data.info.name == name
    assert tuple(len(data.items(Part(split, "image"))) for split in SPLITS) == case.sizes
    assert tuple(len(label_set.labels[split]) for split in SPLITS) == case.sizes
    assert len(label_set.classes) == case.classes
    assert label_set.classes[: len(case.names)] == case.names
    assert next(iter(label_set.prompts.values())).texts[0] == case.prompt
    assert set(label_set.prompts) >= {"plain", "paper"}
    assert label_set.prompts["paper"].texts[0] == f"a photo of a {case.names[0]}"
    assert data.items(Part("test", "image"))[-1].mode == "RGB"  # type: ignore[union-attr]
    assert {"licence", "source"} <= set(data.about) or name in ("image_list", "webdataset", "tfds")
    if plain["data"]["about"]:  # a published set says how many there should be, and this is not it
        with pytest.raises(DataError, match=rf"dataset '{name}': expected [0-9]+ .* found [0-9]+"):
            make({**plain["data"], "expected": published_counts(name)}, "data", BaseDataModule).setup()


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_by_name(name: str, tmp_path: Path, compose: Any) -> None:
    build, sizes = CAPTIONS[name]
    build(Files(tmp_path))
    pair = IMAGE_PAIRS[list(CAPTIONS).index(name) % len(IMAGE_PAIRS)]
    plain, choices = compose(
        **{"data": name, "data.root": tmp_path, "data.expected": "null", "probe": "[retrieval]", "pair": pair}
    )
    check(plain, choices, data=True)
    data = make(plain["data"], "data", BaseDataModule)
    for split, size in zip(SPLITS, sizes, strict=True):
        assert len(data.items(Part(split, "image"))) == size
        captions = data.items(Part(split, "text"))
        assert data.info.caption_of[split].tolist() == [row for row in range(size) for _ in range(5)]
        for row, text in zip(data.info.caption_of[split].tolist(), captions, strict=True):
            image = captions[5 * row].rsplit(" ", 1)[1]  # type: ignore[union-attr]
            assert text.rsplit(" ", 1)[1] == image  # type: ignore[union-attr]
            assert "  " not in text  # type: ignore[operator]
            assert "\n" not in text  # type: ignore[operator]
    assert data.items(Part("test", "image"))[0].size == (8, 8)  # type: ignore[union-attr]
    if plain["data"]["about"]:
        with pytest.raises(DataError, match=r"expected [0-9]+ items in train, found [0-9]; [0-9]+ items in val"):
            make({**plain["data"], "expected": published_counts(name)}, "data", BaseDataModule).setup()


@pytest.mark.parametrize("name", TEXTS)
def test_texts_by_name(name: str, tmp_path: Path, compose: Any) -> None:
    for file, labels in TEXTS[name].items():
        published.sentences(Files(tmp_path), file, labels, 60)
    pair = TEXT_PAIRS[list(TEXTS).index(name) % 3]
    words = {"data": name, "data.root": tmp_path, "probe": "[text_probe]", "pair": pair}
    plain, choices = compose(**words, **{"data.expected": "null"})
    check(plain, choices, data=True)
    data = make(plain["data"], "data", BaseDataModule)
    assert sum(len(data.items(Part(split, "text"))) for split in SPLITS) == 60 * len(TEXTS[name])
    assert len(data.info.label_sets["class"].classes) == next(iter(TEXTS[name].values()))
    with pytest.raises(DataError, match=r"expected [0-9]+ items in"):
        make({**plain["data"], "expected": published_counts(name)}, "data", BaseDataModule).setup()


def test_pairs_of_sentences_by_name(tmp_path: Path, compose: Any) -> None:
    published.mrpc(Files(tmp_path))
    words = {"data": "mrpc", "data.root": tmp_path, "probe": "[text_probe]", "pair": "openmoji_text"}
    plain, choices = compose(**words, **{"data.expected": "null"})
    check(plain, choices, data=True)
    data = make(plain["data"], "data", BaseDataModule)
    classes = data.info.label_sets["class"]
    assert classes.classes == ("different", "paraphrase")
    for split, n in zip(SPLITS, (36, 4, 10), strict=True):
        texts = [str(text) for text in data.items(Part(split, "text"))]
        assert len(texts) == 2 * n
        assert len(classes.labels[split]) == n
        for (first, second), label in zip(
            data.info.compared[split].tolist(), classes.labels[split].tolist(), strict=True
        ):
            said = texts[first].split()
            assert said[:2] == ["said", '"one']
            assert texts[second].split() == ["said", "two", *said[2:]]
            assert said[2] == ("test" if split == "test" else "train")
            assert int(said[3]) % 2 == label
    assert data.info.fingerprint["protocol"] == "splits"
    with pytest.raises(DataError, match=r"expected 4076 items in train, found 40; 1725 items in test, found 10"):
        make({**plain["data"], "expected": published_counts("mrpc")}, "data", BaseDataModule).setup()


def test_the_largest_object_and_the_captions_of_an_image(tmp_path: Path, node: Any) -> None:
    published.coco_objects(Files(tmp_path), each=3)
    data = make(node("mscoco_objects", root=str(tmp_path)), "data", BaseDataModule)
    with pytest.raises(DataError, match="expected 80 classes, found 2"):
        data.setup()
    options = {"root": str(tmp_path), "expected": None}
    data = make(node("mscoco_objects", **options), "data", BaseDataModule)
    assert [len(data.items(Part(split, "image"))) for split in SPLITS] == [6, 3, 2]  # one of test has no object
    for split in SPLITS:
        captions = [str(text) for text in data.items(Part(split, "text"))]
        labels = data.info.label_sets["class"].labels[split].tolist()
        assert len(captions) == 5 * len(labels)
        for row, caption in zip(data.info.caption_of[split].tolist(), captions, strict=True):
            assert labels[row] == int(caption.rsplit(" ", 1)[1]) // 4 % 2
    every = make(node("mscoco_objects", **options, captions=None), "data", BaseDataModule)
    assert len(every.items(Part("train", "text"))) == 31  # one image has a sixth
    file = tmp_path / "annotations" / "instances_val2014.json"
    file.write_text(file.read_text().replace('"car"', '"bus"'))
    with pytest.raises(DataError, match=r"instances_val2014\.json.*category 3 is 'bus' and 'car'"):
        make(node("mscoco_objects", **options), "data", BaseDataModule).setup()
    file.unlink()
    with pytest.raises(DataError, match=r"there is no file .*instances_val2014\.json.*put train2014, val2014"):
        make(node("mscoco_objects", **options), "data", BaseDataModule).check()


@pytest.mark.parametrize("annotators", [1, 3])
def test_tweets_have_a_text_and_one_sentiment(annotators: int, tmp_path: Path, node: Any) -> None:
    published.mvsa(Files(tmp_path), annotators)
    data = make(node("mvsa_single", root=str(tmp_path), expected={"all": 12, "classes": 3}), "data", BaseDataModule)
    numbers = []
    for split in SPLITS:
        texts = [str(text) for text in data.items(Part(split, "text"))]
        assert data.info.caption_of[split].tolist() == list(range(len(texts)))
        for text, label, image in zip(
            texts, data.info.label_sets["class"].labels[split].tolist(), data.items(Part(split, "image")), strict=True
        ):
            number = int(text.removeprefix("a café tweet "))
            assert label == (number - 1) % 3
            expected = tmp_path / "data" / f"{number}.jpg"
            with published.Image.open(expected) as own:
                assert own.convert("RGB").tobytes() == image.tobytes()  # type: ignore[union-attr]
            numbers.append(number)
    assert sorted(numbers) == list(range(1, 13))


def test_typographic_attack_on_any_set(tmp_path: Path, compose: Any) -> None:
    published.food101(Files(tmp_path))
    words = {"data": "typographic", "data@data.base": "food101", "data.base.root": tmp_path}
    plain, choices = compose(**words, **{"data.base.expected": "null"})
    check(plain, choices, data=True)
    data = make(plain["data"], "data", BaseDataModule)
    assert data.info.name == "food101_typographic"
    assert list(data.info.label_sets["class"].prompts) == ["ensemble", "plain", "paper"]
    assert len(data.items(Part("test", "image"))) == 4
    assert make(compose(data="typographic")[0]["data"], "data", BaseDataModule).base.name == "openmoji"


# ------------------------------------------------------------------------------------------------------ class lists


def test_imagenets_list_is_open_clips() -> None:
    from open_clip import zero_shot_metadata as metadata

    known = class_list("list:imagenet")
    assert list(known.names) == list(metadata.IMAGENET_CLASSNAMES)
    assert list(known.templates) == [template("{}") for template in metadata.OPENAI_IMAGENET_TEMPLATES]
    assert list(known.labels) == sorted(known.labels)


def test_lists_are_whole() -> None:
    import json

    from krossfuse.data.class_lists import FILE

    assert FILE.stat().st_size < 200_000
    for name, entry in json.loads(FILE.read_text()).items():
        known = class_list(f"list:{name}")
        assert entry["source"]
        assert all("{}" in template for template in known.templates)
        if known.labels:
            assert len(set(known.labels)) == len(known.names) == len(known.labels)
    assert len(class_list("list:imagenet_a").names) == len(class_list("list:imagenet_r").names) == 200
