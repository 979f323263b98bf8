"""Entries: what a store holds under one key, and the record ``entry.json`` that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from krossfuse.core.errors import StoreError, check_choice, check_positive
from krossfuse.features.keys import FeatureKey, plain

DTYPES = ("float32", "float16", "bfloat16")
DATA, RECORD = "features.npy", "entry.json"
FORMAT = 1
"""Version of what an entry is made of. Another one is refused, since it might mean something else."""


class DamagedEntryError(StoreError):
    """An entry's files are not what was written."""


class EntryFormatError(StoreError):
    """An entry was written by another version of KrossFuse, in a format that this one does not know."""


@dataclass(frozen=True)
class Entry:
    """What a store holds under one key.

    Attributes:
        key: the key, as written beside the data.
        name: the key's digest, as the place says (also where the record inside cannot be read).
        where: the place, for messages: a folder or a URL.
        rows: number of items.
        dim: dimension of the features.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        done: rows written; less than ``rows`` in a partial entry.
        size: bytes stored.
        created: seconds since the epoch when it was finished (of a partial entry: begun).
        sha256: of the features' file; empty in a partial entry.
        partial: whether it is still being written, or was left by a killed job.
        data: name of the features' file.
    """

    key: FeatureKey
    name: str
    where: str
    rows: int
    dim: int
    dtype: str
    done: int
    size: int
    created: float
    sha256: str
    partial: bool = False
    data: str = DATA


def make_record(key: FeatureKey, rows: int, dim: int, dtype: str, created: float) -> dict[str, Any]:
    """Return the record of an entry that is begun.

    Raises:
        StoreError: the key cannot be written as JSON.
    """
    return {
        "format": FORMAT,
        "key": plain(key.ingredients, "key"),
        "about": dict(key.about),
        "rows": rows,
        "dim": dim,
        "dtype": dtype,
        "created": created,
        "sha256": "",
    }


def record_text(record: Mapping[str, Any]) -> str:
    """Return a record as it stands in its file."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def read_record(text: str | bytes, *, name: str, where: str, size: int, partial: bool) -> Entry:
    """Return the entry that a record describes.

    Raises:
        EntryFormatError: it was written in another format.
        ValueError: it is no record, or lacks something.
    """
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise EntryFormatError(
                f"feature-store entry {where!r} was written in format {record['format']!r}, and this version "
                f"of KrossFuse reads format {FORMAT} only; use the version that wrote it, another store "
                f"(paths.store=...), or delete it (krossfuse store delete {name[:12]}) and it is computed anew"
            )
        entry = Entry(
            key=FeatureKey(record["key"], record["about"]),
            name=name,
            where=where,
            rows=record["rows"],
            dim=record["dim"],
            dtype=check_choice("dtype", record["dtype"], DTYPES),
            done=0 if partial else record["rows"],
            size=size,
            created=float(record["created"]),
            sha256=record["sha256"],
            partial=partial,
            data=record.get("data", DATA),
        )
        check_positive("rows", entry.rows, integer=True)
        check_positive("dim", entry.dim, integer=True)
        if "/" in entry.data:
            raise ValueError(f"data={entry.data!r} is no file name")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{RECORD} cannot be read ({type(error).__name__}: {error})") from None
    return entry


def unreadable(name: str, where: str, *, why: str, size: int, created: float, partial: bool) -> Entry:
    """Return an entry for a listing, so that what cannot be read can be seen and deleted."""
    key = FeatureKey({}, {"encoder": f"({why})"})
    return Entry(key, name, where, 0, 0, DTYPES[0], 0, size, created, "", partial)
