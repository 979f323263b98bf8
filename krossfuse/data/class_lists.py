"""Class names and prompt templates of published data sets: ``list:NAME`` in a configuration.

They are in ``class_lists.json``, each list with its source and licence: ImageNet's from open_clip, the others from
CLIP_benchmark (MIT), after the prompts that were published with CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from krossfuse.core.errors import ConfigError, did_you_mean

FILE = Path(__file__).with_name("class_lists.json")
PREFIX = "list:"


@dataclass(frozen=True)
class ClassList:
    """One published list.

    Attributes:
        name: of the list.
        names: class names as prompts use them, in the order of the labels; empty where the files have the names.
        labels: what the files call the classes (folders, WordNet ids), in the same order; empty where not known.
        templates: with ``{}`` where the name goes; may be empty.
        source: where the list is from, with its licence.
    """

    name: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    source: str

    def label(self, folder: str) -> str:
        """Return the label that a folder stands for: its own name, or the one at its number (ImageNet-V2's ``17``)."""
        if folder not in self.labels and folder.isascii() and folder.isdigit() and int(folder) < len(self.labels):
            return self.labels[int(folder)]
        return folder


def is_list(value: object) -> bool:
    """Return whether a value of a configuration names a list: ``list:NAME``."""
    return isinstance(value, str) and value.startswith(PREFIX)


@cache
def class_list(reference: str) -> ClassList:
    """Return the list that ``list:NAME`` names.

    Raises:
        ConfigError: there is no such list.

    >>> class_list("list:eurosat").names[:2]
    ('annual crop land', 'forest')
    """
    name = reference.removeprefix(PREFIX)
    every = _every()
    if name not in every:
        raise ConfigError(f"there is no list {name!r}{did_you_mean(name, every)}; there are {', '.join(every)}")
    entry = every[name]
    parent: Mapping[str, Any] = every[entry["of"]] if "of" in entry else {}
    names = entry.get("names", [])
    if "of" in entry:  # a part of another list's classes
        names = {label: parent["names"][label] for label in entry["labels"]}
    labels = tuple(names) if isinstance(names, Mapping) else ()
    values: Sequence[str] = list(names.values()) if isinstance(names, Mapping) else names
    templates = entry.get("templates", parent.get("templates", []))
    return ClassList(name, tuple(values), labels, tuple(templates), entry["source"])


def named_list(reference: str) -> ClassList:
    """Return a list that must have class names.

    Raises:
        ConfigError: there is no such list, or it has templates only.
    """
    found = class_list(reference)
    if not found.names:
        raise ConfigError(f"{reference} has templates but no class names: those are in the data set's own files")
    return found


@cache
def _every() -> Mapping[str, Mapping[str, Any]]:
    read: Mapping[str, Mapping[str, Any]] = json.loads(FILE.read_text("utf-8"))
    return read
