"""What every experiment tracker can do; it is built from its configuration (cheap, nothing imported) first.

:meth:`Tracker.run` then opens one tracked run and always closes it, with exit code 1 when the job fails.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from krossfuse.results.aggregate import CONDITIONS, SUBSET
from krossfuse.results.records import Record

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


def metric_key(record: Record) -> str:
    """Return the name of a measurement in a tracker, e.g. ``few_shot/accuracy/image/group/shots=4/form=I+T``."""
    parts = [record.probe, record.metric, record.modality, record.label_set]
    for name in (*CONDITIONS, SUBSET):
        if name != "split" and record.protocol.get(name, "") != "":
            parts.append(f"{name}={record.protocol[name]}")
    if record.protocol.get("split", "test") != "test":
        parts.append(str(record.protocol["split"]))
    return "/".join(part for part in parts if part)


class Tracker(ABC):
    """Where a run's configuration, measurements, tables and pictures are logged."""

    @contextmanager
    def run(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        name: str,
        group: str = "",
        job_type: str = "",
        tags: Sequence[str] = (),
    ) -> Iterator[Tracker]:
        """Open a tracked run and close it at the end, with exit code 1 if the block raises (or is interrupted).

        Args:
            folder: the run folder; whatever the tracker writes lies below it.
            config: the resolved configuration.
            name: of the job.
            group: what the job belongs to, e.g. its sweep (``results.naming.group_name``).
            job_type: what kind of job it is: ``run``, ``report``, ...
            tags: in addition to the tracker's own.

        Raises:
            ConfigError: the tracker cannot start (online without an account).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.start(folder, name=name, group=group, job_type=job_type, tags=tags)
        try:
            self.log_config(config)
            yield self
        except BaseException:
            self.finish(1)
            raise
        self.finish(0)

    @abstractmethod
    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Open a run; :meth:`run` does it, and closes it too."""

    @abstractmethod
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration."""

    @abstractmethod
    def log_records(self, records: Iterable[Record]) -> None:
        """Log measurements: each as a summary value named by :func:`metric_key`."""

    @abstractmethod
    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a table under a name."""

    @abstractmethod
    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Log pictures, each under its file's stem."""

    @abstractmethod
    def finish(self, exit_code: int = 0) -> None:
        """Close the run; closing twice is harmless."""

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return a Lightning logger that writes into the open run, for a ``Trainer``; False where there is none."""
        return False
