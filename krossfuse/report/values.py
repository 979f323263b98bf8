"""Values in the unit that their metric declares."""

from __future__ import annotations

import math

import pandas as pd

from krossfuse.core.metrics import Metric


def scale(metric: Metric) -> float:
    """Return what a value is multiplied by to be shown: fractions are shown in percent."""
    return 100.0 if metric.percent else 1.0


def digits(metric: Metric, value: float) -> int:
    """Return the decimals that a value is shown with."""
    if metric.percent:
        return 1
    size = abs(value)
    # Values of a small unit (seconds, epsilon) keep two digits that mean something.
    return 2 if size >= 0.1 or size == 0 or not math.isfinite(size) else min(8, 1 - math.floor(math.log10(size)))


def format_value(metric: Metric, value: float, half_width: float = float("nan"), mark: str = "") -> str:
    """Write a value with its interval in the metric's unit.

    >>> from krossfuse.core.metrics import metric
    >>> format_value(metric("accuracy"), 0.6124, 0.0081)
    '61.2 ±0.8'
    >>> format_value(metric("median_rank"), 3.0)
    '3.00'
    """
    factor, decimals = scale(metric), digits(metric, value)
    text = f"{value * factor:.{decimals}f}"
    return f"{text}{mark}" if pd.isna(half_width) else f"{text} ±{half_width * factor:.{decimals}f}{mark}"


def format_difference(metric: Metric, difference: float) -> str:
    """Write a difference in the metric's unit, with its sign.

    >>> from krossfuse.core.metrics import metric
    >>> format_difference(metric("accuracy"), -0.012)
    '-1.2'
    """
    return f"{difference * scale(metric):+.{digits(metric, difference)}f}"


def axis_label(metric: Metric, name: str) -> str:
    """Return what stands at an axis: the measurement's name and its unit."""
    unit = "%" if metric.percent else metric.unit
    name = name.replace("_", " ")
    return f"{name} ({unit})" if unit and unit != name else name


def within(metric: Metric, limits: tuple[float, float]) -> tuple[float, float]:
    """Return an axis's limits no further out than the metric can be, with room for a marker.

    >>> from krossfuse.core.metrics import metric
    >>> within(metric("accuracy"), (-50.0, 88.0))
    (-4.0, 88.0)
    """
    low, high = limits
    room = 0.04 * (scale(metric) if metric.high is not None and metric.low is not None else high - low)
    if metric.low is not None:
        low = max(low, metric.low * scale(metric) - room)
    if metric.high is not None:
        high = min(high, metric.high * scale(metric) + room)
    return low, high
