"""What is measured: the unit, the direction and the bounds of every metric, declared once.

Tables, pictures and comparisons ask here instead of guessing from a metric's name. A metric of one's own is declared
beside the probe that measures it::

    declare(Metric("fpr95", unit="fraction", better="lower", low=0, high=1))
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from krossfuse.core.errors import ConfigError, DataError, did_you_mean

Direction = Literal["higher", "lower", ""]
UNITS = ("fraction", "", "bits", "bits/coordinate", "seconds", "epsilon")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A declared metric.

    Attributes:
        name: as in the records. ``{k}`` stands for a whole number: ``recall@{k}`` declares ``recall@1``, ``recall@10``.
        unit: ``fraction`` (shown in percent), ``""`` (a plain number), or another of :data:`UNITS`.
        better: which values are better, ``higher`` or ``lower``; ``""`` where neither is.
        low: the smallest possible value; None if there is no bound.
        high: the largest possible value; None if there is no bound.
        relative: whether it compares with the cross-modal encoder by definition, so that a difference to that
            encoder's own value says nothing.

    Raises:
        ConfigError: an unknown unit or direction, or bounds in the wrong order.
    """

    name: str
    unit: str = "fraction"
    better: Direction = "higher"
    low: float | None = 0.0
    high: float | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"metric {self.name!r}: unit={self.unit!r} is not one of {list(UNITS)}")
        if self.better not in ("higher", "lower", ""):
            raise ConfigError(f"metric {self.name!r}: better={self.better!r} must be 'higher', 'lower' or ''")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"metric {self.name!r}: low={self.low} must be below high={self.high}")

    @property
    def percent(self) -> bool:
        """Whether it is shown in percent."""
        return self.unit == "fraction"

    def check(self, value: float) -> float:
        """Return ``value`` if it is finite and within the bounds (up to rounding).

        Raises:
            DataError: it is not; the message names the metric, the value and the bounds.
        """
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        if not math.isfinite(value) or not low - 1e-6 <= value <= high + 1e-6:
            raise DataError(f"metric {self.name!r} cannot be {value!r}: its values are finite, from {low} to {high}")
        return value

    def described(self) -> dict[str, Any]:
        """Return the declaration as a JSON-able mapping, for the records."""
        return asdict(self)

    @staticmethod
    def from_description(described: Mapping[str, Any]) -> Metric:
        """Return the metric of :meth:`described`."""
        return Metric(**described)


def _fraction(name: str, **options: Any) -> Metric:
    return Metric(name=name, low=0.0, high=1.0, **options)


_EXACT: dict[str, Metric] = {}
_PATTERNS: dict[str, tuple[re.Pattern[str], Metric]] = {}


def declare(metric: Metric) -> Metric:
    """Make a metric known; declaring it again in the same words does nothing.

    Raises:
        ConfigError: another metric has the name.
    """
    before = _EXACT.get(metric.name) or (_PATTERNS[metric.name][1] if metric.name in _PATTERNS else None)
    if before not in (None, metric):
        raise ConfigError(f"metric {metric.name!r} is already declared otherwise: {before}")
    if "{k}" in metric.name:
        pattern = re.escape(metric.name).replace(re.escape("{k}"), r"\d+")
        _PATTERNS[metric.name] = re.compile(pattern), metric
    else:
        _EXACT[metric.name] = metric
    return metric


def find_metric(name: str) -> Metric | None:
    """Return the metric that a record's ``metric`` names, or None if nobody declared it.

    >>> find_metric("recall@10").percent, find_metric("median_rank").better
    (True, 'lower')
    """
    if name in _EXACT:
        return _EXACT[name]
    return next((metric for pattern, metric in _PATTERNS.values() if pattern.fullmatch(name)), None)


def metric(name: str) -> Metric:
    """Return the metric that a measurement names.

    Raises:
        ConfigError: nobody declared it; the message names the nearest and the way out.
    """
    found = find_metric(name)
    if found is None:
        raise ConfigError(
            f"metric {name!r} is not declared{did_you_mean(name, [*_EXACT, *_PATTERNS])}; declare its unit, direction "
            "and bounds with krossfuse.core.metrics.declare(Metric(...))"
        )
    return found


for _metric in (
    _fraction("accuracy"),
    _fraction("top5_accuracy"),
    _fraction("mean_per_class_accuracy"),
    _fraction("{k}nn_accuracy"),
    _fraction("fold_accuracy"),
    _fraction("shifted_accuracy"),
    _fraction("map"),
    _fraction("mean_average_precision"),
    _fraction("recall@{k}"),
    Metric(name="median_rank", unit="", better="lower", low=1.0),
    _fraction("nmi"),
    Metric(name="ami", low=-1.0, high=1.0),
    Metric(name="ari", low=-1.0, high=1.0),
    _fraction("matched_accuracy"),
    _fraction("agreement", relative=True),
    _fraction("zero_shot_agreement", relative=True),
    Metric(name="spearman", unit="", low=-1.0, high=1.0, relative=True),
    Metric(name="modality_gap", unit="", better="", low=0.0, high=2.0, relative=True),
):
    declare(_metric)
