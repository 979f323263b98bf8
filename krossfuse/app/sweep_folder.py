"""The folder of a sweep: which one, who has it, and the list of points that failed in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from hydra.errors import HydraException

from krossfuse.core.errors import ConfigError, KrossFuseError
from krossfuse.core.files import write_whole

MULTIRUN, FAILED, LOCK, HOLDER = "multirun.yaml", "failed.jsonl", ".lock", ".holder.json"


class JobsFailedError(HydraException):
    """Some jobs of a sweep failed; the message is made for the user, whatever their own errors say."""


class SweepError(KrossFuseError, RuntimeError):
    """A sweep cannot have its folder, or cannot go on."""


@dataclass(frozen=True)
class Outcome:
    """How a point ended.

    Attributes:
        folder: its run folder, below the sweep's.
        overrides: that make it.
        state: ``lost`` is a point whose process ended in the middle; ``left`` one that was not reached.
        error: in one line.
        traceback: its end.
    """

    folder: str
    overrides: Sequence[str]
    state: Literal["done", "failed", "lost", "left"]
    error: str = ""
    traceback: str = ""


def resumed_folder(fresh: Path, resume: bool | str) -> Path:
    """Return the folder of the sweep that is resumed.

    Args:
        fresh: the folder that a new sweep would have.
        resume: True = the newest sweep folder beside it (or itself, if it is one); or a folder.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(resume, str):
        if not (Path(resume) / MULTIRUN).is_file():
            raise ConfigError(f"hydra.sweeper.resume={resume!r} is no folder of a sweep: it holds no {MULTIRUN}")
        return Path(resume)
    if (fresh / MULTIRUN).is_file():
        return fresh
    found = [path.parent for path in fresh.parent.glob(f"*/{MULTIRUN}")]
    if not found:
        raise ConfigError(f"there is no sweep to resume in {fresh.parent}; hydra.sweeper.resume=FOLDER names one")
    return max(found, key=lambda folder: (folder.stat().st_mtime_ns, folder.name))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only sweep in a folder, which is made.

    Raises:
        SweepError: another sweep is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            write_whole(folder / HOLDER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            yield
    except Timeout:
        raise SweepError(
            f"{folder} is being written by another sweep{_holder(folder)}; wait for it, end it, or name another folder "
            "(hydra.sweep.dir=)"
        ) from None


def _holder(folder: Path) -> str:
    try:
        read = json.loads((folder / HOLDER).read_bytes())
        return f" (process {read['pid']} on {read['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def read_failed(folder: Path) -> list[Outcome]:
    """Return the points that failed when a sweep was last in its folder.

    Raises:
        ConfigError: the list is damaged.
    """
    path = folder / FAILED
    try:
        return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}); delete it and leave out hydra.sweeper.only: whatever is not done is computed"
        ) from None


def write_failed(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the points that failed, a line each; no file if none did."""
    failed = [outcome for outcome in outcomes if outcome.state in ("failed", "lost")]
    if failed:
        write_whole(folder / FAILED, "".join(json.dumps(asdict(outcome)) + "\n" for outcome in failed).encode())
    else:
        (folder / FAILED).unlink(missing_ok=True)
