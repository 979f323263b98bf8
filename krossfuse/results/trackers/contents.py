"""What trackers are given, in the forms that they take: names of measurements, the best of them, tables, run ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krossfuse.core.files import write_whole
from krossfuse.results.aggregate import CONDITIONS, SUBSET
from krossfuse.results.records import LINE_FIELDS, Record

if TYPE_CHECKING:
    import pandas as pd


def metric_key(record: Record) -> str:
    """Return the name of a measurement in a tracker, e.g. ``few_shot/accuracy/image/group/shots=4/form=I+T``."""
    parts = _measured(record)
    for name in (*CONDITIONS, SUBSET):
        if name != "split" and record.protocol.get(name, "") != "":
            parts.append(f"{name}={record.protocol[name]}")
    if record.protocol.get("split", "test") != "test":
        parts.append(str(record.protocol["split"]))
    return "/".join(part for part in parts if part)


def best_of(records: Iterable[Record]) -> dict[str, float]:
    """Return by ``best/<probe>/<metric>/<modality>/<label set>`` the best value over all conditions (shots, forms).

    A metric without a better direction has none, nor has what was not measured on the test split.
    """
    best: dict[str, float] = {}
    for record in records:
        better = record.declaration().better
        if not better or record.protocol.get("split", "test") != "test":
            continue
        name = "/".join(part for part in ("best", *_measured(record)) if part)
        choose = max if better == "higher" else min
        best[name] = choose(best.get(name, record.value), record.value)
    return best


def _measured(record: Record) -> list[str]:
    return [record.probe, record.metric, record.modality, record.label_set]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return the leaves of a configuration by their dotted keys; a list is a leaf.

    >>> list(leaves({"fusion": {"dim": 64}, "probe": ["knn"]}))
    [('fusion.dim', 64), ('probe', ['knn'])]
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def records_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row a measurement: what it is, the method's options, and its value."""
    columns = ("data", "pair", "fusion", "dim", "seed", "probe", "metric", "modality", "label_set")
    import pandas as pd

    return pd.DataFrame(
        {name: getattr(record, name) for name in columns}
        | {name: record.fusion_config.get(name, "") for name in LINE_FIELDS}
        | {"measurement": metric_key(record), "value": record.value}
        for record in records
    )


def remembered_id(folder: Path, tracker: str, *, new: Callable[[], str]) -> str:
    """Return a tracker's id of the run in a folder: the one it had before, or a new one, which is remembered.

    So a job that is taken up in its folder goes on in the tracker's run that it had.

    Args:
        folder: the run folder; ``tracker.json`` lies in it.
        tracker: the tracker's name.
        new: makes an id.
    """
    path = folder / "tracker.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    if not isinstance(known, dict) or not isinstance(known.get(tracker), str):
        known = {**(known if isinstance(known, dict) else {}), tracker: new()}
        write_whole(path, json.dumps(known).encode())
    return str(known[tracker])
