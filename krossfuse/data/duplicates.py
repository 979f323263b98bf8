"""Identical items in two splits: what is tested on was then trained on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from krossfuse.core.errors import DataError

log = logging.getLogger(__name__)

CHOICES = ("warn", "error", "ignore")
LIMIT = 200_000
"""Items up to which a dataset is compared for a mere warning; ``error`` compares any number."""

_ENDS = 4096

Place = tuple[str, int]
"""Split and row."""


def check_duplicates(dataset: str, items: Mapping[str, Sequence[Any]], action: str) -> None:
    """Say how many items of one split are, by content, in another too.

    Image files are compared by size, then by their first and last bytes, then in full; texts as they are; other items
    by what their sequence's ``content(row)`` returns. Items without it are not compared.

    Args:
        dataset: its name, for the message.
        items: by split.
        action: ``warn``, ``error`` or ``ignore``.

    Raises:
        DataError: there are such items, and ``action`` is ``error``; the message counts them and names the first.
    """
    if action == "ignore":
        return
    total = sum(map(len, items.values()))
    if action == "warn" and total > LIMIT:
        log.info("%s: %d items are not compared between the splits; data.duplicates=error does", dataset, total)
        return
    said = []
    groups = identical(items)
    splits = list(items)
    for at, one in enumerate(splits):
        for other in splits[at + 1 :]:
            pairs = [
                (one_row, next(row for split, row in group if split == other))
                for group in groups
                if any(split == other for split, _ in group)
                for split, one_row in group
                if split == one
            ]
            if pairs:
                first, twin = min(pairs)
                said.append(
                    f"{len(pairs)} of {len(items[one])} items of {one!r} are in {other!r} too (the first: "
                    f"{_name(items[one], first)} is {_name(items[other], twin)})"
                )
    if said:
        message = f"dataset {dataset!r}: identical items in two splits: {'; '.join(said)}"
        if action == "error":
            raise DataError(f"{message}; remove them from one, or say data.duplicates=warn")
        log.warning("%s; measurements on them say little (data.duplicates=error stops, =ignore is silent)", message)


def identical(items: Mapping[str, Sequence[Any]]) -> list[list[Place]]:
    """Return the groups of items with the same content that lie in more than one split."""
    places = [(split, row) for split, of_split in items.items() for row in range(len(of_split))]
    first = next(iter(items.values()), ())
    if hasattr(first, "paths"):
        groups = [places]
        for step in (_size, _ends, _whole):
            groups = [finer for group in groups for finer in _refined(group, lambda p: step(items[p[0]].paths[p[1]]))]  # type: ignore[attr-defined]  # noqa: B023
        return groups
    if hasattr(first, "content"):
        return _refined(places, lambda p: hashlib.sha256(items[p[0]].content(p[1])).digest())  # type: ignore[attr-defined]
    if isinstance(first, list | tuple) and all(isinstance(item, str) for item in first):
        return _refined(places, lambda p: items[p[0]][p[1]])
    return []


def _refined(group: list[Place], content: Callable[[Place], Hashable]) -> list[list[Place]]:
    finer: dict[Hashable, list[Place]] = defaultdict(list)
    for place in group:
        finer[content(place)].append(place)
    return [places for places in finer.values() if len({split for split, _ in places}) > 1]


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
