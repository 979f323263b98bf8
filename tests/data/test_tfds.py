"""Folders of ``tensorflow_datasets``: the records against an own writer and Google's protobuf, and what is wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
from published import Files

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import Part
from krossfuse.data.tfds import TFDSCaptions, TFDSImages
from krossfuse.data.tfrecord import crc32c, read_example, records_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    published.tfds(Files(tmp_path))
    return tmp_path


def images(root: Path, **options: Any) -> TFDSImages:
    return TFDSImages(root=str(root), name="made", **options)


def pixels_of(number: int) -> np.ndarray:
    with published.Image.open(published.io.BytesIO(published.image_bytes(number, "png"))) as image:
        return np.asarray(image)


def test_checksums_of_any_length() -> None:
    rng = random.Random(0)
    for n in (0, 1, 63, 64, 2047, 2048, 2049, 4096, 5000):
        data = rng.randbytes(n)
        assert crc32c(data) == published.castagnoli(data), n
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


def test_messages_that_googles_library_writes() -> None:
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str, bool]) -> Any:
        made = file.message_type.add(name=name)
        for field, number, kind, of, repeated in fields:
            made.field.add(name=field, number=number, type=kind, label=3 if repeated else 1, type_name=of or None)  # type: ignore[arg-type]
        return made

    message("BytesList", ("value", 1, 12, "", True))
    message("FloatList", ("value", 1, 2, "", True))
    message("Int64List", ("value", 1, 3, "", True))
    lists = [
        (f"{kind.lower()}_list", i, 11, f".t.{kind}List", False)
        for i, kind in enumerate(("Bytes", "Float", "Int64"), 1)
    ]
    message("Feature", *lists)
    features = message("Features", ("feature", 1, 11, ".t.Features.FeatureEntry", True))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".t.Feature")
    entry.options.map_entry = True
    message("Example", ("features", 1, 11, ".t.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    example = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    example.features.feature["image"].bytes_list.value.extend([b"\x00png", b""])
    example.features.feature["label"].int64_list.value.extend([0, 7, 300, -1, 2**62, -(2**63)])
    example.features.feature["score"].float_list.value.extend([0.5, -2.0])
    example.features.feature["nothing"].int64_list.SetInParent()
    data = example.SerializeToString()
    assert read_example(data, ["image", "label", "score", "nothing", "absent"], "here") == {
        "image": [b"\x00png", b""],
        "label": [0, 7, 300, -1, 2**62, -(2**63)],
        "score": [0.5, -2.0],
        "nothing": [],
    }
    ours: dict[str, Any] = {"image": [b"\x00png", b""], "label": [0, 7, 300, -1, 2**62, -(2**63)]}
    assert read_example(published.example(ours), ours, "here") == ours
    for end in range(1, len(data)):
        try:
            read_example(data[:end], ["label"], "here")
        except DataError as error:
            assert "here is no tf.train.Example" in str(error)  # noqa: PT017


def test_images_are_those_of_the_records_in_order(root: Path) -> None:
    data = images(root, splits={"all": "train"}, test_fraction=0.25, val_fraction=0.25)
    labels = data.info.label_sets["class"].labels
    seen = []
    for split in ("train", "val", "test"):
        for image, label in zip(data.items(Part(split, "image")), labels[split].tolist(), strict=True):
            pixels = np.asarray(image)
            (number,) = [i for i in range(8) if np.array_equal(pixels_of(i), pixels)]
            assert label == number % 2
            seen.append(number)
    assert sorted(seen) == list(range(8))


def test_texts_are_labels_too(root: Path) -> None:
    features = json.loads((root / "features.json").read_text())
    features["featuresDict"]["features"]["breed"] = {"pythonClassName": "a.b.Text", "text": {}}
    (root / "features.json").write_text(json.dumps(features))
    for split, counts in (("train", (5, 3)), ("test", (4,))):
        for shard, count in enumerate(counts):
            path = root / f"made-{split}.tfrecord-{shard:05d}-of-{len(counts):05d}"
            records = [
                published.example(
                    {"image": [published.image_bytes(10 * shard + i, "png")], "breed": [b"pug" if i % 2 else b"beagle"]}
                )
                for i in range(count)
            ]
            path.write_bytes(published.tfrecord(records))
    data = images(root, label="breed", duplicates="ignore")
    assert data.info.label_sets["class"].classes == ("beagle", "pug")
    assert data.info.label_sets["class"].labels["test"].tolist() == [0, 1, 0, 1]


def test_damaged_files_are_named(root: Path) -> None:
    path = root / "made-test.tfrecord-00000-of-00001"
    good = path.read_bytes()

    def error(content: bytes) -> str:
        path.write_bytes(content)
        data = images(root, duplicates="ignore")
        with pytest.raises(DataError) as caught:
            list(data.items(Part("test", "image")))
        return str(caught.value)

    assert "ends within record 3; it is truncated" in error(good[:-1])
    assert "ends within record 0; it is truncated" in error(good[:7])
    assert "the length of record 0 does not fit its checksum" in error(bytes([good[0] ^ 1]) + good[1:])
    assert "record 0 does not fit its checksum; fetch the file again" in error(
        good[:60] + bytes([good[60] ^ 1]) + good[61:]
    )
    assert "has 0 records, and dataset_info.json says 4" in error(b"")
    assert "is no tf.train.Example" in error(published.tfrecord([b"\x0f\x01"] * 4))
    assert "has no 'label'" in error(published.tfrecord([published.example({"image": [b"x"]})] * 4))
    path.unlink()
    with pytest.raises(DataError, match="made-test"):
        images(root).setup()


def test_other_bytes_are_another_data_set(root: Path) -> None:
    before = images(root, digest="content").info.fingerprint
    assert images(root, digest="content").info.fingerprint == before
    path = root / "made-train.tfrecord-00001-of-00002"
    records = [published.example({"image": [published.image_bytes(50 + i, "png")], "label": [i % 2]}) for i in range(3)]
    path.write_bytes(published.tfrecord(records))
    assert images(root, digest="content").info.fingerprint != before


def test_what_a_folder_does_not_have(root: Path) -> None:
    with pytest.raises(DataError, match=r"label 'id' is no ClassLabel or Text; the features are .*'image': 'Image'"):
        images(root, label="id").setup()
    with pytest.raises(DataError, match=r"data\.image='imge' is not one of .*did you mean 'image'"):
        images(root, image="imge").setup()
    with pytest.raises(DataError, match=r"has no split 'validation'; it has \['train', 'test'\]"):
        images(root, splits={"train": "train", "test": "validation"}).setup()
    with pytest.raises(ConfigError, match=r"data\.splits='trian' is not one of .*did you mean 'train'"):
        images(root, splits={"trian": "train"})
    with pytest.raises(DataError, match="no dataset_info.json that can be read .*give the folder of one version"):
        images(root.parent).setup()
    with pytest.raises(DataError, match=r"data\.caption='captions/text' is not one of"):
        TFDSCaptions(root=str(root), name="made").setup()
    info = json.loads((root / "dataset_info.json").read_text())
    (root / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "array_record"}))
    with pytest.raises(DataError, match="is in the format 'array_record'.*--file_format=tfrecord"):
        images(root).setup()
    (root / "dataset_info.json").write_text(json.dumps({**info, "splits": [{"name": "train"}, {"name": "test"}]}))
    with pytest.raises(DataError, match="says no shardLengths of split 'train'"):
        images(root).setup()
    (root / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="is not as tensorflow_datasets 4 writes it: KeyError"):
        images(root).setup()
    (root / "label.labels.txt").write_text("cat\n")
    (root / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"has 1 names, and features.json says 2 classes"):
        images(root).setup()


def test_records_that_are_listed_read_nothing_but_what_is_asked_for(root: Path) -> None:
    path = root / "made-test.tfrecord-00000-of-00001"
    records, features = records_of(path, ["label", "id"])
    assert [of["label"] for of in features] == [[0], [1], [0], [1]]
    assert [of["id"] for of in features] == [[-8], [-9], [-10], [-11]]
    assert [read_example(record.read(), ["label"], "x")["label"] for record in records] == [[0], [1], [0], [1]]
