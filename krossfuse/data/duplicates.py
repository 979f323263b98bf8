"""Identical items in two splits, or in two folds: what is tested on was then trained on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from krossfuse.core.errors import DataError

log = logging.getLogger(__name__)

CHOICES = ("warn", "error", "ignore")
LIMIT = 200_000
"""Items up to which a dataset is compared for a mere warning; ``error`` compares any number."""

_ENDS = 4096

Place = tuple[str, int]
"""Split and row."""


def check_duplicates(
    dataset: str, items: Mapping[str, Sequence[Any]], action: str, fold_of: Mapping[str, Tensor] | None = None
) -> None:
    """Say how many items of one split are, by content, in another too; with folds, of one fold in another.

    Image files are compared by size, then by their first and last bytes, then in full; texts as they are; other items
    by what their sequence's ``content(row)`` returns. Items without it are not compared.

    Args:
        dataset: its name, for the message.
        items: by split.
        action: ``warn``, ``error`` or ``ignore``.
        fold_of: by split, the fold of each item (``DatasetInfo.fold_of``); splits without folds are compared as such.

    Raises:
        DataError: there are such items, and ``action`` is ``error``; the message counts them and names the first.
    """
    if action == "ignore":
        return
    total = sum(map(len, items.values()))
    if action == "warn" and total > LIMIT:
        log.info("%s: %d items are not compared between the splits; data.duplicates=error does", dataset, total)
        return
    dealt = {split: fold.tolist() for split, fold in (fold_of or {}).items()}

    def home(place: Place) -> str:
        split, row = place
        return f"fold {dealt[split][row] + 1}" if split in dealt else repr(split)

    groups = identical(items, home)
    counts = Counter(home((split, row)) for split, of_split in items.items() for row in range(len(of_split)))
    homes = sorted(counts) if dealt else list(counts)
    said = []
    for at, one in enumerate(homes):
        for other in homes[at + 1 :]:
            pairs = [
                (place, next(twin for twin in group if home(twin) == other))
                for group in groups
                if any(home(twin) == other for twin in group)
                for place in group
                if home(place) == one
            ]
            if pairs:
                first, twin = min(pairs)
                said.append(
                    f"{len(pairs)} of {counts[one]} items of {one} are in {other} too (the first: "
                    f"{_name(items[first[0]], first[1])} is {_name(items[twin[0]], twin[1])})"
                )
    if said:
        what = "folds" if dealt else "splits"
        message = f"dataset {dataset!r}: identical items in two {what}: {'; '.join(said)}"
        if action == "error":
            raise DataError(f"{message}; remove them from one, or say data.duplicates=warn")
        log.warning("%s; measurements on them say little (data.duplicates=error stops, =ignore is silent)", message)


def _split(place: Place) -> str:
    return place[0]


def identical(items: Mapping[str, Sequence[Any]], home: Callable[[Place], str] = _split) -> list[list[Place]]:
    """Return the groups of items with the same content that lie in more than one split (or ``home``)."""
    places = [(split, row) for split, of_split in items.items() for row in range(len(of_split))]
    first = next(iter(items.values()), ())
    if hasattr(first, "paths"):
        groups = [places]
        for step in (_size, _ends, _whole):
            groups = [finer for group in groups for finer in _refined(group, partial(_of_path, items, step), home)]
        return groups
    if hasattr(first, "content"):
        return _refined(places, lambda p: hashlib.sha256(items[p[0]].content(p[1])).digest(), home)  # type: ignore[attr-defined]
    if isinstance(first, list | tuple) and all(isinstance(item, str) for item in first):
        return _refined(places, lambda p: items[p[0]][p[1]], home)
    return []


def _refined(
    group: list[Place], content: Callable[[Place], Hashable], home: Callable[[Place], str]
) -> list[list[Place]]:
    finer: dict[Hashable, list[Place]] = defaultdict(list)
    for place in group:
        finer[content(place)].append(place)
    return [places for places in finer.values() if len({home(place) for place in places}) > 1]


def _of_path(items: Mapping[str, Any], step: Callable[[str], Hashable], place: Place) -> Hashable:
    split, row = place
    return step(items[split].paths[row])


def _size(path: str) -> int:
    return os.stat(path).st_size


def _ends(path: str) -> bytes:
    with open(path, "rb") as file:
        start = file.read(_ENDS)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _ENDS))
        return start + file.read()


def _whole(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(items: Sequence[Any], row: int) -> str:
    if hasattr(items, "paths"):
        return repr(items.paths[row])
    return f"row {row}" if not isinstance(items[row], str) else f"row {row} {items[row][:60]!r}"
