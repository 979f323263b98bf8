"""What a search varies: Hydra's words for sweeps (``choice``, ``range``, ``interval``) as Optuna's distributions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from krossfuse.core.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def split(overrides: Sequence[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Return the overrides that set one value, and by key the distributions of those that say several.

    Raises:
        ConfigError: nothing is searched, a key is given twice, or an interval is empty.
    """
    fixed: list[str] = []
    space: dict[str, BaseDistribution] = {}
    for override in overrides:
        if not override.is_sweep_override():
            assert override.input_line is not None
            fixed.append(override.input_line)
            continue
        key = override.get_key_element()
        if key in space:
            raise ConfigError(f"{key} is searched twice: {override.input_line}")
        space[key] = _distribution(override)
    if not space:
        raise ConfigError(
            "nothing is searched: say what varies, as in 'fusion.dim=choice(64,128)' or 'fusion.C=interval(.1,1)'"
        )
    return fixed, space


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    swept: Any = override.value()
    if isinstance(swept, ChoiceSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    log = "log" in swept.tags
    if unknown := sorted(swept.tags - {"log"}):
        raise ConfigError(f"{override.input_line}: no tag {unknown[0]!r}; the tags of a search are log")
    if isinstance(swept, RangeSweep):
        values = [float(value) for value in override.sweep_string_iterator()]
        if not values:
            raise ConfigError(f"{override.input_line} holds no value")
        whole = all(value.is_integer() for value in values)
        if log:
            raise ConfigError(f"{override.input_line}: a range has equal steps; say tag(log,interval(...))")
        low, high, step = min(values), max(values), abs(float(swept.step))
        if whole and step.is_integer():
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(low, high, step=step)
    assert isinstance(swept, IntervalSweep)
    start, end = swept.start, swept.end
    if start is None or end is None or not start < end:
        raise ConfigError(f"{override.input_line}: the interval must go up")
    if log and start <= 0:
        raise ConfigError(f"{override.input_line}: a logarithmic interval must begin above 0")
    if isinstance(start, int) and isinstance(end, int):
        return IntDistribution(start, end, log=log)
    return FloatDistribution(float(start), float(end), log=log)


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Return the parameters of a trial as overrides.

    >>> as_overrides({"fusion.dim": 64, "fusion.C": 0.1, "fusion": "cca"})
    ['fusion.dim=64', 'fusion.C=0.1', 'fusion=cca']
    """
    return [f"{key}={value}" for key, value in params.items()]


def corners(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """Yield parameters that name every key and every choice, and both ends of whatever else, each at least once.

    Whatever of a space cannot be composed is found with them before any trial runs.
    """
    ends = {key: _ends(distribution) for key, distribution in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, value in itertools.chain.from_iterable(zip(itertools.repeat(k), v[1:]) for k, v in ends.items()):
        yield {**first, key: value}


def _ends(distribution: Any) -> list[Any]:
    choices = getattr(distribution, "choices", None)
    return list(choices) if choices is not None else [distribution.low, distribution.high]
