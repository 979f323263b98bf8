"""Names of runs and groups in a tracker: readable, and no two jobs of a sweep have the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krossfuse.results.digest import config_digest
from krossfuse.results.records import LINE_FIELDS


def run_name(config: Mapping[str, Any], *, data: str, pair: str, fusion: str) -> str:
    """Return a job's name: what it is run on, the method with its options, the seed, and a few digits of its digest.

    Args:
        config: the job's resolved configuration.
        data: name of the dataset.
        pair: name of the pair, or "".
        fusion: name of the chosen option of the group ``fusion``.

    >>> run_name({"seed": 3, "fusion": {"dim": 64, "C": 1.0}}, data="openmoji", pair="", fusion="cca")
    'openmoji-cca-64-C1-seed3-e84d26'
    """
    options = config.get("fusion") or {}
    shown = [_option(name, options.get(name)) for name in ("dim", *LINE_FIELDS)]
    parts = [data, pair, fusion, *shown, f"seed{config.get('seed', 0)}", config_digest(config)[:6]]
    return "-".join(part for part in parts if part)


def run_tags(*names: str) -> list[str]:
    """Return what runs are searched by (dataset, pair, method, probes) as tags: each once, none too long for W&B."""
    return list(dict.fromkeys(name[:64] for name in names if name))


def group_name(name: str, folder: Path) -> str:
    """Return the group of a sweep's jobs: its name and its folder's, which is its time, so no two sweeps share one.

    Args:
        name: the configuration's.
        folder: of the sweep; of a single run, its own.

    >>> group_name("quickstart", Path("runs/quickstart/2026-11-25_10-00-00"))
    'quickstart 2026-11-25_10-00-00'
    """
    return f"{name} {folder.resolve().name}"


def _option(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return _class_name(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    if isinstance(value, str):
        return value if name != "C" else f"C-{value}"
    return f"{value:g}" if name == "dim" else f"{name}{value:g}"


def _class_name(node: Mapping[str, Any]) -> str:
    """Return the name of what a node builds, without the name of its kind: ``UniformSketch`` is ``uniform``."""
    name = str(node.get("_target_", "")).rpartition(".")[2]
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+|\d+", re.sub(r"(Sketch|Kernel)$", "", name))
    return "_".join(words).lower()
