"""What a kind of job is: fuse and probe, or another; one file each, chosen by the configuration group ``job``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from krossfuse.core.trainers import TrainerFactory
    from krossfuse.results.trackers import Tracker
    from krossfuse.results.writer import RunWriter

Plain = dict[str, Any]
"""A resolved configuration in plain containers."""


@dataclass(frozen=True)
class Session:
    """What a running job writes to and computes with.

    Attributes:
        label: the job's short name, for messages.
        folder: the run folder.
        writer: of records.
        tracker: with an open run.
        trainers: makes every Lightning Trainer: ``trainer=``, and the tracker's logger for what is trained.
    """

    label: str
    folder: Path
    writer: RunWriter
    tracker: Tracker
    trainers: TrainerFactory


class Kind(ABC):
    """A kind of job. ``Built`` below is whatever :meth:`build` returns; the caller only hands it on.

    Attributes:
        keys: by section (None: the top), the keys of the configuration that this kind reads beside the common ones.
    """

    keys: ClassVar[Mapping[str | None, tuple[str, ...]]]
    data_keys: ClassVar[tuple[str, ...] | None] = None
    """Top keys of the configuration that decide what :meth:`fingerprint` is; None: any may."""

    @abstractmethod
    def build(self, cfg: Plain, choices: Mapping[str, str]) -> Any:
        """Build and so validate every component; load no data and no weights.

        Args:
            cfg: the job's configuration.
            choices: by group, the chosen option (its name is the method's in the results).

        Raises:
            ConfigError: a value is impossible; the message names the group and the value.
        """

    @abstractmethod
    def check_data(self, built: Any) -> None:
        """Look at what can be known of the data before the first job of a sweep starts: paths, names, numbers of rows.

        Raises:
            ConfigError: a name that the data do not have.
            DataError: the data are not there.
        """

    def fingerprint(self, built: Any) -> str:
        """Return a digest of what decides the measurements beside the configuration: contents of files, weights.

        A sweep that is resumed computes a point anew if it has changed.
        """
        return ""

    def to_encode(self, built: Any) -> list[str]:
        """Return what a job would have to encode before it can start: one line a part; nothing is encoded."""
        return []

    @abstractmethod
    def label(self, built: Any) -> str:
        """Return the short name of a job: what tells it from the others of a sweep."""

    @abstractmethod
    def tags(self, built: Any) -> list[str]:
        """Return the tags of the job's tracker run."""

    @abstractmethod
    def run(self, built: Any, session: Session) -> None:
        """Run the job; every measurement is recorded as soon as it is there."""
