"""A data set in shards: tar files in the format of webdataset, listed by a manifest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from krossfuse.core.errors import DataError, check_choice
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.data.common import digest as digest_of
from krossfuse.data.common import make_prompt_sets, prompt_templates, required_path
from krossfuse.data.module import BaseDataModule, Item, ShardOfPart
from krossfuse.data.shards.manifest import Manifest, Shard, read_labels, read_manifest, sha256_of
from krossfuse.data.shards.places import Places
from krossfuse.data.shards.tar import CAPTION, Sample, read_file, read_image, read_index


class TarShards(BaseDataModule):
    """Images (``.jpg``, ``.png``, ...), class numbers (``.cls``) and captions (``.txt``) of tar files.

    The manifest is made by ``krossfuse shards``. Labels are memory-mapped, captions and images read from the tars when
    they are asked for. Every shard is encoded into an entry of its own, known by the bytes of the tar and nothing else.

    Args:
        manifest: path or URL (any that fsspec knows) of ``manifest.json``.
        name: of the dataset, in results.
        class_names: in the order of the labels; None = those of the manifest.
        prompts: by prompt set, templates with ``{}``.
        digest: how a changed shard is seen: ``stat`` (size and time; bytes where the time is another) or ``content``
            (all bytes are read before it is encoded).
        cache: folder for copies of remote shards, each of which is removed when it is encoded.
        options: of the file system, as fsspec's ``storage_options``.
        **loader: ``batch_size`` and ``num_workers``, see the base.

    Raises:
        ConfigError: a bad value, or no manifest.
    """

    def __init__(
        self,
        *,
        manifest: str | None,
        name: str = "shards",
        class_names: Sequence[str] | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
        digest: str = "stat",
        cache: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        given = required_path("manifest", manifest, "the manifest of the shards (krossfuse shards makes one)")
        self.manifest = str(manifest) if "://" in str(manifest) else str(given)
        self.dataset_name = str(name)
        self.class_names = None if class_names is None else [str(of) for of in class_names]
        self.prompts = prompt_templates(prompts)
        self.digest = check_choice("data.digest", digest, ("stat", "content"))
        self.places = Places(self.manifest, cache=cache, options=dict(options or {}))
        self._read: Manifest | None = None

    def check(self) -> None:
        """Check that the manifest and every local shard are there, as large as they were when it was made.

        Raises:
            DataError: one is not; the message names it.
        """
        manifest = self._manifest()
        if self.places.remote:
            return
        for shard in manifest.shards:
            check_size(self.places.local(shard.path), shard)

    def _manifest(self) -> Manifest:
        if self._read is None:
            self._read = read_manifest(self.manifest, self.places)
        return self._read

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """Read the manifest and map the labels; no shard is opened.

        Raises:
            DataError: the manifest or the labels cannot be read, or class names that do not match the labels.
        """
        self.check()
        manifest = self._manifest()
        items: dict[Part, Sequence[Item]] = {}
        caption_of, labels = {}, {}
        for split in manifest.splits:
            tars = [Tar(self.places, shard, self.digest) for shard in manifest.of(split)]
            items[Part(split, "image")] = TarItems(tars, "image")
            if tars[0].shard.captions:
                items[Part(split, "text")] = TarItems(tars, "text")
                caption_of[split] = torch.arange(len(items[Part(split, "text")]))
            if manifest.classes is not None:
                labels[split] = read_labels(manifest, self.places, split)
        label_sets = {}
        if manifest.classes is not None:
            names = self.class_names or list(manifest.classes)
            if len(names) != len(manifest.classes):
                raise DataError(
                    f"data.class_names has {len(names)} names, and the labels of {self.manifest!r} are of "
                    f"{len(manifest.classes)} classes"
                )
            label_sets = {"class": LabelSet(tuple(names), labels, make_prompt_sets(self.prompts, names))}
        fingerprint = {"source": "tar shards", "sha256": digest_of(shard.sha256 for shard in manifest.shards)}
        return DatasetInfo(self.dataset_name, fingerprint, label_sets, caption_of), items

    def shards(self, part: Part) -> list[ShardOfPart]:
        """Return the tars of a part; class texts are not in shards."""
        items = self.items(part)
        if not isinstance(items, TarItems):
            return []
        bounds = zip(items.starts, items.starts[1:], strict=False)
        return [
            ShardOfPart(
                tar.shard.path,
                rows=(start, stop),
                fingerprint={"source": "tar shard", "sha256": tar.shard.sha256, "modality": part.modality},
            )
            for tar, (start, stop) in zip(items.tars, bounds, strict=True)
        ]

    def finished(self, part: Part, shard: ShardOfPart) -> None:
        """Remove the copy of a remote shard."""
        self.places.release(shard.name)


def check_size(path: Path, shard: Shard) -> None:
    """Check that a shard's file is there and has the manifest's size.

    Raises:
        DataError: it is not; the message names it.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(f"shard {shard.path!r} is missing: there is no file {str(path)!r}") from None
    if size != shard.bytes:
        raise DataError(
            f"shard {shard.path!r} has {size:,} bytes, and had {shard.bytes:,} when the manifest was made: it is "
            "truncated or was changed; put it back, or make the manifest anew (krossfuse shards)"
        )


class Tar:
    """One shard, opened and compared with the manifest when its first sample is asked for."""

    def __init__(self, places: Places, shard: Shard, digest: str) -> None:
        self.places, self.shard, self.digest = places, shard, digest
        self._opened: tuple[Path, list[Sample]] | None = None

    def opened(self) -> tuple[Path, list[Sample]]:
        """Return the file and its samples.

        Raises:
            DataError: it is missing, truncated, or not what the manifest says.
        """
        if self._opened is None or not self._opened[0].exists():
            path, shard = self.places.local(self.shard.path), self.shard
            check_size(path, shard)
            same_time = not self.places.remote and path.stat().st_mtime_ns == shard.modified
            if (self.digest == "content" or not same_time) and (found := sha256_of(path)) != shard.sha256:
                self.places.release(shard.path)
                raise DataError(
                    f"shard {shard.path!r} changed since the manifest was made: its SHA-256 is {found[:12]}..., not "
                    f"{shard.sha256[:12]}...; put it back, or make the manifest anew (krossfuse shards)"
                )
            samples = read_index(path, shard.path)
            if len(samples) != shard.items:
                raise DataError(
                    f"shard {shard.path!r} has {len(samples)} samples, and the manifest counts {shard.items}; make the "
                    "manifest anew (krossfuse shards)"
                )
            self._opened = path, samples
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class TarItems(Sequence[Item]):
    """The images, or the captions, of the samples of several tars, one after the other."""

    def __init__(self, tars: Sequence[Tar], modality: str) -> None:
        self.tars, self.modality = list(tars), modality
        self.starts = [0]
        for tar in tars:
            self.starts.append(self.starts[-1] + tar.shard.items)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = bisect_right(self.starts, index) - 1
        path, samples = self.tars[at].opened()
        sample, name = samples[index - self.starts[at]], self.tars[at].shard.path
        if self.modality == "text":
            return read_file(path, sample.files[CAPTION], name).decode("utf-8", "replace").strip()
        ending = sample.image
        if ending is None:
            raise DataError(f"shard {name!r}: sample {sample.key!r} has no image")
        return read_image(read_file(path, sample.files[ending], name), f"{sample.key}.{ending} of shard {name!r}")
