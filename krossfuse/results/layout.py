"""The files of a run folder, by name (:mod:`krossfuse.results.writer` says what each holds), and their checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

CONFIG, RESULTS, PER_ITEM, STATUS = "config.yaml", "results.jsonl", "per_item.npz", "status.json"
KERNELS = "kernels.npz"


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of results in a run folder, by name."""
    names = [RESULTS, PER_ITEM, KERNELS, *sorted(path.name for path in folder.glob("*.drawn.json"))]
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names if (folder / name).is_file()
    }
