"""The manifest of a data set in shards: their order, counts and checksums; labels lie beside it, by split.

``manifest.json`` is written once, by a pass over all shards (``krossfuse shards``). Whoever encodes compares a shard
with it, so that one that is lost, altered or swapped since is named; jobs in any number read it and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.files import replacing, write_whole
from krossfuse.data.shards.places import Places
from krossfuse.data.shards.tar import CAPTION, LABEL, read_file, read_index, read_label

FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One shard.

    Attributes:
        split: that it belongs to.
        path: from the manifest's folder (or URL).
        items: samples in it.
        bytes: size of the file.
        sha256: of the file.
        modified: its time of change in nanoseconds, where the file system has one (0: none).
        captions: whether every sample has a caption.
    """

    split: str
    path: str
    items: int
    bytes: int
    sha256: str
    modified: int = 0
    captions: bool = False


@dataclass(frozen=True)
class Manifest:
    """All shards of a data set, in their order.

    Attributes:
        where: the manifest's file or URL.
        shards: those of one split after those of another.
        classes: class names, or None where samples have no labels.
    """

    where: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] | None

    def of(self, split: str) -> list[Shard]:
        """Return the shards of a split."""
        return [shard for shard in self.shards if shard.split == split]

    @property
    def splits(self) -> list[str]:
        """The splits, in the manifest's order."""
        return list(dict.fromkeys(shard.split for shard in self.shards))


def labels_name(manifest: str, split: str) -> str:
    """Return the name of the file of labels of a split, beside the manifest."""
    return f"{manifest.rpartition('/')[2].removesuffix('.json')}.{split}.labels.npy"


def make_manifest(path: Path, shards: Mapping[str, Sequence[str]], *, classes: Sequence[str] | None = None) -> Manifest:
    """Read every shard once and write the manifest, and the labels of each split, beside them.

    Args:
        path: of the manifest.
        shards: by split, the tar files, relative to the manifest's folder.
        classes: class names in the order of the labels; None = their numbers.

    Raises:
        DataError: what is wrong with a shard: see :func:`krossfuse.data.shards.tar.read_index`; it is empty, a sample
            has no image, some samples have labels or captions and others have none.
    """
    made, labels = [], {}
    places = Places(str(path), cache=None)
    for split, names in shards.items():
        of_split: list[int] = []
        for name in names:
            shard, of_shard = _look(places.local(name), split, name)
            made.append(shard)
            of_split += of_shard
        if of_split:
            labels[split] = np.array(of_split, dtype=np.int64)
    counts = {split: sum(shard.items for shard in made if shard.split == split) for split in shards}
    if labels and {split: len(of) for split, of in labels.items()} != counts:
        raise DataError(f"some samples have no label (.{LABEL}): there are {counts} samples and labels of "
                        f"{ {split: len(of) for split, of in labels.items()} }")  # fmt: skip
    if labels and classes is None:
        classes = [str(k) for k in range(1 + max(int(of.max()) for of in labels.values()))]
    top = 1 + max((int(of.max()) for of in labels.values()), default=-1)
    if classes is not None and len(classes) < top:
        raise DataError(f"there are {len(classes)} class names, and labels up to {top - 1}")
    manifest = Manifest(str(path), tuple(made), None if not labels else tuple(classes or ()))
    _check(manifest)
    for split, of in labels.items():
        with replacing(path.with_name(labels_name(str(path), split))) as partial, partial.open("wb") as file:
            np.save(file, of)
    text = {"format": FORMAT, "classes": manifest.classes, "shards": [asdict(shard) for shard in made]}
    write_whole(path, (json.dumps(text, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def _look(file: Path, split: str, name: str) -> tuple[Shard, list[int]]:
    samples = read_index(file, name)
    if not samples:
        raise DataError(f"shard {name!r} has no samples")
    if without := [sample.key for sample in samples if sample.image is None]:
        raise DataError(f"shard {name!r}: sample {without[0]!r} has no image ({len(without)} such samples)")
    labels = [
        read_label(read_file(file, sample.files[LABEL], name), f"shard {name!r}: {sample.key}.{LABEL}")
        for sample in samples
        if LABEL in sample.files
    ]
    captioned = sum(CAPTION in sample.files for sample in samples)
    if captioned not in (0, len(samples)):
        raise DataError(f"shard {name!r}: {captioned} of {len(samples)} samples have a caption (.{CAPTION})")
    stat = file.stat()
    return Shard(split, name, len(samples), stat.st_size, sha256_of(file), stat.st_mtime_ns, captioned > 0), labels


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(where: str, places: Places) -> Manifest:
    """Read a manifest.

    Raises:
        DataError: it is not there or none, or lists a shard twice.
    """
    try:
        read = json.loads(places.read(where.rpartition("/")[2]))
        if read["format"] != FORMAT:
            raise DataError(
                f"manifest {where!r} is of format {read['format']!r}, and this reads {FORMAT}; make it anew"
            )
        shards = tuple(Shard(**of) for of in read["shards"])
        manifest = Manifest(where, shards, None if read["classes"] is None else tuple(map(str, read["classes"])))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where!r} is no manifest of shards ({type(error).__name__}: {error})") from None
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    if not manifest.shards:
        raise DataError(f"manifest {manifest.where!r} lists no shard")
    for what in ("path", "sha256"):
        if twice := _first_twice(getattr(shard, what) for shard in manifest.shards):
            names = [shard.path for shard in manifest.shards if getattr(shard, what) == twice]
            how = "is listed twice" if what == "path" else f"is listed twice, by the names {names}: the bytes are equal"
            raise DataError(f"manifest {manifest.where!r}: shard {names[0]!r} {how}")
    if len({shard.captions for shard in manifest.shards}) > 1:
        without = next(shard.path for shard in manifest.shards if not shard.captions)
        raise DataError(f"manifest {manifest.where!r}: shard {without!r} has no captions, and others have")


def _first_twice(values: Iterable[Any]) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def read_labels(manifest: Manifest, places: Places, split: str) -> Tensor:
    """Return the labels of a split, (n,) int64 over a memory map.

    Raises:
        DataError: they are not there, or their number is not the manifest's.
    """
    name, rows = labels_name(manifest.where, split), sum(shard.items for shard in manifest.of(split))
    try:
        # Mode "c": torch wants writable memory; a private mapping never reaches the file.
        labels = np.load(places.local(name), mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"labels {name!r} of manifest {manifest.where!r} cannot be read: {error}") from None
    if labels.shape != (rows,) or labels.dtype != np.int64:
        raise DataError(f"labels {name!r}: {labels.shape} {labels.dtype}, and the manifest counts {rows} samples")
    return torch.from_numpy(labels)
