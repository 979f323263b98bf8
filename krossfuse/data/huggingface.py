"""Any data set that the library ``datasets`` reads: by name from the hub, or a folder of parquet files or images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from krossfuse.core.errors import ConfigError, DataError, did_you_mean, require
from krossfuse.core.parts import SPLITS
from krossfuse.data.captions import Captioned, CaptionedImages
from krossfuse.data.common import digest
from krossfuse.data.files import ImagesInFiles, check_split_names
from krossfuse.data.labelled_images import LabelledImages, Source
from krossfuse.data.tars import decoded

EXTRA = "datasets"


class _Hub:
    """Where the rows come from: shared by images with labels and images with captions.

    Args:
        path: name on the hub, or a folder that the library reads (parquet files, class folders, ...).
        config: of the data set, where it has several.
        revision: branch, tag or commit on the hub.
        splits: by split (train, val, test; or all), the data set's name of it; None = those that are so called.
        streaming: read row by row over the network and keep the images' bytes in a temporary file, instead of
            downloading the data set first.

    Raises:
        ConfigError: a bad value, or the package is not installed.
    """

    def __init__(
        self,
        path: str | None,
        *,
        config: str | None,
        revision: str | None,
        splits: Mapping[str, str] | None,
        streaming: bool,
    ) -> None:
        require("datasets", "data=huggingface", extra=EXTRA)
        if not path:
            raise ConfigError("data.path is not set: give a name on the hub, or a folder, as data.path=OWNER/NAME")
        if not isinstance(streaming, bool):
            raise ConfigError(f"data.streaming={streaming!r} must be true or false")
        self.path, self.config, self.revision, self.streaming = path, config, revision, streaming
        self.splits = check_split_names(splits)

    def read(self, image: str, others: Sequence[str]) -> dict[str, _Rows]:
        """Return by split its rows: images as bytes, other columns as they are.

        Raises:
            DataError: the library cannot read the data set, or it has no such column.
        """
        import datasets

        try:
            given = datasets.load_dataset(self.path, self.config, revision=self.revision, streaming=self.streaming)
        except Exception as error:  # of the library, of the hub, no network, ...
            raise DataError(
                f"datasets cannot read {self.path!r}: {type(error).__name__}: {error}. Without a network, put its "
                "parquet files into a folder and give that as data.path, or set HF_HOME to a cache that has it"
            ) from error
        splits = self.splits or {split: split for split in given if split in SPLITS}
        if not splits or (missing := [of for of in splits.values() if of not in given]):
            which = missing[0] if splits else "train"
            raise DataError(
                f"{self.path!r} has no split {which!r}; it has {list(given)}: say data.splits={{train: ...}}"
            )
        return {split: _Rows(given[of], self.path, image, others) for split, of in splits.items()}

    def about(self) -> dict[str, Any]:
        """Return what of the configuration decides the rows."""
        path = "local" if Path(self.path).expanduser().exists() else self.path
        return {"source": "datasets", "path": path, "config": self.config, "revision": self.revision}


class _Rows:
    """The rows of one split: images lazily, other columns in memory."""

    def __init__(self, of: Any, path: str, image: str, others: Sequence[str]) -> None:
        import datasets

        columns = list(of.features or {})
        for column in (image, *others):
            if columns and column not in columns:
                raise DataError(f"{path!r} has no column {column!r}{did_you_mean(column, columns)}; it has {columns}")
        self.features = of.features or {}
        of = of.cast_column(image, datasets.Image(decode=False))
        if isinstance(of, datasets.IterableDataset):
            spool = _Spool()
            kept: dict[str, list[Any]] = {column: [] for column in others}
            for row in of:
                spool.add(_bytes(row[image], path))
                for column in others:
                    kept[column].append(row[column])
            spool.close()
            self.images: Sequence[Any] = spool
            self.columns, self.fingerprint = kept, spool.digest.hexdigest()
        else:
            self.images = _Arrow(of, image, path)
            self.columns, self.fingerprint = {column: list(of[column]) for column in others}, str(of._fingerprint)


class _FromHub(ImagesInFiles):
    """What both kinds take: where the images come from.

    Args:
        path, config, revision, splits, streaming: see :class:`_Hub`.
        image: column of the images.
        **options: of the kind.
    """

    def __init__(
        self,
        *,
        path: str | None,
        config: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str] | None = None,
        image: str = "image",
        streaming: bool = False,
        **options: Any,
    ) -> None:
        self.hub = _Hub(path, config=config, revision=revision, splits=splits, streaming=streaming)
        super().__init__(root=path, **options)
        self.image = image

    def check(self) -> None:
        """Check nothing: what the hub has is known when it is asked."""


class HuggingFaceImages(_FromHub, LabelledImages):
    """Images with labels, by the library ``datasets``.

    Args:
        label: column of the labels: whole numbers, or texts.
        **options: ``path``, ``config``, ``revision``, ``splits``, ``image``, ``streaming``, and those of
            :class:`~krossfuse.data.labelled_images.LabelledImages`.

    Raises:
        ConfigError: a bad value, or the package is not installed.
    """

    def __init__(self, *, label: str = "label", **options: Any) -> None:
        super().__init__(**options)
        self.label = label

    def read(self) -> Source:
        """Read labels; images stay where they are.

        Raises:
            DataError: the data set cannot be read, or its labels are none.
        """
        read = self.hub.read(self.image, [self.label])
        named = next(iter(read.values())).features.get(self.label)
        classes = list(getattr(named, "names", None) or [])
        values = {split: rows.columns[self.label] for split, rows in read.items()}
        if not classes:
            seen = {value for of in values.values() for value in of}
            if all(isinstance(value, int) for value in seen):
                classes = [str(i) for i in range(1 + max(seen))]
            elif all(isinstance(value, str) for value in seen):
                classes = sorted(seen)
            else:
                raise DataError(f"{self.hub.path!r}: column {self.label!r} has labels that are no numbers and no texts")
        number = {name: i for i, name in enumerate(classes)}
        splits = {}
        for split, rows in read.items():
            numbers = [value if isinstance(value, int) else number[value] for value in values[split]]
            splits[split] = rows.images, torch.tensor(numbers, dtype=torch.int64)
        labels = digest(f"{split} {of.tolist()}" for split, (_, of) in splits.items())
        content = {split: of.fingerprint for split, of in read.items()}
        return Source(classes, splits, {**self.hub.about(), "rows": content, "labels": labels})


class HuggingFaceCaptions(_FromHub, CaptionedImages):
    """Images with captions, by the library ``datasets``.

    Args:
        caption: column of the captions: a text, or a list of texts.
        **options: ``path``, ``config``, ``revision``, ``splits``, ``image``, ``streaming``, and those of
            :class:`~krossfuse.data.captions.CaptionedImages`.

    Raises:
        ConfigError: a bad value, or the package is not installed.
    """

    def __init__(self, *, caption: str = "caption", **options: Any) -> None:
        super().__init__(**options)
        self.caption = caption

    def read(self) -> tuple[Captioned, Mapping[str, Any]]:
        """Read captions; images stay where they are.

        Raises:
            DataError: the data set cannot be read.
        """
        read = self.hub.read(self.image, [self.caption])
        found = {
            split: (rows.images, [[of] if isinstance(of, str) else list(of) for of in rows.columns[self.caption]])
            for split, rows in read.items()
        }
        return found, {**self.hub.about(), "rows": {split: rows.fingerprint for split, rows in read.items()}}


class _Arrow(Sequence[Image.Image]):
    """Images of a table on disk."""

    def __init__(self, table: Any, column: str, path: str) -> None:
        self.table, self.column, self.path = table, column, path

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        return decoded(self.content(index), f"{index} of {self.path!r}")

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file."""
        return _bytes(self.table[index][self.column], self.path)


class _Spool(Sequence[Image.Image]):
    """Images that came one after the other, in a temporary file that goes with this object."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="krossfuse-")
        self.file = Path(self._folder.name) / "images"
        self._stream = self.file.open("wb")
        self.digest = hashlib.sha256()
        self.ends = [0]

    def add(self, data: bytes) -> None:
        """Append an image's bytes."""
        self._stream.write(data)
        self.digest.update(f"{len(data)}:".encode() + data)
        self.ends.append(self.ends[-1] + len(data))

    def close(self) -> None:
        """Finish writing."""
        self._stream.close()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        return decoded(self.content(index), f"{index} of a stream")

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file."""
        with self.file.open("rb") as stream:
            stream.seek(self.ends[index])
            return stream.read(self.ends[index + 1] - self.ends[index])


def _bytes(value: Any, path: str) -> bytes:
    """Return the bytes of an image as the library gives it undecoded."""
    if value and value.get("bytes") is not None:
        data: bytes = value["bytes"]
        return data
    if value and value.get("path"):
        return Path(value["path"]).read_bytes()
    raise DataError(f"{path!r} has a row without an image; leave it out of the data set")
