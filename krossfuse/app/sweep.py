"""Sweeps: the union of several grids, every job checked before the first one runs, one report over all of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from krossfuse.app.checks import Ask, here
from krossfuse.app.compose import Composer
from krossfuse.app.dry_run import print_plan
from krossfuse.app.launchers import check_launcher
from krossfuse.app.launching import Launching
from krossfuse.app.plan import Plan, Planned, Planner
from krossfuse.app.sweep_folder import (
    FAILED,
    MULTIRUN,
    JobsFailedError,
    Outcome,
    alone_in,
    read_failed,
    resumed_folder,
    write_failed,
)
from krossfuse.core.errors import ConfigError, check_choice, check_positive
from krossfuse.results.layout import RESULTS

log = logging.getLogger(__name__)


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
    failures are raised. What a folder holds of the sweep already is not computed again (:mod:`krossfuse.app.plan`).

    A grid may say what it needs that not every machine has, e.g. ``_needs_: ${oc.env:KROSSFUSE_SENTEVAL,null}``: where
    that is null the grid is left out, and the log says so.

    Args:
        max_batch_size: points that the launcher gets at a time; None = all.
        params: of Hydra's own sweeper.
        grids: see above.
        chunk: points a task (:mod:`krossfuse.app.task`); None = one, or all where the launcher is this process.
        resume: True = go on in the newest sweep folder of this name; a folder = in that one; False = in
            ``hydra.sweep.dir``, which is a new folder unless it is given.
        only: ``failed`` = of a sweep that is resumed, compute the points in its ``failed.jsonl`` alone.
        dry_run: say what there is to do, and do nothing.

    Raises:
        ConfigError: a value is impossible.
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
        *,
        chunk: int | None = None,
        resume: bool | str = False,
        only: str | None = None,
        dry_run: bool = False,
    ) -> None:
        for name, number in (("max_batch_size", max_batch_size), ("chunk", chunk)):
            if number is not None:
                check_positive(f"hydra.sweeper.{name}", number, integer=True)
        if isinstance(grids, str | Mapping) or not all(isinstance(grid, Mapping) for grid in grids or []):
            raise ConfigError(
                f"hydra.sweeper.grids={grids!r} must be a list of mappings of an override's key to its values, as in "
                "[{fusion: cross_modal}, {fusion: rp_krossfuse, seed: '0,1,2'}]"
            )
        if not isinstance(resume, bool | str) or resume == "":
            raise ConfigError(f"hydra.sweeper.resume={resume!r} must be true, false or the folder of a sweep")
        if only is not None:
            check_choice("hydra.sweeper.only", only, ["failed"])
        if not isinstance(dry_run, bool):
            raise ConfigError(f"hydra.sweeper.dry_run={dry_run!r} must be true or false")
        super().__init__(max_batch_size, dict(params or {}))  # type: ignore[call-arg]
        self.grids, self.left_out = what_can_run(grids or [{}])
        self.chunk, self.resume, self.only, self.dry_run = chunk, resume or only is not None, only, dry_run

    def setup(self, *, hydra_context: HydraContext, task_function: Any, config: DictConfig) -> None:
        """Choose the folder before the launcher is made, which may ask for it."""
        if self.resume:
            folder = resumed_folder(Path(config.hydra.sweep.dir), self.resume)
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.sweep.dir = str(folder)
        check_launcher(config.hydra.launcher)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)  # type: ignore[misc]

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

    def sweep(self, arguments: list[str]) -> None:
        """Check all jobs, run those that are not done, report the sweep, and raise if any failed.

        Raises:
            ConfigError: a value is impossible, there is no job, or the folder holds another study.
            DataError: data are not there, or not as they should be.
            SweepError: another sweep is in the folder.
            JobsFailedError: jobs failed; the others are done, and reported.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        jobs = self.jobs(arguments)
        for keys in dict.fromkeys(", ".join(f"{k}={v}" for k, v in g.items() if k == "data") for g in self.left_out):
            log.info("left out, for want of what it needs (the experiment's file says how to name it): %s", keys)
        if not jobs:
            raise ConfigError(f"this sweep has no job: a key of {' '.join(arguments)} has no values")
        folder = Path(self.config.hydra.sweep.dir)
        planner = Planner(Composer(self.hydra_context.config_loader, self.config), jobs, folder, self._ask)
        with contextlib.ExitStack() as held:
            if folder.exists() and not self.dry_run:
                held.enter_context(alone_in(folder))
            plan = planner.plan()
            chosen = self._chosen(plan)
            if self.dry_run:
                print_plan(plan, chosen, self._per_task)
                return
            if not folder.exists():
                held.enter_context(alone_in(folder))
            OmegaConf.save(self.config, folder / MULTIRUN)
            planner.remember()
            self._run(planner, plan, chosen)

    @property
    def _ask(self) -> Ask:
        """Where is asked what takes imports: of the launcher, if its processes have made them; else here."""
        ask: Ask = here if self.dry_run else getattr(self.launcher, "ask", here)
        return ask

    @property
    def _per_task(self) -> int | None:
        """How many points a task has; None: all."""
        here = type(self.launcher).__name__ == "BasicLauncher"
        return self.chunk or (None if here else 1)

    def _chosen(self, plan: Plan) -> list[Planned]:
        """Return the points that are to be computed now.

        Raises:
            ConfigError: there is no list of failed ones.
        """
        if self.only is None:
            return plan.missing
        failed = {outcome.folder for outcome in read_failed(plan.folder)}
        if not failed:
            raise ConfigError(f"hydra.sweeper.only={self.only}: no point of {plan.folder} failed (it has no {FAILED})")
        return [point for point in plan.missing if point.folder in failed]

    def _run(self, planner: Planner, plan: Plan, chosen: Sequence[Planned]) -> None:
        assert self.config is not None
        assert self.launcher is not None
        if any(point.state != "missing" for point in plan.points):
            log.info("%s: of %d points %s; %d to compute", plan.folder, len(plan.points), plan.counts(), len(chosen))
        for point in plan.points:
            if point.state == "damaged":
                log.warning("%s/%s is damaged, or of an older version; computed anew", plan.folder, point.folder)
        if plan.others:
            shown = ", ".join(plan.others[:5]) + (" ..." if len(plan.others) > 5 else "")
            log.warning("no points of this sweep, and reported all the same: %s in %s", shown, plan.folder)
        launching = Launching(
            self.launcher, plan.folder, planner.tasks_of, per_task=self._per_task, at_a_time=self.max_batch_size
        )
        outcomes = launching(chosen)
        write_failed(plan.folder, outcomes)
        done = len(plan.points) - len(plan.missing) + sum(outcome.state == "done" for outcome in outcomes)
        if done:
            self._ask(report_sweep, self.config, plan.folder)
        self._end(launching, plan, outcomes, done)

    def _end(self, launching: Launching, plan: Plan, outcomes: Sequence[Outcome], done: int) -> None:
        """Raise what must be raised once all is reported."""
        resumes = f"the same command with hydra.sweeper.resume={plan.folder} computes the others"
        if launching.stopped is not None:
            log.warning("stopped: %d of %d points are done, and reported; %s", done, len(plan.points), resumes)
            raise launching.stopped
        if isinstance(launching.broken, OSError):
            log.error("stopped: %d of %d points are done; when there is room, %s", done, len(plan.points), resumes)
            raise launching.broken
        failed = [outcome for outcome in outcomes if outcome.state != "done"]
        if failed:
            lines = "\n".join(_failures(failed))
            because = f"\n{type(launching.broken).__name__}: {launching.broken}" if launching.broken is not None else ""
            raise JobsFailedError(
                f"{len(failed)} of {len(plan.points)} jobs failed:\n{lines}{because}\n"
                f"{plan.folder / FAILED} lists them; the same command with hydra.sweeper.only=failed "
                f"hydra.sweeper.resume={plan.folder} runs them again"
            )


def _failures(failed: Sequence[Outcome]) -> list[str]:
    """Return one line an error: what failed of it first, and how many others."""
    jobs: dict[str, list[str]] = {}
    for outcome in failed:
        error = outcome.error or "it was not reached"
        jobs.setdefault(error, []).append(f"{outcome.folder} ({' '.join(outcome.overrides)})")
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

    if not any(file.stat().st_size for file in folder.rglob(RESULTS)):
        log.info("nothing was measured, so there is nothing to report")
        return
    tracker = make(OmegaConf.to_container(cfg.logger, resolve=True), "logger")
    written = report(folder)
    about = {"name": cfg.name, "overrides": list(cfg.hydra.overrides.task)}
    group = group_name(str(cfg.name), folder)
    with tracker.run(folder, about, name=f"{group} report", group=group, job_type="report", tags=["report"]) as tracked:
        log_report(tracked, written)
