"""Compare the measurements of two sweeps (or runs) to the bit, whatever else their records say.

    python tests/tools/compare_measurements.py BEFORE AFTER

Reads ``results.jsonl`` as JSON, so that the records of any version can be compared; exit status 1 where they differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

IDENTITY = (
    "data",
    "pair",
    "fusion",
    "dim",
    "alignment",
    "sketch",
    "C",
    "seed",
    "probe",
    "metric",
    "modality",
    "label_set",
)
CONDITIONS = ("split", "prompt_set", "shots", "form", "k", "subset_seed", "temperature", "space", "fold")


def measurements(folder: Path) -> dict[tuple[Any, ...], float]:
    """Return the value of every record below a folder, by what was measured."""
    values: dict[tuple[Any, ...], float] = {}
    for path in sorted(folder.rglob("results.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            conditions = [record["protocol"].get(name) for name in CONDITIONS]
            key = tuple(str(part) for part in (*(record.get(name) for name in IDENTITY), *conditions))
            number = 0
            while (*key, number) in values:
                number += 1
            values[(*key, number)] = record["value"]
    return values


def main(before: str, after: str) -> int:
    """Print the differences and return the exit status."""
    old, new = measurements(Path(before)), measurements(Path(after))
    missing = sorted(old.keys() - new.keys(), key=str)
    added = sorted(new.keys() - old.keys(), key=str)
    changed = sorted((key for key in old.keys() & new.keys() if old[key] != new[key]), key=str)
    for name, keys in (("missing", missing), ("added", added)):
        for key in keys[:10]:
            print(name, key)
    for key in changed[:10]:
        print("changed", key, old[key], "->", new[key])
    print(f"{len(old)} measurements before, {len(new)} after: {len(changed)} differ, {len(missing)} are missing, "
          f"{len(added)} are new")  # fmt: skip
    return int(bool(missing or changed or not old))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
