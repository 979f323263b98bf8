"""What a search optimises: measurements by their names in trackers, the dimension, or the probes' seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from krossfuse.core.errors import ConfigError, DataError, check_choice, did_you_mean
from krossfuse.core.metrics import find_metric
from krossfuse.results.records import Record

DIM, SECONDS = "dim", "seconds"
Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """One of them.

    Attributes:
        name: ``probe/metric/modality/label set/...``, ``dim`` or ``seconds`` (of the probes).
        direction: None = as the metric is declared, which is known once its probe is.
    """

    name: str
    direction: Direction | None = None

    def directed(self) -> Direction:
        """Return the direction.

        Raises:
            ConfigError: no metric of that name is declared, or neither direction of it is better.
        """
        if self.direction is not None:
            return self.direction
        if self.name in (DIM, SECONDS):
            return "minimize"
        parts = self.name.split("/")
        metric = find_metric(parts[1]) if len(parts) > 1 else None
        if metric is None or not metric.better:
            raise ConfigError(
                f"hydra.sweeper.objectives: which direction of {self.name!r} is better is not declared; say it: "
                f"{{{self.name}: maximize}}"
            )
        return "maximize" if metric.better == "higher" else "minimize"

    def check(self, probes: Sequence[str]) -> None:
        """Check the name, as far as it can be checked before anything is measured.

        Raises:
            ConfigError: it is of a probe that the job does not have.
        """
        probe = self.name.partition("/")[0]
        if self.name not in (DIM, SECONDS) and probe not in probes:
            known = [*probes, DIM, SECONDS]
            raise ConfigError(
                f"hydra.sweeper.objectives: {self.name!r} is of no probe of this job{did_you_mean(probe, known)}; they "
                f"begin with one of {list(probes)}, or are {DIM} or {SECONDS}"
            )

    def value(self, records: Sequence[Record]) -> float:
        """Return its value in a run.

        Raises:
            DataError: it was not measured.
        """
        if self.name == DIM and records:
            return float(records[0].dim)
        if self.name == SECONDS:
            return sum({record.probe: record.seconds for record in records}.values())
        from krossfuse.results.trackers.contents import metric_key

        values = [record.value for record in records if metric_key(record) == self.name]
        if not values:
            names = sorted({metric_key(record) for record in records})
            raise DataError(f"{self.name!r} was not measured{did_you_mean(self.name, names)}; what was: {names}")
        return fmean(values)


def parse_objectives(given: object) -> list[Objective]:
    """Return the objectives of a configuration: a list of names, or a mapping of names to directions.

    Raises:
        ConfigError: it is neither, or empty, or a direction is none.
    """
    if isinstance(given, str) or not given or not isinstance(given, Sequence | Mapping):
        raise ConfigError(
            f"hydra.sweeper.objectives={given!r} must be a list such as [linear_probe/accuracy/image, dim], or a "
            "mapping to maximize or minimize"
        )
    if isinstance(given, Mapping):
        named: dict[str, Direction | None] = {}
        for name, direction in given.items():
            check_choice(f"hydra.sweeper.objectives.{name}", direction, ["maximize", "minimize"])
            named[str(name)] = direction
    else:
        named = {str(name): None for name in given}
    return [Objective(name, direction) for name, direction in named.items()]
