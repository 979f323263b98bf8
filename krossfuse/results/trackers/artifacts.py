"""What a run can leave with its tracker beside figures: files that others load again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krossfuse.core.errors import ConfigError, check_choice

KINDS = ("fusion", "embeddings", "model")
"""The fitted fusion; the fused embeddings; encoders and fusion as one model (``krossfuse export``)."""


@dataclass(frozen=True)
class Artifact:
    """Files that a tracker keeps as one thing with versions.

    Attributes:
        name: in letters, digits, ``-``, ``_`` and ``.``.
        kind: of :data:`KINDS`.
        path: a file, or a folder that is kept whole.
        about: JSON-able, how it was made.
        features: by part and role, the keys of the stored features that it was made from: its lineage.
    """

    name: str
    kind: str
    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def check_kinds(keep: object) -> tuple[str, ...]:
    """Return ``logger.keep`` as a tuple.

    Raises:
        ConfigError: it is no list, or a kind is unknown.
    """
    if isinstance(keep, str) or not isinstance(keep, Sequence):
        raise ConfigError(f"logger.keep={keep!r} must be a list of {list(KINDS)}, as in [{KINDS[0]}]")
    return tuple(dict.fromkeys(check_choice("logger.keep", kind, KINDS) for kind in keep))
