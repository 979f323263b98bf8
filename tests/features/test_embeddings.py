from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.common import make_prompts
from krossfuse.features import regroup as regroup_module
from krossfuse.features.embeddings import EmbeddingsFile, save_embeddings

NAMES = ["cat", "dog", "otter"]
PLAIN = Part.prompts("class", "default")


def arrays(splits=("train", "val", "test"), n=30, dtype=np.float32):
    rng = np.random.default_rng(0)
    made = {"prompts/text/clip": rng.normal(size=(3, 6)).astype(dtype)}
    for split in splits:
        made[f"{split}/image/clip"] = rng.normal(size=(n, 6)).astype(dtype)
        made[f"{split}/image/dino"] = rng.normal(size=(n, 8)).astype(dtype)
        made[f"{split}/labels"] = np.arange(n) % 3
    return made


@pytest.fixture
def write(tmp_path):
    def write(made, suffix="npz", classes=NAMES):
        path = tmp_path / f"mine.{suffix}"
        if suffix == "npz":
            np.savez(path, **made, **({} if classes is None else {"classes": np.array(classes)}))
        else:
            save_file(made, path, metadata=None if classes is None else {"classes": json.dumps(classes)})
        return str(path)

    return write


def same(one: FeatureBundle, two: FeatureBundle) -> None:
    assert set(one.features) == set(two.features)
    for part, by_role in one.features.items():
        assert list(by_role) == list(two[part])
        for role, tensor in by_role.items():
            assert tensor.dtype == two[part][role].dtype
            assert torch.equal(tensor, two[part][role])
    assert set(one.info.label_sets) == set(two.info.label_sets)
    for name, label_set in one.info.label_sets.items():
        other = two.info.label_sets[name]
        assert (label_set.classes, label_set.multilabel) == (other.classes, other.multilabel)
        assert set(label_set.labels) == set(other.labels)
        assert all(torch.equal(label_set.labels[split], other.labels[split]) for split in label_set.labels)
        assert set(label_set.prompts) == set(other.prompts)
        for key, prompts in label_set.prompts.items():
            assert (prompts.texts, prompts.templates) == (other.prompts[key].texts, other.prompts[key].templates)
            assert torch.equal(prompts.owner, other.prompts[key].owner)
    assert set(one.info.caption_of) == set(two.info.caption_of)
    assert all(torch.equal(rows, two.info.caption_of[split]) for split, rows in one.info.caption_of.items())
    assert (one.pair, one.info.name) == (two.pair, two.info.name)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_of_numpy(write, suffix, dtype):
    made = arrays(dtype=dtype)
    bundle = EmbeddingsFile(path=write(made, suffix)).bundle()
    assert bundle.pair == "clip+dino"
    assert bundle.info.name == "mine"
    assert bundle.dims("image") == {"cross_modal": 6, "dino": 8}
    assert bundle.dims("text") == {"cross_modal": 6}
    assert {role: record["name"] for role, record in bundle.encoders.items()} == {"cross_modal": "clip", "dino": "dino"}
    for split in SPLITS:
        part = Part(split, "image")
        assert np.array_equal(bundle[part]["cross_modal"].numpy(), made[f"{split}/image/clip"])
        assert np.array_equal(bundle[part]["dino"].numpy(), made[f"{split}/image/dino"])
        assert bundle.info.labels("class", part).tolist() == made[f"{split}/labels"].tolist()
    prompts = bundle.info.label_sets["class"].prompts["default"]
    assert prompts.texts == tuple(NAMES)
    assert np.array_equal(bundle[PLAIN]["cross_modal"].numpy(), made["prompts/text/clip"])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_round_trip(write, tmp_path, suffix):
    """Captions, two label sets (one multilabel), several class texts a class, an extra split, both experts."""
    rng = torch.Generator().manual_seed(0)
    topics = {split: torch.rand(6, 4, generator=rng) < 0.5 for split in (*SPLITS, "ood")}
    topics["train"][0] = True
    labels = {split: torch.arange(6) % 2 for split in SPLITS} | {"ood": torch.tensor([0, -1, 1, 1, -1, 0])}
    parity = LabelSet(("even", "odd"), labels, {"plain": make_prompts(["a {}", "{}"], ["even", "odd"])})
    label_sets = {"parity": parity, "topics": LabelSet(("w", "x", "y", "z"), topics, multilabel=True)}
    captions = {split: torch.tensor([5, 0, 0, 2]) for split in SPLITS}
    features = {
        **{Part(s, "image"): {"cross_modal": torch.randn(6, 4), "dino": torch.randn(6, 3).half()} for s in topics},
        **{Part(s, "text"): {"cross_modal": torch.randn(4, 4), "e5": torch.randn(4, 5).double()} for s in SPLITS},
        Part.prompts("parity", "plain"): {"cross_modal": torch.randn(4, 4), "e5": torch.randn(4, 5).double()},
    }
    records = {
        role: {"name": f"{role} B/16", "fingerprint": {"sha256": "00"}} for role in ("cross_modal", "dino", "e5")
    }
    bundle = FeatureBundle(DatasetInfo("toy", {"rev": 1}, label_sets, captions), "my pair", features, records)
    path = tmp_path / f"saved.{suffix}"
    save_embeddings(path, bundle)
    read = EmbeddingsFile(path=str(path)).bundle()
    same(bundle, read)
    assert read.encoders == bundle.encoders
    assert read.info.fingerprint["saved_from"] == {"rev": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_bfloat16(tmp_path, write):
    path = write(arrays(), "safetensors")
    bundle = EmbeddingsFile(path=path).bundle()
    halves = {part: {r: x.bfloat16() for r, x in by_role.items()} for part, by_role in bundle.features.items()}
    small = FeatureBundle(bundle.info, bundle.pair, halves)
    save_embeddings(tmp_path / "half.safetensors", small)
    same(small, EmbeddingsFile(path=str(tmp_path / "half.safetensors"), name="mine").bundle())
    with pytest.raises(DataError, match=r"bfloat16, which \.npz cannot hold"):
        save_embeddings(tmp_path / "half.npz", small)
    assert not (tmp_path / "half.npz").exists()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_features_are_mapped_not_read(write, suffix):
    path = Path(write(arrays(), suffix))
    tensor = EmbeddingsFile(path=str(path)).bundle()[Part("test", "image")]["dino"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    at = tensor.data_ptr()
    for line in maps.read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= at < high:
            assert line.endswith(str(path))


def test_compressed_and_odd_npz(tmp_path):
    made = arrays()
    np.savez_compressed(tmp_path / "a.npz", **made)
    made["test/image/dino"] = np.asfortranarray(made["test/image/dino"])
    made["val/image/dino"] = made["val/image/dino"].astype(">f4")
    made["val/labels"] = made["val/labels"].astype(np.uint16)
    np.savez(tmp_path / "b.npz", **made)
    one, two = (EmbeddingsFile(path=str(tmp_path / name), name="x").bundle() for name in ("a.npz", "b.npz"))
    same(one, two)
    assert one.info.label_sets["class"].classes == ("0", "1", "2")


@pytest.mark.parametrize("in_memory", [regroup_module.IN_MEMORY, 0])
def test_validation_split_is_drawn(write, monkeypatch, in_memory):
    monkeypatch.setattr(regroup_module, "IN_MEMORY", in_memory)
    monkeypatch.setattr(regroup_module, "_BLOCK", 100)
    made = arrays(splits=("train", "test"))
    caption_of = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 2))
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        made[f"{split}/caption_of"] = caption_of
        made[f"{split}/text/clip"] = rng.normal(size=(60, 6)).astype(np.float32)
    # One coordinate of image and text says which image they belong to.
    made["train/image/clip"][:, 0] = np.arange(30)
    made["train/text/clip"][:, 0] = caption_of
    path = write(made, "safetensors")
    bundle = EmbeddingsFile(path=path).bundle()
    image, text = Part("val", "image"), Part("val", "text")
    assert bundle.info.labels("class", image).bincount().tolist() == [1, 1, 1]
    assert bundle.info.labels("class", Part("train", "image")).bincount().tolist() == [9, 9, 9]
    rows = torch.cat([bundle[Part(split, "image")]["cross_modal"][:, 0] for split in ("train", "val")])
    assert sorted(rows.tolist()) == list(range(30))
    for split in ("train", "val"):
        image, text = Part(split, "image"), Part(split, "text")
        of = bundle.info.caption_of[split]
        assert torch.equal(bundle[image]["cross_modal"][of, 0], bundle[text]["cross_modal"][:, 0])
        original = torch.from_numpy(made["train/image/dino"])[bundle[image]["cross_modal"][:, 0].long()]
        assert torch.equal(bundle[image]["dino"], original)
        assert torch.equal(bundle.info.labels("class", text), bundle[text]["cross_modal"][:, 0].long() % 3)
    assert "seed 0" in bundle.info.fingerprint["splits"]["val"]
    same(bundle, EmbeddingsFile(path=path).bundle())
    other = EmbeddingsFile(path=path, split_seed=1).bundle()
    assert not torch.equal(other[image]["cross_modal"], bundle[image]["cross_modal"])


def test_texts_alone(write):
    made = {key.replace("/image/", "/text/"): value for key, value in arrays(splits=("train", "test")).items()}
    del made["prompts/text/clip"]
    bundle = EmbeddingsFile(path=write(made)).bundle()
    assert bundle.dims("text") == {"clip": 6, "dino": 8}
    assert len(bundle[Part("val", "text")]["clip"]) == 3
    assert sorted(bundle.info.labels("class", Part("val", "text")).tolist()) == [0, 1, 2]


def test_owner_and_half_the_splits(write):
    made = arrays()
    made["prompts/text/clip"] = np.ones((5, 6), np.float32)
    made["prompts/owner"] = np.array([2, 0, 1, 0, 2])
    prompts = EmbeddingsFile(path=write(made)).info.label_sets["class"].prompts["default"]
    assert prompts.texts == ("otter", "cat", "dog", "cat", "otter")
    assert prompts.owner.tolist() == [2, 0, 1, 0, 2]


def test_choice_of_encoders(write):
    made = arrays()
    for split in SPLITS:
        made[f"{split}/image/siglip"] = np.ones((30, 5), np.float32)
    made["prompts/text/siglip"] = np.ones((3, 5), np.float32)
    path = write(made)
    with pytest.raises(ConfigError, match=r"\['clip', 'siglip'\] all have images and texts; choose one as"):
        EmbeddingsFile(path=path).bundle()
    bundle = EmbeddingsFile(path=path, cross_modal="siglip").bundle()
    assert bundle.dims("image") == {"cross_modal": 5, "dino": 8}
    assert bundle.pair == "siglip+dino"
    both = EmbeddingsFile(path=path, cross_modal="siglip", image_experts=["clip"]).bundle()
    assert both.dims("image") == {"cross_modal": 5, "clip": 6}
    assert both.dims("text") == {"cross_modal": 5}
    alone = EmbeddingsFile(path=path, cross_modal="siglip", image_experts=[]).bundle()
    assert alone.dims("image") == {"cross_modal": 5}
    with pytest.raises(ConfigError, match=r"cross_modal='clap' is not an encoder .*did you mean 'clip'"):
        EmbeddingsFile(path=path, cross_modal="clap").bundle()
    with pytest.raises(ConfigError, match=r"image_experts: 'dinov' is not an encoder .*did you mean 'dino'"):
        EmbeddingsFile(path=path, cross_modal="clip", image_experts=["dinov"]).bundle()
    with pytest.raises(ConfigError, match=r"text_experts: 'dino' is not an encoder of texts"):
        EmbeddingsFile(path=path, cross_modal="clip", text_experts=["dino"]).bundle()
    with pytest.raises(ConfigError, match=r"both name \['clip'\]"):
        EmbeddingsFile(path=path, cross_modal="siglip", image_experts=["clip"], text_experts=["clip"]).bundle()


def test_experts_of_one_modality(write):
    made = arrays()
    made["prompts/text/e5"] = made.pop("prompts/text/clip")
    with pytest.raises(ConfigError, match="no encoder has images and texts"):
        EmbeddingsFile(path=write(made)).bundle()
    bundle = EmbeddingsFile(path=write(made), text_experts=[]).bundle()
    assert bundle.dims("image") == {"clip": 6, "dino": 8}
    assert PLAIN not in bundle
    assert not bundle.info.label_sets["class"].prompts


def changed(**changes):
    made = {**arrays(), **{key.replace("__", "/"): value for key, value in changes.items()}}
    return {key: value for key, value in made.items() if value is not None}


def with_value(key, row, value, dtype=np.float32):
    made = arrays(dtype=dtype)
    made[key][row, 1] = value
    return made


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (with_value("test/image/dino", 17, np.nan), r"key 'test/image/dino' holds NaN or infinity in row 17$"),
        (with_value("train/image/clip", 29, -np.inf), r"key 'train/image/clip' holds NaN or infinity in row 29$"),
        (with_value("prompts/text/clip", 2, np.nan), r"'prompts/class/default/text/clip' holds NaN .* row 2"),
        (changed(val__image__dino=np.ones((30, 7))), r"mismatch: 'dino' has 8 dimensions in train:image but 7 in"),
        (changed(val__image__dino=np.ones((29, 8))), r"numbers of rows in val:image: \{'clip': 30, 'dino': 29\}"),
        (changed(val__image__dino=None), r"key 'val/image/dino' is missing"),
        (changed(val__labels=np.zeros(31, int)), "val: 31 labels but 30 items"),
        (changed(val__labels=np.full(30, 3)), r"label 3 of row 0 is out of range: there are 3 class names"),
        (changed(val__labels=np.zeros(30)), r"'val/labels' must be a row of integers"),
        (changed(val__labels=np.full((30, 2), 2)), "multilabel and must hold 0 and 1 only"),
        (changed(train__labels=np.zeros(30, int)), r"no training samples: \['dog', 'otter'\]"),
        (changed(tset__labels=np.zeros(30, int)), r"unknown key 'tset/labels' \(did you mean 'test/labels'"),
        (changed(test__imgae__dino=np.ones((30, 8))), r"did you mean 'test/image/dino'"),
        (changed(test__image__facebook__dino=np.ones((30, 8))), r"unknown key .*names hold no '/'"),
        (changed(test__image__dino=np.ones((30, 8), int)), r"'test/image/dino' must be \(rows, dim\) floats"),
        (changed(test__image__dino=np.ones(30)), r"'test/image/dino' must be \(rows, dim\) floats"),
        (changed(test__image__clip=None, test__image__dino=None), r"labels of 'class' for \['test'\], which have no"),
        (
            changed(test__image__clip=None, test__image__dino=None, test__labels=None),
            r"no items in split \['test'\]; it has \['train', 'val'\]",
        ),
        (changed(val__image__clip=np.ones((0, 6)), val__image__dino=np.ones((0, 8)), val__labels=np.zeros(0, int)),
         "val:image is empty"),
        (changed(test__text__clip=np.ones((60, 6))), r"30 images and 60 texts; key 'test/caption_of' must"),
        (changed(test__text__clip=np.ones((2, 6)), test__caption_of=np.array([0, 30])), "caption without an image"),
        (changed(prompts__text__clip=np.ones((4, 6))), r"4 class texts for 3 classes; an owner key"),
        (changed(prompts__owner=np.array([0, 1])), "3 class texts but 2 owners"),
        (changed(prompts__owner=np.array([0, 1, 3])), "owners outside the 3 classes"),
        (changed(prompts__owner=np.array([1, 1, 1])), r"texts for 1 of 3 classes \(\['dog'\]\)"),
        (changed(prompts__kind__default__text__clip=np.ones((3, 6))), "label set 'kind', which has no labels"),
        (changed(note=np.array("hello")), r"unknown array of texts 'note'; the only ones are"),
        (
            changed(train__labels=np.array(["cat", "dog"] * 15)),
            r"'train/labels' holds texts \('cat', 'dog', 'cat', ...\), .* whole numbers; write classes, numbers",
        ),
        (changed(splits=np.array("ood")), r"'splits' in the header is not JSON .*'ood'; write it by json.dumps"),
    ],
)  # fmt: skip
def test_bad_files(write, made, message):
    with pytest.raises(DataError, match=message):
        EmbeddingsFile(path=write(made)).bundle()


def test_large_finite_sums_are_no_error(write):
    made = arrays(dtype=np.float64)
    made["test/image/dino"][:] = 1.7e308
    assert EmbeddingsFile(path=write(made)).bundle().dims("image")["dino"] == 8


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_missing_and_damaged_files(write, tmp_path, suffix):
    with pytest.raises(DataError, match=rf"gone\.{suffix}': there is no such file"):
        EmbeddingsFile(path=str(tmp_path / f"gone.{suffix}")).bundle()
    path = Path(write(arrays(), suffix))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"mine\.{suffix}' cannot be read .*; is it complete"):
        EmbeddingsFile(path=str(path)).bundle()


def test_python_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(), classes=np.array(["a", None, 3], dtype=object))
    with pytest.raises(DataError, match=r"'classes' holds Python objects; save texts as"):
        EmbeddingsFile(path=str(tmp_path / "a.npz")).bundle()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, r"data\.path is not set"),
        ({"path": "features.pt"}, r"must end in one of \['\.safetensors', '\.npz'\]"),
        ({"val_fraction": 1.5}, "val_fraction=1.5"),
        ({"image_experts": "dino"}, "must be a list of different names"),
        ({"text_experts": ["a", "a"]}, "must be a list of different names"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        EmbeddingsFile(**{"path": "a.npz", **options})


def test_save_refuses_other_endings(write, tmp_path):
    with pytest.raises(ConfigError, match="must end in"):
        save_embeddings(tmp_path / "a.pt", EmbeddingsFile(path=write(arrays())).bundle())


def test_the_example_of_the_document(repository, tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", (repository / "docs" / "embeddings.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    sizes = {"train": 60, "test": 30}
    names = {
        "class_texts": rng.normal(size=(3, 512)),
        "clip": {split: rng.normal(size=(n, 512)) for split, n in sizes.items()},
        "dinov2": {split: rng.normal(size=(n, 768)) for split, n in sizes.items()},
        "labels": {split: np.arange(n) % 3 for split, n in sizes.items()},
    }
    for block in code:
        exec(block, names)
    same(names["bundle"], EmbeddingsFile(path="copy.safetensors").bundle())
    assert names["bundle"].info.label_sets["class"].classes == ("cat", "dog", "otter")


@pytest.mark.parametrize("text", ["my set", "123", '"my set"'])
def test_names_in_the_header_are_plain_texts(tmp_path, text):
    save_file(arrays(), tmp_path / "a.safetensors", metadata={"name": text, "pair": text})
    bundle = EmbeddingsFile(path=str(tmp_path / "a.safetensors")).bundle()
    assert bundle.info.name == bundle.pair == text.strip('"')
    np.savez(tmp_path / "a.npz", **arrays(), name=np.array(text))
    assert EmbeddingsFile(path=str(tmp_path / "a.npz")).info.name == text.strip('"')


def test_check_looks_for_the_file_only(tmp_path, write):
    source = EmbeddingsFile(path=write(arrays()))
    source.check()
    assert source.name == "mine"
    assert source._bundle is None
    with pytest.raises(DataError, match=r"data\.path='.*gone\.npz': there is no such file"):
        EmbeddingsFile(path=str(tmp_path / "gone.npz")).check()
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="it is a named pipe, not a file"):
        EmbeddingsFile(path=str(tmp_path / "pipe.npz")).bundle()
