"""One flat record a measurement, written as a line of JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from krossfuse.core.errors import ConfigError, DataError, did_you_mean
from krossfuse.core.metrics import Metric, find_metric
from krossfuse.results.errors import ResultsError

LINE_FIELDS: dict[str, Any] = {"alignment": str, "sketch": str, "kernel": str, "C": float | None}
_ABSENT = {"C": None}  # of the others: ""
"""Fields of a line of JSON that repeat what ``fusion_config`` says, for who reads the lines with other tools.

Everything inside reads ``fusion_config``; in lines of old, from before it held them, they are taken up into it.
"""


@dataclass(frozen=True)
class Record:
    """One measurement and everything that is needed to trace it.

    Attributes:
        data: name of the dataset.
        pair: name of the pair of encoders, from the configuration.
        fusion: name of the fusion method, from the configuration.
        dim: dimension of the fused embedding.
        probe: what measured it.
        metric: what was measured; ``declared`` has its unit, direction and bounds.
        modality: what it was measured on.
        seed: the run's seed.
        value: in the metric's unit (fractions, not percent).
        label_set: whose labels, or "".
        protocol: everything particular to the measurement (grid, selected value, prompts, shots, n of test items).
        fusion_config: the fusion's whole description: its options and what it chose from the data.
        config_digest: runs share it that differ in nothing but the seed, see :func:`krossfuse.results.digest`.
        method_digest: the same without the probe's options, so measurements of one method share it.
        versions: of krossfuse, torch and the other libraries that matter.
        seconds: wall time of the probe that measured it.
        deterministic: True when the seed cannot change the measurement.
        figure_id: unique within its run folder.
        declared: the metric's declaration (``Metric.described()``), so that who reads the record needs no plug-in.
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
    protocol: dict[str, Any] = field(default_factory=dict)
    fusion_config: dict[str, Any] = field(default_factory=dict)
    config_digest: str = ""
    method_digest: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    deterministic: bool = False
    figure_id: str = ""
    declared: dict[str, Any] = field(default_factory=dict)

    def declaration(self) -> Metric:
        """Return the metric: as the record declares it, or by its name; an unknown one is a plain number.

        A plain number has no unit, no direction and no bounds, so no value of it is better than another.
        """
        if self.declared:
            return Metric.from_description(self.declared)
        return find_metric(self.metric) or Metric(name=self.metric, unit="", better="", low=None)


_HINTS = typing.get_type_hints(Record)
_ALL_HINTS = _HINTS | LINE_FIELDS
_REQUIRED = {
    f.name
    for f in dataclasses.fields(Record)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
}


_ORIGINS = {hint: typing.get_origin(hint) for hint in _ALL_HINTS.values()}


def _fits(value: object, hint: Any) -> bool:
    origin = _ORIGINS[hint] if hint in _ORIGINS else typing.get_origin(hint)
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
        if name not in _ALL_HINTS:
            raise ResultsError(f"unknown field {name!r}{did_you_mean(name, _ALL_HINTS)}")
        if not _fits(value, _ALL_HINTS[name]):
            hint = getattr(_ALL_HINTS[name], "__name__", str(_ALL_HINTS[name]))
            raise ResultsError(f"field {name!r} must be {hint} (finite), got {value!r}")
    if missing := sorted(_REQUIRED - fields.keys()):
        raise ResultsError(f"fields {missing} are missing")
    record = record_of(fields)
    try:
        metric = record.declaration()
    except (ConfigError, TypeError) as error:
        raise ResultsError(f"field 'declared' is no metric: {error}") from None
    try:
        metric.check(record.value)
    except DataError as error:
        raise ResultsError(str(error)) from None
    return record


def record_of(fields: dict[str, Any]) -> Record:
    """Return the record of a line's fields, which were checked before."""
    described = {name: value for name in LINE_FIELDS if (value := fields.pop(name, None)) not in ("", None)}
    if described:
        fields["fusion_config"] = described | fields.get("fusion_config", {})
    return Record(**fields)


def dump_record(record: Record) -> str:
    """Write a record as one line of JSON, without the line's end.

    Raises:
        ResultsError: a value is not finite or cannot be written as JSON.
    """
    repeated = {}
    for name, hint in LINE_FIELDS.items():
        value = record.fusion_config.get(name)
        # A description may hold what the field cannot (the name of a rule that chooses C).
        repeated[name] = value if value is not None and _fits(value, hint) else _ABSENT.get(name, "")
    try:
        line = json.dumps(dataclasses.asdict(record) | repeated, allow_nan=False, ensure_ascii=False)
        parse_record(line)
    except (TypeError, ValueError) as error:
        name = f"{record.fusion}/{record.probe}/{record.metric}/{record.modality} (value {record.value!r})"
        raise ResultsError(f"measurement {name} cannot be recorded: {error}") from None
    return line
