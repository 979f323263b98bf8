"""A tracker that writes CSV files into the run folder."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from krossfuse.core.errors import ConfigError
from krossfuse.results.records import Record
from krossfuse.results.trackers.base import Tracker
from krossfuse.results.trackers.contents import leaves, metric_key

if TYPE_CHECKING:
    import pandas as pd
    from pytorch_lightning.loggers import Logger


class CsvTracker(Tracker):
    """Writes ``tracker/metrics.csv`` (configuration, measurements, exit code), a CSV a table, and the pictures."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lightning: Logger | None = None

    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Make the folder ``tracker`` in the run folder."""
        self._folder = folder / "tracker"
        self._folder.mkdir(exist_ok=True)
        self._lightning = None
        (self._folder / "metrics.csv").write_text("key,value\n", encoding="utf-8")
        self._append([("name", name), ("group", group), ("job_type", job_type), ("tags", " ".join(tags))])

    def _append(self, rows: Iterable[tuple[str, Any]]) -> None:
        with (self._open() / "metrics.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def _open(self) -> Path:
        if self._folder is None:
            raise ConfigError("the CSV tracker has no open run; use `with tracker.run(folder, config, name=...)`")
        return self._folder

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration's leaves as ``config/<dotted key>``."""
        self._append((f"config/{key}", value) for key, value in leaves(config))

    def log_records(self, records: Iterable[Record]) -> None:
        """Append a row a measurement."""
        self._append((metric_key(record), record.value) for record in records)

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Write ``<name>.csv``."""
        table.to_csv(self._open() / f"{name}.csv", index=False)

    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Copy the pictures."""
        for path in paths:
            shutil.copy(path, self._open())

    def finish(self, exit_code: int = 0) -> None:
        """Append the exit code."""
        if self._folder is not None:
            self._append([("exit_code", exit_code)])
            self._folder = None

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return Lightning's CSVLogger, writing into ``tracker/lightning``."""
        from pytorch_lightning.loggers import CSVLogger

        folder = self._open()
        if self._lightning is None:  # a second one would delete what the first has written
            self._lightning = CSVLogger(folder, name="lightning", version="")
        return self._lightning
