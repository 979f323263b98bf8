"""One flat record a figure, written as a line of JSON.

A run folder holds::

    config.yaml      the resolved configuration
    results.jsonl    one Record a line; its presence makes a folder a run folder
    per_item.npz     test items' own scores, by ``Record.figure_id`` (for paired comparisons)
    PROBE.drawn.json what a probe drew by seed: the rows of each few-shot subset, by label set
    kernels.npz      arrays behind the pictures (kernel matrices, similarities), see ``results.snapshot``
    status.json      how the run ended; absent while it runs, and after it was killed
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.errors import KrossFuseError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG, RESULTS, PER_ITEM, STATUS = "config.yaml", "results.jsonl", "per_item.npz", "status.json"

State = Literal["finished", "failed", "unfinished"]


class ResultsError(KrossFuseError, ValueError):
    """Results cannot be written or read: a missing folder, a damaged line, an impossible value."""


@dataclass(frozen=True)
class Record:
    """One figure and everything that is needed to trace it.

    Attributes:
        data, pair, fusion: names from the configuration.
        dim: dimension of the fused embedding.
        alignment, sketch, kernel, C: of the fusion, or "" / None where it has none.
        probe, metric, modality, label_set: what was measured.
        seed: the run's seed.
        value: in the metric's unit (fractions, not percent).
        protocol: everything particular to the measurement (grid, selected value, prompts, shots, n of test items).
        fusion_config: the fusion's whole description.
        config_digest: digest of the resolved configuration without seed, paths and logger, so runs that differ in
            seed alone share it.
        versions: of krossfuse, torch and the other libraries that matter.
        seconds: wall time of the probe that measured it.
        deterministic: True when the seed cannot change the figure.
        figure_id: unique within its run folder.
    """

    data: str
    pair: str
    fusion: str
    dim: int
    probe: str
    metric: str
    modality: str
    seed: int
    value: float
    label_set: str = ""
    alignment: str = ""
    sketch: str = ""
    kernel: str = ""
    C: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    fusion_config: dict[str, Any] = field(default_factory=dict)
    config_digest: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    deterministic: bool = False
    figure_id: str = ""


_HINTS = typing.get_type_hints(Record)
_REQUIRED = {
    f.name
    for f in dataclasses.fields(Record)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
}


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return any(_fits(value, option) for option in typing.get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, origin or hint)


def parse_record(line: str) -> Record:
    """Read one line of ``results.jsonl``, checking every field's name and type.

    Raises:
        ResultsError: the line is no JSON object, or a field is unknown, missing or of another type.
    """
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ResultsError(f"not a line of JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ResultsError(f"expected a JSON object, got {type(fields).__name__}")
    for name, value in fields.items():
        if name not in _HINTS:
            raise ResultsError(f"unknown field {name!r}{did_you_mean(name, _HINTS)}")
        if not _fits(value, _HINTS[name]):
            hint = getattr(_HINTS[name], "__name__", str(_HINTS[name]))
            raise ResultsError(f"field {name!r} must be {hint} (finite), got {value!r}")
    if missing := sorted(_REQUIRED - fields.keys()):
        raise ResultsError(f"fields {missing} are missing")
    return Record(**fields)


def dump_record(record: Record) -> str:
    """Write a record as one line of JSON, without the line's end.

    Raises:
        ResultsError: a value is not finite or cannot be written as JSON.
    """
    try:
        line = json.dumps(dataclasses.asdict(record), allow_nan=False, ensure_ascii=False)
        parse_record(line)
    except (TypeError, ValueError) as error:
        name = f"{record.fusion}/{record.probe}/{record.metric}/{record.modality} (value {record.value!r})"
        raise ResultsError(f"figure {name} cannot be recorded: {error}") from None
    return line


def _replace(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Save arrays as one compressed ``.npz``, the whole file or nothing."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    _replace(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Load a file of :func:`save_arrays`.

    Raises:
        ResultsError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own on a truncated file
        raise ResultsError(f"{path} is damaged ({error}); run its job again") from error


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
        _replace(results, b"")
        self.records: list[Record] = []
        self._per_item: dict[str, NDArray[Any]] = {}
        self._ids: set[str] = set()

    def write_config(self, config: str | Mapping[str, Any] | DictConfig) -> None:
        """Write ``config.yaml`` from YAML text, a mapping, or an OmegaConf configuration (which is resolved)."""
        from omegaconf import OmegaConf

        if not isinstance(config, str):
            config = OmegaConf.to_yaml(OmegaConf.create(dict(config)), resolve=True)
        _replace(self.folder / CONFIG, config.encode())

    def append(self, record: Record, per_item: Any = None) -> Record:
        """Write one record and keep its items' own scores (anything that NumPy reads as one axis) for the end.

        Returns:
            the record as written: with a ``figure_id``, drawn from its place in the run where it had none.

        Raises:
            ResultsError: the value is not finite, the id is taken, or the scores are not one finite axis.
        """
        if not record.figure_id:
            record = dataclasses.replace(record, figure_id=f"f{len(self.records):05d}")
        if record.figure_id in self._ids:
            raise ResultsError(f"figure_id {record.figure_id!r} is already taken in {self.folder}")
        line = dump_record(record)
        if per_item is not None:
            self._per_item[record.figure_id] = _compact(record, np.asarray(per_item))
        descriptor = os.open(self.folder / RESULTS, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
        self._ids.add(record.figure_id)
        self.records.append(record)
        return record

    def arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Save named arrays as ``<name>.npz`` in the folder and return its path."""
        path = self.folder / f"{name}.npz"
        save_arrays(path, arrays)
        return path

    def write_drawn(self, probe: str, drawn: Mapping[str, Any]) -> Path:
        """Write what a probe drew by seed as ``<probe>.drawn.json`` and return its path."""
        path = self.folder / f"{probe}.drawn.json"
        _replace(path, json.dumps(drawn, allow_nan=False).encode() + b"\n")
        return path

    def finish(self, error: BaseException | None = None) -> None:
        """Write the items' scores and how the run ended."""
        if self._per_item:
            save_arrays(self.folder / PER_ITEM, self._per_item)
        state: dict[str, Any] = {"state": "failed" if error else "finished", "records": len(self.records)}
        if error:
            state["error"] = f"{type(error).__name__}: {error}"
        _replace(self.folder / STATUS, json.dumps(state).encode())

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.finish(error)


def _compact(record: Record, scores: NDArray[Any]) -> NDArray[Any]:
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ResultsError(
            f"per-item scores of {record.figure_id} ({record.probe}/{record.metric}) must be one axis of finite"
            f" numbers, got shape {scores.shape}"
        )
    if np.isin(scores, (0, 1)).all():
        return scores.astype(np.uint8)
    return scores.astype(np.float32)


@dataclass(frozen=True)
class Run:
    """A run folder, read back.

    Attributes:
        folder: where it is.
        name: its path below the folder that was asked for.
        records: its figures, in the order of writing.
        state: ``finished``; ``failed``; or ``unfinished`` (still running, or killed).
        error: the message of a failed run.
    """

    folder: Path
    name: str
    records: tuple[Record, ...]
    state: State
    error: str = ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if it was not written."""
        from omegaconf import OmegaConf

        path = self.folder / CONFIG
        return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path))) if path.exists() else {}

    @cached_property
    def config_text(self) -> str:
        """The text of ``config.yaml``; empty if it was not written."""
        path = self.folder / CONFIG
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @cached_property
    def per_item(self) -> dict[str, NDArray[Any]]:
        """Test items' own scores by ``figure_id``; empty if the run was killed before it wrote them."""
        path = self.folder / PER_ITEM
        return load_arrays(path) if path.exists() else {}


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read one run folder, checking every line.

    A last line without its end is what a job leaves that is killed in the middle of writing; it is skipped, and
    the run counts as unfinished.

    Raises:
        ResultsError: no such folder, no results in it, or a damaged line (named by file and number).
    """
    folder = Path(folder)
    path = folder / RESULTS
    if not folder.is_dir():
        raise ResultsError(f"no such folder: {folder}")
    if not path.is_file():
        raise ResultsError(f"{folder} is not a run folder: it holds no {RESULTS}")
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_record(line.decode()))
        except (ResultsError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path}, line {number}: {error}") from None
    state: State = "unfinished"
    message = ""
    if (status := folder / STATUS).is_file() and not torn:
        try:
            read = json.loads(status.read_text(encoding="utf-8"))
            state, message = read["state"], read.get("error", "")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResultsError(f"{status} is damaged ({error})") from None
    return Run(folder, name if name is not None else folder.name, tuple(records), state, message)


def _run_folders(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if RESULTS in files:
            yield Path(root)


def read_runs(folder: str | Path) -> list[Run]:
    """Read a run folder or a sweep folder (runs at any depth), in the order of their names.

    Runs that are failed or unfinished are read too: see :attr:`Run.state`.

    Raises:
        ResultsError: no such folder, no run below it, or a damaged line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultsError(f"no such folder: {folder}")
    runs = [
        read_run(found, folder.resolve().name if found == folder else str(found.relative_to(folder)))
        for found in _run_folders(folder)
    ]
    if not runs:
        raise ResultsError(
            f"no results in {folder}: neither it nor a folder below it holds {RESULTS};"
            " give the folder of a run or of a sweep"
        )
    return runs


OUTSIDE_DIGEST = frozenset({"seed", "paths", "logger", "hydra", "name", "experiment", "extraction", "store", "figures"})
"""Top keys of the configuration that change no figure's meaning."""


def config_digest(config: Mapping[str, Any] | DictConfig) -> str:
    """Return a short digest of a configuration: runs that differ in the seed alone share it.

    Left out are the keys of :data:`OUTSIDE_DIGEST` and every nested ``seed`` outside ``data`` (a method's or a
    probe's seed follows the run's; a dataset's split seed decides what is measured). Interpolated paths are
    replaced by their names, so that the digest is the same on every machine.

    >>> a = {"seed": 0, "fusion": {"dim": 500, "seed": 0}, "data": {"name": "openmoji"}}
    >>> b = {"seed": 1, "fusion": {"dim": 500, "seed": 1}, "data": {"name": "openmoji"}}
    >>> config_digest(a) == config_digest(b)
    True
    >>> config_digest(a) == config_digest({**a, "fusion": {"dim": 1000, "seed": 0}})
    False
    """
    from omegaconf import DictConfig, OmegaConf

    if isinstance(config, DictConfig):
        unresolved = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
        if isinstance(paths := unresolved.get("paths"), dict):
            unresolved["paths"] = {name: f"<{name}>" for name in paths}
        unresolved.pop("hydra", None)
        config = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(unresolved), resolve=True))
    kept = {
        name: node if name == "data" else _without_seeds(node)
        for name, node in config.items()
        if name not in OUTSIDE_DIGEST
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _without_seeds(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: _without_seeds(child) for name, child in node.items() if name != "seed"}
    if isinstance(node, (list, tuple)):
        return [_without_seeds(child) for child in node]
    return node


LIBRARIES = (
    "krossfuse",
    "torch",
    "torchvision",
    "torchmetrics",
    "pytorch-lightning",
    "open_clip_torch",
    "transformers",
    "timm",
    "sentence-transformers",
    "scikit-learn",
    "scipy",
    "numpy",
)


def versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the installed versions of the libraries that can change a figure, and Python's; nothing is imported."""
    found = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
