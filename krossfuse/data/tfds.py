"""Any data set that ``tensorflow_datasets`` has prepared, read from its folder; TensorFlow is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from krossfuse.core.errors import DataError, check_choice
from krossfuse.core.parts import TEST, TRAIN, VAL
from krossfuse.data.captions import Captioned, CaptionedImages
from krossfuse.data.common import digest
from krossfuse.data.files import check_split_names
from krossfuse.data.labelled_images import LabelledImages, Source, file_line
from krossfuse.data.tars import decoded
from krossfuse.data.tfrecord import Record, Value, read_example, records_of

DESCRIPTION, FEATURES = "dataset_info.json", "features.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_NAMES = {"train": TRAIN, "validation": VAL, "val": VAL, "valid": VAL, "test": TEST}
"""Names of splits that need no word in the configuration."""


class _Folder:
    """A folder ``NAME/VERSION`` or ``NAME/CONFIG/VERSION``: its description, and the files of its splits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.about = self._json(DESCRIPTION)
        try:
            self.name, form = str(self.about["name"]), str(self.about.get("fileFormat", "tfrecord"))
            self.splits = {str(of["name"]): of for of in self.about["splits"]}
            self.features = _flat(self._json(FEATURES))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{str(root)!r}: {DESCRIPTION} or {FEATURES} is not as tensorflow_datasets 4 writes it: "
                f"{type(error).__name__}: {error}"
            ) from None
        if form != "tfrecord":
            raise DataError(
                f"{str(root)!r} is in the format {form!r}, and this reads tfrecord; prepare it so: "
                "tfds build --file_format=tfrecord"
            )

    def _json(self, name: str) -> dict[str, Any]:
        try:
            read = json.loads((self.root / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"data.root: {str(self.root)!r} has no {name} that can be read ({error}); give the folder of one "
                "version, as in data.root=~/tensorflow_datasets/mnist/3.0.1"
            ) from None
        if not isinstance(read, dict):
            raise DataError(f"{str(self.root / name)!r} is no JSON object")
        return read

    def feature(self, option: str, name: str, kinds: Sequence[str]) -> dict[str, Any]:
        """Return the description of a feature.

        Raises:
            DataError: there is none of this name, or it is of another kind.
        """
        try:
            check_choice(f"data.{option}", name, self.features)
        except Exception as error:
            raise DataError(f"{str(self.root)!r}: {error}") from None
        kind = str(self.features[name].get("pythonClassName", "")).rpartition(".")[2]
        if kind not in kinds:
            have = {key: str(of.get("pythonClassName", "")).rpartition(".")[2] for key, of in self.features.items()}
            raise DataError(
                f"{str(self.root)!r}: {option} {name!r} is no {' or '.join(kinds)}; the features are {have}"
            )
        return self.features[name]

    def files(self, split: str) -> list[tuple[Path, int]]:
        """Return the files of a split in their order, and how many records each is said to have."""
        of = self.splits[split]
        lengths = [int(length) for length in of.get("shardLengths", [])]
        if not lengths:
            raise DataError(f"{str(self.root / DESCRIPTION)!r} says no shardLengths of split {split!r}")
        template = str(of.get("filepathTemplate") or _TEMPLATE).rpartition("/")[2]
        paths = []
        for number in range(len(lengths)):
            words = {
                "DATASET": self.name,
                "SPLIT": split,
                "FILEFORMAT": "tfrecord",
                "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
                "SHARD_INDEX": f"{number:05d}",
                "NUM_SHARDS": f"{len(lengths):05d}",
            }
            name = template
            for word, value in words.items():
                name = name.replace(f"{{{word}}}", value)
            paths.append(self.root / name)
        return list(zip(paths, lengths, strict=True))

    def chosen(self, splits: Mapping[str, str]) -> dict[str, str]:
        """Return by split the data set's name of it.

        Raises:
            DataError: it has no such split.
        """
        chosen = dict(splits) or {_NAMES[name]: name for name in self.splits if name in _NAMES}
        missing = [of for of in chosen.values() if of not in self.splits]
        if missing or not chosen:
            raise DataError(
                f"{str(self.root)!r} has no split {missing[0] if missing else 'train'!r}; it has {list(self.splits)}: "
                "say data.splits={train: ...}"
            )
        return chosen

    def read(self, splits: Mapping[str, str], image: str, other: str, how: str) -> tuple[dict[str, _Rows], str]:
        """Return by split its images, lazily, and another feature of each; and a digest that stands for the files.

        Raises:
            DataError: a file is missing, damaged, or has another number of records than the description says.
        """
        self.feature("image", image, ["Image"])
        rows, lines = {}, []
        for split, of in self.chosen(splits).items():
            records: list[Record] = []
            values: list[list[Value]] = []
            for path, length in self.files(of):
                lines.append(f"{split} {file_line(self.root, path, how)}")
                found, features = records_of(path, [other])
                if len(found) != length:
                    raise DataError(
                        f"{str(path)!r} has {len(found)} records, and {DESCRIPTION} says {length}; fetch it again"
                    )
                records += found
                for record, read in zip(found, features, strict=True):
                    if not read.get(other):
                        raise DataError(f"{str(path)!r}: record {record.number} has no {other!r}")
                    values.append(read[other])
            rows[split] = _Rows(_Images(records, image), values)
        return rows, digest(lines)


class _Rows:
    def __init__(self, images: _Images, values: list[list[Value]]) -> None:
        self.images, self.values = images, values


class _Images(Sequence[Image.Image]):
    """Images in records as a lazy sequence of RGB images; each record is held against its checksum."""

    def __init__(self, records: Sequence[Record], feature: str) -> None:
        self.records, self.feature = list(records), feature

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        record = self.records[index]
        return decoded(self.content(index), f"record {record.number} of {record.file!r}")

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file."""
        record = self.records[index]
        where = f"{record.file!r}, record {record.number}"
        value = read_example(record.read(), [self.feature], where).get(self.feature)
        if not value or not isinstance(value[0], bytes):
            raise DataError(f"{where} has no image {self.feature!r}")
        return value[0]


class TFDSImages(LabelledImages):
    """Images with labels in a folder of ``tensorflow_datasets``.

    Args:
        root: the folder of one version: ``dataset_info.json``, ``features.json``, ``NAME-SPLIT.tfrecord-00000-of-...``.
        splits: by split (train, val, test; or all), the data set's name of it; None = those that are so called.
        image: name of the feature that is the image; ``/`` between the names of nested ones.
        label: name of the feature that is the label: a ClassLabel, or a Text.
        **options: of :class:`~krossfuse.data.labelled_images.LabelledImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = "the folder of one version of a data set of tensorflow_datasets"

    def __init__(
        self,
        *,
        splits: Mapping[str, str] | None = None,
        image: str = "image",
        label: str = "label",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.splits = check_split_names(splits)
        self.image, self.label = image, label

    def read(self) -> Source:
        """Read labels; images stay where they are.

        Raises:
            DataError: the folder is not as it should be, or a file is damaged.
        """
        self.check()
        folder = _Folder(self.root)
        told = folder.feature("label", self.label, ["ClassLabel", "Text"])
        read, files = folder.read(self.splits, self.image, self.label, self.digest)
        values = {split: [value[0] for value in rows.values] for split, rows in read.items()}
        if "classLabel" in told:
            classes = self._class_names(folder, int(told["classLabel"].get("numClasses", 0)))
            numbers = {split: [int(value) for value in of] for split, of in values.items()}
        else:
            texts = {split: [_text(value) for value in of] for split, of in values.items()}
            classes = sorted({text for of in texts.values() for text in of})
            number = {text: i for i, text in enumerate(classes)}
            numbers = {split: [number[text] for text in of] for split, of in texts.items()}
        labels = {split: torch.tensor(of, dtype=torch.int64) for split, of in numbers.items()}
        fingerprint = {
            "source": "tfds",
            "digest": self.digest,
            "image": self.image,
            "files": files,
            "labels": digest(f"{split} {of.tolist()}" for split, of in labels.items()),
        }
        return Source(classes, {split: (rows.images, labels[split]) for split, rows in read.items()}, fingerprint)

    def _class_names(self, folder: _Folder, count: int) -> list[str]:
        file = self.root / f"{self.label.replace('/', '-')}.labels.txt"
        if not file.is_file():
            return [str(i) for i in range(count)]
        names = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
        if len(names) != count:
            raise DataError(f"{str(file)!r} has {len(names)} names, and {FEATURES} says {count} classes")
        return names


class TFDSCaptions(CaptionedImages):
    """Images with captions in a folder of ``tensorflow_datasets``.

    Args:
        root, splits, image: see :class:`TFDSImages`.
        caption: name of the feature that is the caption, or the captions: ``captions/text`` of ``coco_captions``.
        **options: of :class:`~krossfuse.data.captions.CaptionedImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = TFDSImages.what

    def __init__(
        self,
        *,
        splits: Mapping[str, str] | None = None,
        image: str = "image",
        caption: str = "captions/text",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.splits = check_split_names(splits)
        self.image, self.caption = image, caption

    def read(self) -> tuple[Captioned, Mapping[str, Any]]:
        """Read captions; images stay where they are.

        Raises:
            DataError: the folder is not as it should be, or a file is damaged.
        """
        folder = _Folder(self.root)
        folder.feature("caption", self.caption, ["Text"])
        read, files = folder.read(self.splits, self.image, self.caption, self.digest)
        found = {
            split: (rows.images, [[_text(one) for one in of] for of in rows.values]) for split, rows in read.items()
        }
        about = {"source": "tfds", "digest": self.digest, "image": self.image, "caption": self.caption, "files": files}
        return found, about


def _flat(features: Mapping[str, Any], above: str = "") -> dict[str, dict[str, Any]]:
    """Return the features by name, ``/`` between the names of nested ones, as the records have them."""
    inner = features.get("sequence", {}).get("feature")
    if inner is not None:
        return _flat(inner, above)
    if "featuresDict" not in features:
        return {above: dict(features)}
    flat: dict[str, dict[str, Any]] = {}
    for name, of in features["featuresDict"]["features"].items():
        flat |= _flat(of, f"{above}/{name}" if above else name)
    return flat


def _text(value: Value) -> str:
    if not isinstance(value, bytes):
        raise DataError(f"a text is expected, got {value!r}")
    return " ".join(value.decode("utf-8", "replace").split())
