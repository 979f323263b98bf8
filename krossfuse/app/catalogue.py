"""``krossfuse list data|encoders|pairs|fusion|probe``: what there is by name, and whether it is at hand.

Everything is read from the files of the configuration; no component is made, and no library of models is imported.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from krossfuse.app.pairs import PLACES, encoder_files
from krossfuse.app.paths import CONFIG_DIR, user_config_dirs
from krossfuse.core.errors import check_choice
from krossfuse.core.parts import CROSS_MODAL

Entry = dict[str, Any]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "data": ("name", "what", "classes", "items", "licence", "at hand", "source"),
    "encoders": ("name", "what", "encodes", "dim", "size", "licence", "at hand", "source"),
    "pairs": ("name", "cross-modal", "image experts", "text experts", "at hand"),
    "fusion": ("name", "what", "dim"),
    "probe": ("name", "what"),
}
"""What is shown of each kind, in this order."""

HINTS = {
    "data": "krossfuse data=NAME; KROSSFUSE_TORCHVISION and KROSSFUSE_DATA are where they lie (docs/data.md)",
    "encoders": "krossfuse pair=NAME+NAME+...: a cross-modal encoder and its experts (docs/encoders.md)",
    "pairs": "krossfuse pair=NAME; any others are composed of encoders: pair=clip_b32+dinov2_b14+e5_large",
    "fusion": "krossfuse fusion=NAME",
    "probe": "krossfuse 'probe=[NAME,NAME]'",
}


def main(arguments: Iterable[str] | None = None) -> int:
    """Run ``krossfuse list``; returns the exit status.

    Raises:
        ConfigError: there is no such kind, or two encoders of one name.
    """
    parser = argparse.ArgumentParser(prog="krossfuse list", description=__doc__)
    parser.add_argument("kind", metavar="data|encoders|pairs|fusion|probe")
    parser.add_argument("--json", action="store_true", help="one JSON list")
    options = parser.parse_args(None if arguments is None else list(arguments))
    kind = check_choice("krossfuse list", options.kind, COLUMNS)
    entries = catalogue(kind)
    if options.json:
        print(json.dumps(entries, indent=1))
    else:
        _show(kind, entries)
    return 0


def catalogue(kind: str) -> list[Entry]:
    """Return what there is of a kind, by name.

    Args:
        kind: ``data``, ``encoders``, ``pairs``, ``fusion`` or ``probe``.

    Returns:
        By entry, its ``name`` and what :data:`COLUMNS` shows of it; ``at hand`` is true, false, or None where nobody
        can know (a path that is the user's to give).
    """
    if kind == "encoders":
        return [_encoder(name, file) for name, file in sorted(encoder_files().items())]
    if kind == "data":
        return [_data(file) for file in _files("data")]
    if kind == "pairs":
        encoders = {name: _encoder(name, file) for name, file in encoder_files().items()}
        return [_pair(file, encoders) for file in _files("pair") if file.stem != "none"]
    return [_method(kind, file) for file in _files(kind)]


def _files(group: str) -> list[Path]:
    folders = dict.fromkeys((CONFIG_DIR, *user_config_dirs()))
    files = {file.stem: file for folder in folders for file in sorted((folder / group).glob("*.yaml"))}
    return [files[name] for name in sorted(files)]


def _what(file: Path) -> str:
    """Return what the first comment of a file says, without the command in it."""
    lines = file.read_text("utf-8").splitlines()
    first = next((line for line in lines if line.startswith("#") and not line.startswith("# @")), "")
    return first.removeprefix("#").strip().split(": krossfuse")[0].split("    krossfuse")[0].rstrip(":. ")


@cache
def _text_of(file: Path) -> Entry:
    # Not OmegaConf.load, which takes ten times as long.
    read: Entry = yaml.load(file.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    return read


def _read(file: Path) -> Entry:
    """Return what a file says; a copy."""
    return copy.deepcopy(_text_of(file))


def _node(file: Path) -> Entry:
    """Return a file's options with those of the files that its defaults list names in its own group; unresolved."""
    read = _read(file)
    merged: Entry = {}
    for entry in read.pop("defaults", []):
        name, where = _reference(entry)
        if name and (found := _beside(file, name)):
            inner = _node(found)
            merged |= inner if where in ("", "_here_") else {where: inner}
    return merged | read


def _reference(entry: object) -> tuple[str, str]:
    """Return the option that an entry of a defaults list names, and the package it goes to."""
    if isinstance(entry, Mapping):
        ((group, option),) = entry.items()
        group, _, where = str(group).partition("@")
        same = group in ("/data", "data")
        return (str(option), where) if same else ("", "")
    name, _, where = str(entry).partition("@")
    return name, where


def _beside(file: Path, name: str) -> Path | None:
    found = file.parent / f"{name}.yaml"
    return found if found.is_file() else None


def _data(file: Path) -> Entry:
    node = _node(file)
    about = node.get("about") or {}
    expected = dict(node.get("expected") or {})
    classes = expected.pop("classes", None)
    return {
        "name": file.stem,
        "what": _what(file),
        "classes": classes,
        "items": expected or None,
        "licence": about.get("licence"),
        "source": about.get("form") or about.get("source"),
        "at hand": _data_at_hand(node),
    }


def _data_at_hand(node: Entry) -> bool | None:
    if isinstance(node.get("base"), dict):
        return _data_at_hand(node["base"])
    places = [key for key in ("root", "path") if key in node]
    if not places:
        return True  # drawn, or from packages
    root = _resolved(node[places[0]])
    if root is None:
        # Of a set that is the user's own nobody knows; one that is published would be where the variables say.
        return False if (node.get("about") or {}).get("source") else None
    below = (node.get("about") or {}).get("holds") or node.get("file") or ""
    return (Path(str(root)).expanduser() / str(below)).exists()


def _resolved(value: object) -> object:
    try:
        return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[index,call-overload]
    except OmegaConfBaseException:
        return None


def _encoder(name: str, file: Path) -> Entry:
    node = _node(file)
    about = node.get("about") or {}
    return {
        "name": name,
        "what": _what(file),
        "encodes": about.get("encodes"),
        "dim": about.get("dim"),
        "size": about.get("parameters"),
        "licence": about.get("licence"),
        "source": about.get("source"),
        "form": about.get("form"),
        "at hand": _encoder_at_hand(str(about.get("source", ""))),
    }


def _encoder_at_hand(source: str) -> bool:
    """Return whether the weights of a source are on this machine: in a package, a folder or the hub's cache."""
    if source.startswith("package "):
        try:
            return bool(importlib.metadata.version(source.removeprefix("package ")))
        except importlib.metadata.PackageNotFoundError:
            return False
    if source == "the package itself" or Path(source).expanduser().is_dir():
        return True
    snapshots = _hub_cache() / f"models--{source.replace('/', '--')}" / "snapshots"
    return source.count("/") == 1 and any(snapshots.glob("*/*"))


def _hub_cache() -> Path:
    """Return the folder of the Hugging Face hub's cache, as its library finds it (which takes a second to import)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _pair(file: Path, encoders: Mapping[str, Entry]) -> Entry:
    """Return what is known of a pair that has a file: its encoders are files, or stand in it."""
    places: dict[str, list[str]] = {CROSS_MODAL: [], **{place: [] for place in PLACES.values()}}
    read = _read(file)
    for entry in read.pop("defaults", []):
        if isinstance(entry, Mapping):
            ((package, name),) = entry.items()
            places[str(package).partition("@")[2].partition(".")[0]].append(str(name))
    if read.get(CROSS_MODAL):
        places[CROSS_MODAL].append(_bundled(read[CROSS_MODAL]))
    for place in PLACES.values():
        places[place] += [_bundled(node) for node in (read.get(place) or {}).values()]
    names = [name for of in places.values() for name in of]
    return {
        "name": file.stem,
        "cross-modal": next(iter(places[CROSS_MODAL]), None),
        "image experts": places["image_experts"],
        "text experts": places["text_experts"],
        "at hand": all(encoders[name]["at hand"] if name in encoders else None for name in names),
    }


def _bundled(node: Mapping[str, Any]) -> str:
    """Return the name of an encoder that stands in a pair's own file: that of the encoder file of its class."""
    target = str(node.get("_target_"))
    for name, file in encoder_files().items():
        if _text_of(file).get("_target_") == target:
            return name
    return str(node.get("name") or target.rpartition(".")[2])


def _method(kind: str, file: Path) -> Entry:
    node = _node(file)
    entry = {"name": file.stem, "what": _what(file)}
    return {**entry, "dim": node.get("dim")} if kind == "fusion" else entry


def _show(kind: str, entries: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS[kind]:
        right = column in ("classes", "dim", "size")
        table.add_column(column, justify="right" if right else "left", no_wrap=column == "name", overflow="fold")
    for entry in entries:
        table.add_row(*(_text(column, entry.get(column)) for column in COLUMNS[kind]))
    console = Console(width=None if os.isatty(1) else 200, markup=False, highlight=False)
    console.print(table)
    console.print(f"{len(entries)} {kind}. {HINTS[kind]}")


def _text(column: str, value: Any) -> str:
    if column == "at hand":
        return {True: "yes", False: "no", None: "?"}[value]
    if column == "size" and value:
        return f"{value / 1e6:,.1f} M" if value < 1e7 else f"{value / 1e6:,.0f} M"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {count:,}" for key, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
