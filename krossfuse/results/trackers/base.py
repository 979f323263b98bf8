"""What every experiment tracker can do; it is built from its configuration (cheap, nothing imported) first.

:meth:`Tracker.run` then opens one tracked run and always closes it, with exit code 1 when the job fails.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from krossfuse.core.errors import ConfigError
from krossfuse.results.records import Record
from krossfuse.results.trackers.artifacts import Artifact

if TYPE_CHECKING:
    import pandas as pd
    from pytorch_lightning.loggers import Logger

log = logging.getLogger(__name__)

OF_A_LIGHTNING_LOGGER = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")


class Tracker(ABC):
    """Where a run's configuration, measurements, tables and pictures are logged.

    Attributes:
        keep: the kinds of artifacts that a run is to leave here (``artifacts.KINDS``).
    """

    keep: tuple[str, ...] = ()

    def foresee(self) -> None:  # noqa: B027  most trackers wait for nothing
        """Begin what the first run of this process would wait for; another thread may open that run meanwhile."""

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

        A tracker that fails once it has started is said and left out; what the block gets is guarded against it.

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
        guarded = GuardedTracker(self)
        guarded.start(folder, name=name, group=group, job_type=job_type, tags=tags)
        try:
            guarded.log_config(config)
            yield guarded
        except BaseException:
            guarded.finish(1)
            raise
        guarded.finish(0)

    @abstractmethod
    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Open a run; :meth:`run` does it, and closes it too."""

    @abstractmethod
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration."""

    @abstractmethod
    def log_records(self, records: Iterable[Record]) -> None:
        """Log measurements: each as a summary value named by ``contents.metric_key``."""

    @abstractmethod
    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a table under a name."""

    @abstractmethod
    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Log pictures, each under its file's stem."""

    def log_artifact(self, artifact: Artifact) -> None:
        """Keep files of the run.

        Raises:
            ConfigError: this kind of tracker keeps none (then its :attr:`keep` is empty, too).
        """
        raise ConfigError(f"{type(self).__name__} keeps no files; logger=wandb and logger=mlflow do ({artifact.name})")

    @abstractmethod
    def finish(self, exit_code: int = 0) -> None:
        """Close the run; closing twice is harmless."""

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return a Lightning logger that writes into the open run, for a ``Trainer``; False where there is none."""
        return False


class GuardedTracker(Tracker):
    """Passes everything on to another tracker until that one fails; says so once, and is silent from then on.

    The run folder holds every figure, so a job outlives what is only a copy of them.

    What a tracker cannot start with is an error of the configuration and is raised; once it runs, a service that dies,
    a connection that is lost or a full disk ends the tracking, never the job.

    Args:
        inner: the tracker that is guarded.
    """

    def __init__(self, inner: Tracker) -> None:
        self.inner, self.keep = inner, inner.keep
        self.failed: Exception | None = None

    def _attempt(self, what: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.failed is not None:
            return None
        try:
            return call(*args, **options)
        except Exception as error:
            self.failed = error
            log.warning(
                "%s failed at %s (%s: %s): nothing more of this run is tracked there; the run folder holds everything",
                type(self.inner).__name__,
                what,
                type(error).__name__,
                error,
            )
            return None

    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Open a run.

        Raises:
            ConfigError: the guarded tracker cannot start.
        """
        self.failed = None
        self.inner.start(folder, name=name, group=group, job_type=job_type, tags=tags)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration."""
        self._attempt("the configuration", self.inner.log_config, config)

    def log_records(self, records: Iterable[Record]) -> None:
        """Log measurements."""
        self._attempt("measurements", self.inner.log_records, records)

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a table under a name."""
        self._attempt(f"the table {name}", self.inner.log_table, name, table)

    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Log pictures."""
        self._attempt("pictures", self.inner.log_pictures, paths)

    def log_artifact(self, artifact: Artifact) -> None:
        """Keep files of the run."""
        self._attempt(f"the artifact {artifact.name}", self.inner.log_artifact, artifact)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; one that failed is closed too, as far as it lets itself be closed."""
        if self.failed is None:
            self._attempt("its end", self.inner.finish, exit_code)
            return
        try:
            self.inner.finish(exit_code)
        except Exception as error:  # its failure has been said
            log.debug("%s: %s", type(self.inner).__name__, error)

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return a Lightning logger that writes into the open run, guarded likewise; False where there is none."""
        logger: Logger | Literal[False] = self._attempt("a Lightning logger", self.inner.lightning_logger) or False
        if logger:
            for name in OF_A_LIGHTNING_LOGGER:
                setattr(logger, name, self._guarded(name, getattr(logger, name)))
        return logger

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: self._attempt(name, call, *args, **options)
