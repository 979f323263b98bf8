"""The error of this room."""

from __future__ import annotations

from krossfuse.core.errors import KrossFuseError


class ResultsError(KrossFuseError, ValueError):
    """Results cannot be written or read: a missing folder, a damaged line, an impossible value."""
