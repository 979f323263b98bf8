"""No tracker: the run folder's own records, tables and pictures are all there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krossfuse.results.records import Record
from krossfuse.results.trackers.base import Tracker

if TYPE_CHECKING:
    import pandas as pd


class NoTracker(Tracker):
    """Logs nothing."""

    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Do nothing."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_records(self, records: Iterable[Record]) -> None:
        """Do nothing."""

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Do nothing."""

    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Do nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing."""
