"""Writes one run folder, so that a job that is killed, or a disk that fills up, loses nothing that was measured before.

A run folder holds::

    config.yaml      the resolved configuration
    results.jsonl    one Record a line; its presence makes a folder a run folder
    per_item.npz     test items' own scores, by ``Record.figure_id`` (for paired comparisons)
    PROBE.drawn.json what a probe drew by seed: the rows of each few-shot subset, by label set
    kernels.npz      arrays behind the pictures (kernel matrices, similarities), see ``results.snapshot``
    point.json       which point of a sweep it is, see ``results.points``
    status.json      how the run ended, and checksums of what it wrote; absent while it runs, and after it was killed
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.files import write_whole
from krossfuse.core.metrics import find_metric
from krossfuse.results.arrays import save_arrays
from krossfuse.results.errors import ResultsError
from krossfuse.results.layout import CONFIG, PER_ITEM, RESULTS, STATUS, checksums
from krossfuse.results.records import Record, dump_record

if TYPE_CHECKING:
    from omegaconf import DictConfig


class RunWriter:
    """Writes one run folder; use it as a context manager, so that the run's end is recorded too.

    A record is one write of a whole line: a killed job leaves whole lines and no ``status.json``.

    Args:
        folder: made if it is not there.
        overwrite: replace results that the folder already holds.

    Raises:
        ResultsError: the folder already holds results and ``overwrite`` is off.
    """

    def __init__(self, folder: str | Path, *, overwrite: bool = False) -> None:
        self.folder = Path(folder)
        results = self.folder / RESULTS
        if results.exists() and results.stat().st_size and not overwrite:
            raise ResultsError(f"{self.folder} already holds results; name another folder, or delete it first")
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (PER_ITEM, STATUS):
            (self.folder / name).unlink(missing_ok=True)
        write_whole(results, b"")
        self.records: list[Record] = []
        self._per_item: dict[str, NDArray[Any]] = {}
        self._ids: set[str] = set()

    def write_config(self, config: str | Mapping[str, Any] | DictConfig) -> None:
        """Write ``config.yaml`` from YAML text, a mapping, or an OmegaConf configuration (which is resolved)."""
        from omegaconf import OmegaConf

        if not isinstance(config, str):
            config = OmegaConf.to_yaml(OmegaConf.create(dict(config)), resolve=True)
        write_whole(self.folder / CONFIG, config.encode())

    def append(self, record: Record, per_item: Any = None) -> Record:
        """Write one record and keep its items' own scores (anything that NumPy reads as one axis) for the end.

        Returns:
            the record as written: with a ``figure_id``, drawn from its place in the run where it had none, and with
            the metric's declaration where the metric is known here.

        Raises:
            ResultsError: the value is not finite, the id is taken, the scores are not one finite axis, or the disk
                is full; the records before it are on disk, whole.
        """
        if not record.figure_id:
            record = dataclasses.replace(record, figure_id=f"f{len(self.records):05d}")
        if not record.declared and (metric := find_metric(record.metric)):
            record = dataclasses.replace(record, declared=metric.described())
        if record.figure_id in self._ids:
            raise ResultsError(f"figure_id {record.figure_id!r} is already taken in {self.folder}")
        line = dump_record(record)
        scores = None if per_item is None else _compact(record, np.asarray(per_item))
        self._append_line(line)
        if scores is not None:
            self._per_item[record.figure_id] = scores
        self._ids.add(record.figure_id)
        self.records.append(record)
        return record

    def _append_line(self, line: str) -> None:
        path = self.folder / RESULTS
        content = line.encode() + b"\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        size = os.fstat(descriptor).st_size
        try:
            while content:  # a disk that is nearly full takes a part of it
                content = content[os.write(descriptor, content) :]
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise ResultsError(
                f"{path}: {error.strerror}; the {len(self.records)} measurements before this one are kept"
            ) from error
        finally:
            os.close(descriptor)

    def write_drawn(self, probe: str, drawn: Mapping[str, Any]) -> Path:
        """Write what a probe drew by seed as ``<probe>.drawn.json`` and return its path."""
        path = self.folder / f"{probe}.drawn.json"
        write_whole(path, json.dumps(drawn, allow_nan=False).encode() + b"\n")
        return path

    def finish(self, error: BaseException | None = None) -> None:
        """Write the items' scores and how the run ended.

        Raises:
            ResultsError: the scores cannot be written (a full disk); the records are kept, and the run is a failed one.
        """
        unsaved: OSError | None = None
        if self._per_item:
            try:
                save_arrays(self.folder / PER_ITEM, self._per_item)
            except OSError as problem:
                unsaved = problem
        cause = error or unsaved
        state: dict[str, Any] = {"state": _state(cause), "records": len(self.records)}
        if cause is None:
            state["files"] = checksums(self.folder)
        else:
            state["error"] = f"{type(cause).__name__}: {cause}"
        try:
            write_whole(self.folder / STATUS, json.dumps(state).encode())
        except OSError as problem:
            unsaved = unsaved or problem
        if unsaved and error is None:
            raise ResultsError(
                f"{self.folder}: {unsaved.strerror}; its {len(self.records)} measurements are kept, the items' scores"
                " behind the paired comparisons are not"
            ) from unsaved

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.finish(error)


def _state(cause: BaseException | None) -> str:
    if cause is None:
        return "finished"
    return "failed" if isinstance(cause, Exception) else "unfinished"  # who was told to end has not failed


def _compact(record: Record, scores: NDArray[Any]) -> NDArray[Any]:
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ResultsError(
            f"per-item scores of {record.figure_id} ({record.probe}/{record.metric}) must be one axis of finite"
            f" numbers, got shape {scores.shape}"
        )
    if np.isin(scores, (0, 1)).all():
        return scores.astype(np.uint8)
    return scores.astype(np.float32)
