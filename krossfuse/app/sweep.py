"""Sweeps: the union of several grids, every job checked before the first one runs, one report over all of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from krossfuse.core.errors import ConfigError, check_positive

log = logging.getLogger(__name__)


def to_check(jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return the jobs that stand for all: a seed is checked once, and so is whatever else a job says.

    >>> to_check([["dim=1", "seed=0"], ["dim=1", "seed=1"], ["dim=2", "seed=0"], ["dim=2", "seed=1"]])
    [['dim=1', 'seed=0'], ['dim=1', 'seed=1'], ['dim=2', 'seed=0']]
    """
    chosen: list[Sequence[str]] = []
    seen: set[tuple[str, ...]] = set()
    for job in jobs:
        seeds = [override for override in job if override.startswith("seed=")]
        parts = {tuple(seeds), tuple(override for override in job if override not in seeds)}
        if not parts <= seen:
            chosen.append(job)
            seen |= parts
    return chosen


NEEDS = "_needs_"
"""The key of a grid under which stands what it needs."""


def what_can_run(grids: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the grids whose needs are met, without that key, and those that are left out.

    Raises:
        ConfigError: none is left.

    >>> what_can_run([{"fusion": "cca"}, {"_needs_": None, "data": "mnist"}, {"_needs_": "a/folder", "seed": "0,1"}])
    ([{'fusion': 'cca'}, {'seed': '0,1'}], [{'data': 'mnist'}])
    """
    kept: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for grid in grids:
        (kept if grid.get(NEEDS, True) else left_out).append({k: v for k, v in grid.items() if k != NEEDS})
    if not kept:
        raise ConfigError("hydra.sweeper.grids: every grid needs something that is not there; its file says what")
    return kept, left_out


class GridSweep:
    """Sweep the union of several grids; what ``hydra_plugins.krossfuse_sweeper`` puts before Hydra's own sweeper.

    Hydra's own sweeper knows one grid, so a method without seeds would run once for every seed. Here ``grids`` is
    a list of mappings in the form of ``hydra.sweeper.params``; the command line is added to each of them, and wins.
    A component's option (``fusion.dim``) that only some grids sweep is overridden in those alone: the others may hold
    methods without it. Equal jobs run once. All jobs run, even if some fail; then the sweep is reported and the
    failures are raised.

    A grid may say what it needs that not every machine has, e.g. ``_needs_: ${oc.env:KROSSFUSE_SENTEVAL,null}``: where
    that is null the grid is left out, and the log says so.
    """

    config: DictConfig | None
    launcher: Launcher | None
    hydra_context: HydraContext | None
    max_batch_size: int | None
    split_arguments: Callable[[list[Override], int | None], list[list[list[str]]]]
    _parse_config: Callable[[], list[str]]

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if max_batch_size is not None:
            check_positive("hydra.sweeper.max_batch_size", max_batch_size, integer=True)
        if isinstance(grids, str | Mapping) or not all(isinstance(grid, Mapping) for grid in grids or []):
            raise ConfigError(
                f"hydra.sweeper.grids={grids!r} must be a list of mappings of an override's key to its values, as in "
                "[{fusion: cross_modal}, {fusion: rp_krossfuse, seed: '0,1,2'}]"
            )
        super().__init__(max_batch_size, dict(params or {}))  # type: ignore[call-arg]
        self.grids, self.left_out = what_can_run(grids or [{}])

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of every job, without repeats, in the order of the grids."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        base = self._parse_config()
        given = parser.parse_overrides(arguments)
        swept = {key for grid in self.grids for key in grid if "." in key}
        jobs: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            mine = [o for o in given if o.get_key_element() not in swept or o.get_key_element() in grid]
            overrides = parser.parse_overrides([*base, *(f"{k}={v}" for k, v in grid.items())]) + mine
            for batch in self.split_arguments(overrides, None):
                for job in batch:
                    jobs[tuple(job)] = None
        return [list(job) for job in jobs]

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Check all jobs, run them, report the sweep, and raise if any failed."""
        from krossfuse.app.build import check

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        jobs = self.jobs(arguments)
        for keys in dict.fromkeys(", ".join(f"{k}={v}" for k, v in g.items() if k == "data") for g in self.left_out):
            log.info("left out, for want of what it needs (the experiment's file says how to name it): %s", keys)
        if not jobs:
            raise ConfigError(f"this sweep has no job: a key of {' '.join(arguments)} has no values")
        load = self.hydra_context.config_loader.load_sweep_config
        composed = [load(master_config=self.config, sweep_overrides=list(job)) for job in to_check(jobs)]
        for data in (False, True):  # a mistyped value is said before any file is looked at
            for cfg in composed:
                check(cfg, dict(cfg.hydra.runtime.choices), data=data)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")

        size = self.max_batch_size or len(jobs)
        done: list[Sequence[JobReturn]] = []
        for start in range(0, len(jobs), size):
            done.append(self.launcher.launch(jobs[start : start + size], initial_job_idx=start))
        returns = list(itertools.chain.from_iterable(done))
        failed = [(job, ret) for job, ret in zip(jobs, returns, strict=True) if ret.status is not JobStatus.COMPLETED]
        if len(failed) < len(jobs):
            report_sweep(self.config, folder)
        if failed:
            raise HydraException(f"{len(failed)} of {len(jobs)} jobs failed:\n" + "\n".join(_failures(failed)))
        return done


def _failures(failed: Sequence[tuple[Sequence[str], JobReturn]]) -> list[str]:
    """Return one line an error: what failed of it first, and how many others."""
    jobs: dict[str, list[str]] = {}
    for job, ret in failed:
        jobs.setdefault(f"{type(ret._return_value).__name__}: {ret._return_value}", []).append(" ".join(job))
    return [
        f"  {of_error[0]}{f' (and {len(of_error) - 1} more)' if len(of_error) > 1 else ''}: {error}"
        for error, of_error in jobs.items()
    ]


def report_sweep(cfg: DictConfig, folder: Path) -> None:
    """Report all jobs of a sweep together, and log the report as a tracker run of its own."""
    from krossfuse.app.build import make
    from krossfuse.app.job import log_report
    from krossfuse.report.page import report
    from krossfuse.results.naming import group_name

    tracker = make(OmegaConf.to_container(cfg.logger, resolve=True), "logger")
    written = report(folder)
    about = {"name": cfg.name, "overrides": list(cfg.hydra.overrides.task)}
    group = group_name(str(cfg.name), folder)
    with tracker.run(folder, about, name=f"{group} report", group=group, job_type="report", tags=["report"]) as tracked:
        log_report(tracked, written)
