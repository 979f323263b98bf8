"""What a sweep has to do: its points, what its folder holds of them already, and what is left to compute."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from krossfuse.app.build import making_each_once, packed
from krossfuse.app.checks import Ask, Job, check_jobs, data_names, data_states, here
from krossfuse.app.compose import Composed, Composer
from krossfuse.app.task import Point
from krossfuse.core.errors import ConfigError
from krossfuse.core.files import write_whole
from krossfuse.results.digest import point_digest
from krossfuse.results.layout import RESULTS
from krossfuse.results.points import Identity, State, read_point, state_of

log = logging.getLogger(__name__)

KNOWN = ".points.jsonl"
"""File in a sweep's folder that saves composing what was composed before; nothing is lost with it."""

Overrides = Sequence[str]


def to_check(jobs: Sequence[Overrides]) -> list[Overrides]:
    """Return the jobs that stand for all: a seed is checked once, and so is whatever else a job says.

    >>> to_check([["dim=1", "seed=0"], ["dim=1", "seed=1"], ["dim=2", "seed=0"], ["dim=2", "seed=1"]])
    [['dim=1', 'seed=0'], ['dim=1', 'seed=1'], ['dim=2', 'seed=0']]
    """
    chosen: list[Overrides] = []
    seen: set[tuple[str, ...]] = set()
    for job in jobs:
        seeds = [override for override in job if override.startswith("seed=")]
        parts = {tuple(seeds), tuple(override for override in job if override not in seeds)}
        if not parts <= seen:
            chosen.append(job)
            seen |= parts
    return chosen


@dataclass
class _Job:
    """A job while it is planned: as much of it as is known without composing it, and the rest once it is."""

    number: int
    overrides: Overrides
    key: str
    config: str = ""  # digest
    data: str = ""  # which data, as the configuration names them
    subdir: str | None = None
    packed: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A point and what the sweep's folder holds of it."""

    number: int
    folder: str
    overrides: Overrides
    identity: Identity
    state: State


@dataclass(frozen=True)
class Plan:
    """What a sweep has to do.

    Attributes:
        folder: of the sweep.
        points: all of them, in the order of the grids.
        to_encode: what the data of the points need encoded first, one line a part.
        others: run folders of points that this sweep does not have.
    """

    folder: Path
    points: Sequence[Planned]
    to_encode: Sequence[str]
    others: Sequence[str]

    @property
    def missing(self) -> list[Planned]:
        """The points that have to be computed."""
        return [point for point in self.points if point.state != "done"]

    def counts(self) -> str:
        """Return how many points are in which state, in words."""
        counted = Counter(point.state for point in self.points)
        return ", ".join(f"{n} {state}" for state, n in sorted(counted.items(), key=lambda item: item[0] != "done"))


class Planner:
    """Plans one sweep.

    Args:
        composer: of its jobs.
        jobs: the overrides of each.
        folder: of the sweep, which may hold some of its points.
        ask: calls what needs the components themselves.
    """

    def __init__(self, composer: Composer, jobs: Sequence[Overrides], folder: Path, ask: Ask = here) -> None:
        self._compose, self._folder, self._ask = composer, folder, ask
        self._jobs = [_Job(number, job, composer.key(job)) for number, job in enumerate(jobs)]

    def plan(self) -> Plan:
        """Return what there is to do; every point that is to be computed has been checked.

        Raises:
            ConfigError: an impossible value; or the folder holds another study.
            DataError: data are not there, or not as they should be.
        """
        known = _known(self._folder / KNOWN)
        fresh = []
        for job in self._jobs:
            if found := known.get(job.key):
                job.config, job.data, job.subdir = found
            else:
                self._composed(job)
                fresh.append(job)
        with making_each_once():
            for job, name in zip(fresh, self._ask(data_names, [job.packed for job in fresh]), strict=True):
                job.data = name
            self._ask(check_jobs, self._to_check(fresh), False)  # a mistyped value is said before any file is looked at
            fingerprints, to_encode = self._data()
            identities = [Identity(job.config, fingerprints[job.data]) for job in self._jobs]
            points, others = self._placed(identities)
            left = [job for job, point in zip(self._jobs, points, strict=True) if point.state != "done"]
            self._ask(check_jobs, self._to_check(left), True)
        return Plan(self._folder, points, to_encode, others)

    def remember(self) -> None:
        """Write down what the plan took to find out, for a sweep that is started again."""
        lines = [json.dumps([job.key, job.config, job.data, job.subdir]) for job in self._jobs]
        write_whole(self._folder / KNOWN, "\n".join(lines).encode() + b"\n")

    def tasks_of(self, points: Sequence[Planned]) -> list[Point]:
        """Return points as their tasks get them."""
        made = []
        for point in points:
            job = self._composed(self._jobs[point.number])
            made.append(Point(point.number, point.folder, point.overrides, point.identity, job.packed, job.choices))
        return made

    def _composed(self, job: _Job) -> _Job:
        if not job.packed:
            composed: Composed = self._compose(job.overrides, job.number)
            job.packed, job.choices, job.subdir = packed(composed.plain), composed.choices, composed.subdir
            job.config = point_digest(composed.plain)
        return job

    def _to_check(self, jobs: Sequence[_Job]) -> list[Job]:
        """Return those of the jobs that stand for all."""
        by_overrides = {tuple(job.overrides): job for job in jobs}
        return [self._sent(by_overrides[tuple(overrides)]) for overrides in to_check([job.overrides for job in jobs])]

    def _sent(self, job: _Job) -> Job:
        self._composed(job)
        return job.packed, dict(job.choices)

    def _data(self) -> tuple[dict[str, str], list[str]]:
        """Return the fingerprint of each of the data, and what is to be encoded."""
        first: dict[str, _Job] = {}
        for job in self._jobs:
            first.setdefault(job.data, job)
        states = self._ask(data_states, [self._sent(job) for job in first.values()])
        fingerprints = {data: fingerprint for data, (fingerprint, _) in zip(first, states, strict=True)}
        to_encode = dict.fromkeys(line for _, lines in states for line in lines)
        return fingerprints, list(to_encode)

    def _placed(self, identities: Sequence[Identity]) -> tuple[list[Planned], list[str]]:
        """Return the points with their folders: where they are already, and a new one for each other."""
        held = dict(_points_in(self._folder))
        by_config: dict[str, str] = {}
        by_overrides: dict[tuple[str, ...], str] = {}
        for folder, (identity, overrides) in held.items():
            by_config[identity.config] = by_overrides[tuple(overrides)] = folder
        places: list[str | None] = [by_config.get(identity.config) for identity in identities]
        taken = {place for place in places if place is not None}
        for at, job in enumerate(self._jobs):  # the same job, under a configuration that has changed
            place = by_overrides.get(tuple(job.overrides))
            if places[at] is None and place is not None and place not in taken:
                places[at] = place
                taken.add(place)
        if held and not taken:
            raise ConfigError(
                f"{self._folder} holds another study: none of its {len(held)} points is one of this sweep's "
                f"{len(identities)}; name another folder (hydra.sweep.dir=), or another name="
            )
        occupied = taken | set(held)
        free = self._free_numbers(occupied)
        points = []
        for job, identity, found in zip(self._jobs, identities, places, strict=True):
            own = job.subdir or str(job.number)
            place = found or (own if own not in occupied else next(free))
            occupied.add(place)
            state = state_of(self._folder / place, identity)
            if found is None and state != "done" and (self._folder / place / RESULTS).exists():
                state = "damaged"  # of an older version, or with a point.json that cannot be read
            points.append(Planned(job.number, place, job.overrides, identity, state))
        return points, sorted(set(held) - {point.folder for point in points})

    def _free_numbers(self, taken: set[str]) -> Iterator[str]:
        number = len(self._jobs)
        while True:
            if str(number) not in taken and not (self._folder / str(number)).exists():
                yield str(number)
            number += 1


def _points_in(folder: Path) -> Iterator[tuple[str, tuple[Identity, list[str]]]]:
    """Yield the run folders of a sweep's folder that say which point they are."""
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("**/point.json") if _nested(folder) else folder.glob("*/point.json")):
        inside = path.parent.relative_to(folder)
        if not any(part.startswith(".") for part in inside.parts) and (found := read_point(path.parent)):
            yield inside.as_posix(), found


def _nested(folder: Path) -> bool:
    """Whether run folders may lie deeper than one level: only where a sweep's ``subdir`` says so."""
    return any("/" in (subdir or "") for _, _, subdir in _known(folder / KNOWN).values())


def _known(path: Path) -> dict[str, tuple[str, str, str | None]]:
    known: dict[str, tuple[str, str, str | None]] = {}
    try:
        for line in path.read_text().splitlines():
            key, config, data, subdir = json.loads(line)
            known[str(key)] = (str(config), str(data), subdir if subdir is None else str(subdir))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError):
        log.warning("%s is damaged; every point is composed anew", path)
        return {}
    return known
