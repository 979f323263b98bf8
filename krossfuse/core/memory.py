"""How much memory there is, and the check that a configuration fits it before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from krossfuse.core.errors import ConfigError

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total_memory() -> int:
    """Return the bytes of memory that this process can have at most: the machine's, or its container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CGROUPS:
        try:
            total = min(total, int(file.read_text()))
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            continue
    return total


def check_memory(what: str, needed: int, way_out: str, *, error: type[ConfigError] = ConfigError) -> None:
    """Check that something fits into memory, before it is allocated.

    Args:
        what: what needs the memory.
        needed: bytes.
        way_out: what to change.
        error: class of the error.

    Raises:
        ConfigError: it does not; the message names the bytes needed and the limit.
    """
    limit = total_memory()
    if needed > limit:
        raise error(f"{what} needs {needed / 1e9:,.1f} GB of memory, and there are {limit / 1e9:,.1f} GB; {way_out}")
