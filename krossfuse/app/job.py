"""One job, whatever its kind: run folder, tracker, trainers, report; closed properly however it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from krossfuse.app.build import make, make_kind
from krossfuse.app.kind import Plain, Session
from krossfuse.core.trainers import TrainerFactory
from krossfuse.results.naming import group_name
from krossfuse.results.trackers import Tracker
from krossfuse.results.writer import RunWriter

log = logging.getLogger(__name__)


def run(
    plain: Plain,
    folder: Path,
    *,
    choices: Mapping[str, str],
    with_report: bool,
    overwrite: bool = False,
    sweep: Path | None = None,
) -> None:
    """Run one job into a folder.

    Args:
        plain: the resolved configuration (:func:`krossfuse.app.build.job_config`).
        folder: the run folder.
        choices: by configuration group, the chosen option.
        with_report: whether to report the run at its end (a sweep reports all its jobs together instead).
        overwrite: replace results that the folder already holds.
        sweep: the folder of the sweep that the job belongs to.

    Raises:
        KrossFuseError: what is wrong; measurements made before it are in the folder and in the tracker.
    """
    kind = make_kind(plain)
    built = kind.build(plain, choices)
    tracker: Tracker = make(plain["logger"], "logger", Tracker)  # type: ignore[type-abstract]
    label = kind.label(built)
    group = group_name(plain["name"], sweep or folder)
    with tracker.run(folder, plain, name=label, group=group, job_type="run", tags=kind.tags(built)) as tracked:
        with RunWriter(folder, overwrite=overwrite) as writer:
            writer.write_config(plain)
            trainers = TrainerFactory(plain["trainer"], logger=tracked.lightning_logger)
            kind.run(built, Session(label, folder, writer, tracked, trainers))
        if with_report and writer.records:  # a kind of job may measure nothing
            from krossfuse.report.page import report

            log_report(tracked, report(folder))


def log_report(tracker: Tracker, written: list[Path]) -> None:
    """Log the tables and pictures of a report."""
    import pandas as pd

    for path in written:
        if path.suffix == ".csv":
            tracker.log_table(path.stem, pd.read_csv(path))
    tracker.log_pictures(path for path in written if path.suffix == ".png")
    log.info("report: %s", written[0].parent)
