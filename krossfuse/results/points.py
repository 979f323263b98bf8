"""The points of a sweep in their run folders: which point a folder is, and whether it holds all of it.

``point.json`` says what a job set out to measure, ``status.json`` (:mod:`krossfuse.results.writer`) how it ended. A
point is done if a folder finished it, for the same configuration and seed
(:func:`krossfuse.results.digest.point_digest`) and on the same data, and every file is as it was written. There is no
other list that could be lost or wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from krossfuse.core.files import write_whole
from krossfuse.results.layout import STATUS, checksums

POINT = "point.json"

State = Literal["done", "missing", "unfinished", "failed", "changed", "damaged"]
"""What a run folder holds of a point; all but ``done`` are computed."""


@dataclass(frozen=True)
class Identity:
    """What decides the measurements of a point.

    Attributes:
        config: digest of its configuration, with its seeds.
        data: fingerprint of the data and features that it is measured on.
    """

    config: str
    data: str


def write_point(folder: Path, identity: Identity, overrides: Sequence[str]) -> None:
    """Write which point a run folder is about to hold."""
    write_whole(folder / POINT, json.dumps({**asdict(identity), "overrides": list(overrides)}).encode())


def read_point(folder: Path) -> tuple[Identity, list[str]] | None:
    """Return which point a run folder is, and its overrides; None where it does not say (or not so that it is read)."""
    try:
        read = json.loads((folder / POINT).read_bytes())
        return Identity(str(read["config"]), str(read["data"])), [str(override) for override in read["overrides"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def state_of(folder: Path, identity: Identity) -> State:
    """Return what a run folder holds of a point."""
    if not folder.is_dir():
        return "missing"
    found = read_point(folder)
    if found is None:
        return "damaged" if (folder / POINT).exists() or (folder / STATUS).exists() else "missing"
    try:
        status = json.loads((folder / STATUS).read_bytes())
        state, files = status["state"], status.get("files")
    except FileNotFoundError:
        return "unfinished"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "damaged"
    if state != "finished":
        return "failed"
    if found[0] != identity:
        return "changed"
    return "done" if files == checksums(folder) else "damaged"
