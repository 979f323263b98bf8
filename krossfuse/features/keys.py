"""Keys: an entry of a feature store is known by all that changes a feature, and by nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from krossfuse.core.errors import StoreError


def canonical_json(value: Any, *, where: str = "value") -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN.

    Raises:
        StoreError: it holds something that JSON cannot (an object, NaN, a key that is no text).

    Examples:
        >>> canonical_json({"b": (1, 2), "a": None})
        '{"a":null,"b":[1,2]}'
    """
    return json.dumps(plain(value, where), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def plain(value: Any, where: str) -> Any:
    """Return ``value`` as what JSON has.

    Raises:
        StoreError: it holds something that JSON cannot; the message says ``where``.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if not bad:
            return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
        raise StoreError(f"feature key: {where} has the key {bad[0]!r}, which is not text")
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise StoreError(f"feature key: {where}={value!r} ({type(value).__name__}) cannot be written as JSON")


@dataclass(frozen=True)
class FeatureKey:
    """The identity of one entry.

    Attributes:
        ingredients: JSON-able; everything that changes a feature, and nothing else. Its digest is the key.
        about: words for people (``dataset``, ``part``, ``encoder``); not part of the digest.
    """

    ingredients: Mapping[str, Any]
    about: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """The name of the entry: 32 hexadecimal digits of the SHA-256 of the ingredients' canonical JSON."""
        return hashlib.sha256(canonical_json(self.ingredients, where="key").encode()).hexdigest()[:32]

    def __str__(self) -> str:
        about = self.about
        what = f"{about.get('encoder', '?')} on {about.get('dataset', '?')}, {about.get('part', '?')}"
        return f"{self.digest[:12]} ({what})"
