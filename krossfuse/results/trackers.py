"""Experiment trackers behind one small protocol: Weights & Biases, CSV files, none.

A tracker is built from its configuration (cheap, nothing imported), then :meth:`Tracker.run` opens one tracked run
and always closes it, with exit code 1 when the job fails.
"""

from __future__ import annotations

import csv
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.results.aggregate import CONDITIONS
from krossfuse.results.records import Record

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


def metric_key(record: Record) -> str:
    """Return the name of a figure in a tracker, e.g. ``few_shot/accuracy/image/group/shots=4/form=I+T``."""
    told = [record.probe, record.metric, record.modality, record.label_set]
    for name in (*CONDITIONS, "subset_seed"):
        if name != "split" and record.protocol.get(name, "") != "":
            told.append(f"{name}={record.protocol[name]}")
    if record.protocol.get("split", "test") != "test":
        told.append(str(record.protocol["split"]))
    return "/".join(part for part in told if part)


class Tracker(ABC):
    """Where a run's configuration, figures, tables and pictures are logged."""

    @contextmanager
    def run(
        self, folder: str | Path, config: Mapping[str, Any], *, name: str, group: str = "", tags: Sequence[str] = ()
    ) -> Iterator[Tracker]:
        """Open a tracked run and close it at the end, with exit code 1 if the block raises (or is interrupted).

        Args:
            folder: the run folder; whatever the tracker writes lies below it.
            config: the resolved configuration.
            name: of the job.
            group: what the job belongs to, e.g. its sweep.
            tags: in addition to the tracker's own.

        Raises:
            ConfigError: the tracker cannot start (online without an account).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.start(folder, name=name, group=group, tags=tags)
        try:
            self.log_config(config)
            yield self
        except BaseException:
            self.finish(1)
            raise
        self.finish(0)

    @abstractmethod
    def start(self, folder: Path, *, name: str, group: str = "", tags: Sequence[str] = ()) -> None:
        """Open a run; :meth:`run` does it, and closes it too."""

    @abstractmethod
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration."""

    @abstractmethod
    def log_records(self, records: Iterable[Record]) -> None:
        """Log figures: each as a summary value named by :func:`metric_key`."""

    @abstractmethod
    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a table under a name."""

    @abstractmethod
    def log_figures(self, paths: Iterable[str | Path]) -> None:
        """Log pictures, each under its file's stem."""

    @abstractmethod
    def finish(self, exit_code: int = 0) -> None:
        """Close the run; closing twice is harmless."""

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return a Lightning logger that writes into the open run, for a ``Trainer``; False where there is none."""
        return False


class NoTracker(Tracker):
    """Logs nothing."""

    def start(self, folder: Path, *, name: str, group: str = "", tags: Sequence[str] = ()) -> None:
        """Do nothing."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_records(self, records: Iterable[Record]) -> None:
        """Do nothing."""

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Do nothing."""

    def log_figures(self, paths: Iterable[str | Path]) -> None:
        """Do nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing."""


class CsvTracker(Tracker):
    """Writes ``tracker/metrics.csv`` (configuration, figures, exit code), a CSV a table, and the pictures."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def start(self, folder: Path, *, name: str, group: str = "", tags: Sequence[str] = ()) -> None:
        """Make the folder ``tracker`` in the run folder."""
        self._folder = folder / "tracker"
        self._folder.mkdir(exist_ok=True)
        (self._folder / "metrics.csv").write_text("key,value\n", encoding="utf-8")
        self._append([("name", name), ("group", group), ("tags", " ".join(tags))])

    def _append(self, rows: Iterable[tuple[str, Any]]) -> None:
        with (self._open() / "metrics.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def _open(self) -> Path:
        if self._folder is None:
            raise ConfigError("the CSV tracker has no open run; use `with tracker.run(folder, config, name=...)`")
        return self._folder

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration's leaves as ``config/<dotted key>``."""
        self._append((f"config/{key}", value) for key, value in _leaves(config))

    def log_records(self, records: Iterable[Record]) -> None:
        """Append a row a figure."""
        self._append((metric_key(record), record.value) for record in records)

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Write ``<name>.csv``."""
        table.to_csv(self._open() / f"{name}.csv", index=False)

    def log_figures(self, paths: Iterable[str | Path]) -> None:
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

        return CSVLogger(self._open(), name="lightning", version="")


class WandbTracker(Tracker):
    """Logs to Weights & Biases, one W&B run a job.

    Args:
        mode: ``offline`` (the run lies in the run folder and can be synced later), ``online`` or ``disabled``.
        project: the project's name.
        entity: the account or team, or None for the default one.
        group: or None for the one that the job gives.
        name: or None for the one that the job gives.
        tags: of every run.

    Raises:
        ConfigError: no such mode, or an empty project.
    """

    def __init__(
        self,
        *,
        mode: str = "offline",
        project: str = "krossfuse",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.mode = check_choice("logger.mode", mode, ["offline", "online", "disabled"])
        if not isinstance(project, str) or not project:
            raise ConfigError(f"logger.project={project!r} must be a project's name")
        if isinstance(tags, str):
            raise ConfigError(f"logger.tags={tags!r} must be a list, e.g. [{tags}]")
        self.project, self.entity, self.group, self.name, self.tags = project, entity, group, name, list(tags)
        self._run: Any = None

    def start(self, folder: Path, *, name: str, group: str = "", tags: Sequence[str] = ()) -> None:
        """Open a W&B run whose files lie in ``folder/wandb``.

        Raises:
            ConfigError: W&B refuses, e.g. online without an account.
        """
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        settings = wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            # The working directory is the user's: its code and repository are none of this run's business.
            disable_git=True,
            disable_code=True,
            # A quarter of a second a job; the versions that matter are in every record.
            x_save_requirements=False,
        )
        try:
            self._run = wandb.init(
                mode=self.mode,  # type: ignore[arg-type]
                dir=str(folder),
                project=self.project,
                entity=self.entity,
                group=self.group or group or None,
                name=self.name or name,
                tags=[*self.tags, *tags],
                settings=settings,
                reinit="create_new",
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"Weights & Biases did not start with logger.mode={self.mode}: {error}"
                " (logger.mode=offline needs no account; logger=csv and logger=none need no W&B)"
            ) from error

    def _open(self) -> Any:
        if self._run is None:
            raise ConfigError("the W&B tracker has no open run; use `with tracker.run(folder, config, name=...)`")
        return self._run

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the configuration as the run's config."""
        self._open().config.update(dict(config))

    def log_records(self, records: Iterable[Record]) -> None:
        """Log figures as summary values, and all of them as the table ``records``."""
        records = list(records)
        run = self._open()
        run.summary.update({metric_key(record): record.value for record in records})
        columns = ("data", "pair", "fusion", "dim", "alignment", "sketch", "C", "seed")
        rows = [{c: getattr(r, c) for c in columns} | {"figure": metric_key(r), "value": r.value} for r in records]
        if rows:
            self.log_table("records", pd.DataFrame(rows))

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a data frame as a ``wandb.Table``."""
        import wandb

        # W&B types a column by its first value, so a column of mixed types is logged as text.
        plain = table.apply(lambda column: column if column.dtype.kind in "ifb" else column.astype(str))
        self._open().log({name: wandb.Table(dataframe=plain)})

    def log_figures(self, paths: Iterable[str | Path]) -> None:
        """Log pictures as images (PNG; other formats are left to the run folder)."""
        import wandb

        images = {Path(path).stem: wandb.Image(str(path)) for path in paths if Path(path).suffix == ".png"}
        if images:
            self._open().log(images)

    def finish(self, exit_code: int = 0) -> None:
        """Close the W&B run with the exit code."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=exit_code)

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return Lightning's WandbLogger over the open run."""
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(experiment=self._open())


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
