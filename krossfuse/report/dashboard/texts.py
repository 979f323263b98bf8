"""Texts that many rows share, held once: what rows say of themselves is a list of numbers of lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from krossfuse.results.aggregate import CONDITIONS, SUBSET, Member
from krossfuse.results.configs import sections

LONGEST = 400
"""Characters of a value that a page shows; what a record holds at length stays in its run folder."""

MOST_VALUES = 8
"""Values of one key that are listed, of what differs from run to run."""


class Texts:
    """Numbers texts in the order of their coming.

    >>> texts = Texts()
    >>> texts.number("a"), texts.number("b"), texts.number("a"), texts.all
    (0, 1, 0, ['a', 'b'])
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a text."""
        return self._numbers.setdefault(text, len(self._numbers))

    def lines(self, texts: Iterable[str]) -> list[int]:
        """Return the numbers of some texts."""
        return [self.number(text) for text in texts]

    @property
    def all(self) -> list[str]:
        """The texts by number."""
        return list(self._numbers)


def config_lines(text: str) -> list[str]:
    """Return a configuration's sections, each cut where it is too long to be read."""
    return [_cut(section.rstrip("\n"), 4000) for section in sections(text)]


def method_lines(members: Iterable[Member]) -> list[str]:
    """Return what describes a method, key by key: its options and what it chose from the data."""
    return _lines((record.fusion_config for _, record in members), leave_out=frozenset({"seed"}))


def protocol_lines(members: Iterable[Member]) -> list[str]:
    """Return how something was measured, key by key; what the column's title says is left out."""
    return _lines((record.protocol for _, record in members), leave_out=frozenset((*CONDITIONS, SUBSET)))


def _lines(descriptions: Iterable[Mapping[str, Any]], leave_out: frozenset[str]) -> list[str]:
    shown: dict[str, dict[str, None]] = {}
    for description in descriptions:
        for key, value in description.items():
            if key not in leave_out:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                shown.setdefault(key, {})[_cut(text, LONGEST)] = None
    lines = []
    for key, values in shown.items():
        more = f", and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
        lines.append(f"{key}: {', '.join(list(values)[:MOST_VALUES])}{more}")
    return lines


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
