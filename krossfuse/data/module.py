"""The base of every DataModule whose items are images and texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset

from krossfuse.core.errors import ConfigError, check_choice, did_you_mean
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.lightning import pl
from krossfuse.core.parts import Part
from krossfuse.core.processes import cores, end_with_parent
from krossfuse.data.common import check_expected, check_info, digest
from krossfuse.data.duplicates import CHOICES, check_duplicates

Item = Image | str
Transform = Callable[[Any], Any]
Collate = Callable[[list[Any]], Any]
Rows = Sequence[int]

ABOUT = ("licence", "source", "form", "place", "holds")
"""Keys of a data set's ``about``."""


@dataclass(frozen=True)
class ShardOfPart:
    """Some consecutive rows of a part, which are encoded by a job of their own into an entry of their own.

    Attributes:
        name: for messages.
        rows: the first, and the one after the last.
        fingerprint: JSON-able mapping of all that decides these items: the dataset's share of the key.
    """

    name: str
    rows: tuple[int, int]
    fingerprint: Mapping[str, Any]


class BaseDataModule(pl.LightningDataModule, ABC):
    """Items by part; :meth:`loader` serves chosen rows of one, prepared as an encoder wants them.

    A dataset implements :meth:`load` alone. Constructors validate and read nothing; :meth:`setup` (idempotent, also
    done by the first use of :attr:`info`) lists the items; pixels are decoded item by item, in loader workers.

    Args:
        batch_size: items a batch.
        num_workers: loader processes for image parts (text parts are read in the main process); None = one less
            than the cores at hand, between 1 and 8.
        duplicates: what to do about items that are, by content, in two splits: ``warn``, ``error`` or ``ignore``
            (:func:`krossfuse.data.duplicates.check_duplicates`).

        expected: the published counts, by official split and of ``classes``; other ones are an error. None = any.
        about: what is to be known of the files: ``licence``, ``source`` (where they are got), ``form`` (where they
            are got by asking, and how), ``place`` (what to put where), ``holds`` (what lies below ``root`` where the
            set is there). It is shown by ``krossfuse list`` and in the error of files that are not there.

    Raises:
        ConfigError: a bad value.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int | None = None,
        duplicates: str = "warn",
        expected: Mapping[str, int] | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.expected = check_expected(expected)
        for key in about or {}:
            check_choice("data.about", key, ABOUT)
        self.about = {str(key): str(value) for key, value in (about or {}).items()}
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size={batch_size!r} must be a positive integer")
        if num_workers is not None and (not isinstance(num_workers, int) or num_workers < 0):
            raise ConfigError(f"num_workers={num_workers!r} must be null or a whole number, 0 or more")
        self.batch_size = batch_size
        self.duplicates = check_choice("data.duplicates", duplicates, CHOICES)
        self.num_workers = min(8, max(1, cores() - 1)) if num_workers is None else num_workers
        self._loaded: tuple[DatasetInfo, dict[Part, Sequence[Item]]] | None = None

    @abstractmethod
    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """List the dataset; called once, by :meth:`setup`.

        Returns:
            The info, and by part (splits × modalities, without the prompt parts) the items: RGB images or texts in
            a fixed order, lazy for images. An unreadable image raises DataError, naming it, when it is read.
        """

    def setup(self, stage: str | None = None) -> None:
        """List and check the dataset; the second call does nothing."""
        if self._loaded is None:
            info, items = self.load()
            check_info(info, {part: len(of_part) for part, of_part in items.items()})
            main = "image" if any(part.modality == "image" for part in items) else "text"
            compared = {part.split: of_part for part, of_part in items.items() if part.modality == main}
            check_duplicates(info.name, compared, self.duplicates, info.fold_of)
            every = dict(items)
            for name, label_set in info.label_sets.items():
                for prompt_set, prompts in label_set.prompts.items():
                    every[Part.prompts(name, prompt_set)] = prompts.texts
            self._loaded = info, every

    def _listed(self) -> tuple[DatasetInfo, dict[Part, Sequence[Item]]]:
        self.setup()
        assert self._loaded is not None
        return self._loaded

    @property
    def info(self) -> DatasetInfo:
        """Everything about the dataset but its items."""
        return self._listed()[0]

    def parts(self) -> list[Part]:
        """Return all parts to encode: splits × modalities, then the prompt parts."""
        return list(self._listed()[1])

    def items(self, part: Part) -> Sequence[Item]:
        """Return the items of a part: RGB images (decoded on access) or texts.

        Raises:
            KeyError: there is no such part.
        """
        items = self._listed()[1]
        if part not in items:
            have = [str(p) for p in items]
            raise KeyError(f"dataset {self.info.name!r} has no {part}; it has {have}{did_you_mean(part, have)}")
        return items[part]

    def part_fingerprint(self, part: Part) -> dict[str, Any]:
        """Return the JSON-able mapping of all that decides the items of ``part``: the dataset's share of its key.

        Texts are at hand, so a text part is known by its contents (a changed prompt re-encodes no image); an image
        part by the dataset's fingerprint.
        """
        items = self.items(part)
        if part.modality == "text":
            return {"part": str(part), "n": len(items), "sha256": digest(str(text) for text in items)}
        return {"part": str(part), "n": len(items), "dataset": self.info.name, **self.info.fingerprint}

    def part_name(self, part: Part) -> str:
        """Return what a part is called in a feature store, for people."""
        return str(part)

    def shards(self, part: Part) -> Sequence[ShardOfPart]:
        """Return the shards of a part in the order of its rows; none where the part is encoded as a whole."""
        return []

    def finished(self, part: Part, shard: ShardOfPart) -> None:
        """Say that a shard is encoded: what was kept for it alone may go."""

    def check(self) -> None:
        """Check what can be known at once, before any work: that the folder or the files of the dataset are there.

        Raises:
            DataError: they are not.
        """

    def way_out(self) -> str:
        """Return where the files are got and what to put where: the end of an error about files that are not there."""
        told = [
            f"it is got by {self.about['form']}" if "form" in self.about else "",
            f"it is got from {self.about['source']}" if "source" in self.about else "",
            f"put {self.about['place']}" if "place" in self.about else "",
        ]
        return "".join(f"; {text}" for text in told if text)

    def loader(self, part: Part, transform: Transform, collate: Collate, batches: Sequence[Rows]) -> DataLoader[Any]:
        """Return a loader of chosen rows of a part.

        Args:
            part: the part.
            transform: called once an item, in the loader's worker, with the RGB image or the text.
            collate: called once a batch with the list of what ``transform`` returned.
            batches: the rows of each batch.

        Returns:
            A loader of ``(rows, collate([transform(item), ...]))``, in the order of ``batches``.

        Raises:
            KeyError: there is no such part.
        """
        return DataLoader(
            _Batches(self.items(part), transform, collate, batches),
            batch_size=None,
            num_workers=self.num_workers if part.modality == "image" else 0,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin_worker,
        )


class _Batches(Dataset[Any]):
    """Batches of given rows."""

    def __init__(self, items: Sequence[Item], transform: Transform, collate: Collate, batches: Sequence[Rows]) -> None:
        self.items, self.transform, self.collate, self.batches = items, transform, collate, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Rows, Any]:
        rows = self.batches[index]
        return rows, self.collate([self.transform(self.items[row]) for row in rows])


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    end_with_parent()
