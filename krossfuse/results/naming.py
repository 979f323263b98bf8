"""Names of runs and groups in a tracker: readable, and no two jobs of a sweep have the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krossfuse.results.digest import config_digest
from krossfuse.results.records import LINE_FIELDS


def run_name(config: Mapping[str, Any], fusion: str) -> str:
    """Return a job's name: what it is run on, the method with its options, the seed, and a few digits of its digest.

    Args:
        config: the job's resolved configuration.
        fusion: name of the chosen option of the group ``fusion``.

    >>> run_name({"seed": 3, "data": {"name": "openmoji"}, "fusion": {"dim": 64, "C": 1.0}}, "cca")
    'openmoji-cca-64-C1-seed3-7aeca1'
    """
    options = config.get("fusion") or {}
    shown = [_option(name, options.get(name)) for name in ("dim", *LINE_FIELDS)]
    parts = [*_subject(config), fusion, *shown, f"seed{config.get('seed', 0)}", config_digest(config)[:6]]
    return "-".join(part for part in parts if part)


def run_tags(config: Mapping[str, Any], fusion: str) -> list[str]:
    """Return what runs are searched by (dataset, pair, method, probes): each once, none too long for W&B."""
    tags = [*_subject(config), fusion, *(config.get("probe") or {})]
    return list(dict.fromkeys(tag[:64] for tag in tags if tag))


def group_name(name: str, folder: Path) -> str:
    """Return the group of a sweep's jobs: its name and its folder's, which is its time, so no two sweeps share one.

    Args:
        name: the configuration's.
        folder: of the sweep; of a single run, its own.

    >>> group_name("quickstart", Path("runs/quickstart/2026-11-25_10-00-00"))
    'quickstart 2026-11-25_10-00-00'
    """
    return f"{name} {folder.resolve().name}"


def _subject(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the dataset and of the pair, as far as the configuration knows them."""
    names = []
    for node in (config.get("data") or {}, config.get("pair") or {}):
        if node:
            own = node.get("name") or node.get("dataset") or node.get("task") or Path(str(node.get("path") or "")).stem
            names.append(str(own or str(node.get("_target_", "")).rpartition(".")[2].lower()))
    return names


def _option(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return part_name(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    if isinstance(value, str):
        return value if name != "C" else f"C-{value}"
    return f"{value:g}" if name == "dim" else f"{name}{value:g}"


def part_name(node: Mapping[str, Any]) -> str:
    """Return the name of what a node builds, without the name of its kind.

    >>> part_name({"_target_": "krossfuse.fusion.sketches.UniformSketch"})
    'uniform'
    """
    name = str(node.get("_target_", "")).rpartition(".")[2]
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+|\d+", re.sub(r"(Sketch|Kernel)$", "", name))
    return "_".join(words).lower()
