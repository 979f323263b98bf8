"""A search in place of a grid: Optuna proposes points, the sweep's own engine computes, resumes and reports them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from krossfuse.app.build import make
from krossfuse.app.checks import Job, check_jobs, job_of
from krossfuse.app.compose import Composer
from krossfuse.app.launching import Launching
from krossfuse.app.objectives import Objective, parse_objectives
from krossfuse.app.plan import Planner
from krossfuse.app.search_space import as_overrides, corners, split
from krossfuse.app.sweep import GridSweep, report_sweep
from krossfuse.app.sweep_folder import MULTIRUN, Outcome, alone_in, write_failed
from krossfuse.core.errors import ConfigError, KrossFuseError, check_positive, require
from krossfuse.core.logs import quieter

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

PACKAGE = ("optuna", "hydra/sweeper=search")


@dataclass
class _Running:
    """A trial while it runs.

    Attributes:
        trial: Optuna's.
        overrides: that make it, but its seed.
        values: by objective, what was measured with each seed so far.
        runs: its run folders.
        error: why it failed, where it did.
        told: whether the study knows how it ended.
    """

    trial: Trial
    overrides: list[str]
    values: list[list[float]]
    runs: list[str] = field(default_factory=list)
    error: str = ""
    told: bool = False


class SearchSweep(GridSweep):
    """Search what the command line sweeps, instead of computing all of it (``conf/hydra/sweeper/search.yaml``).

    Every point is a run folder like any other sweep's: checked before it runs, not computed again where it is there,
    reported at the end. The study is in a file of the sweep's folder, or in a storage that several processes share,
    each with a folder of its own. ``search.csv`` lists the trials.

    Args:
        trials: of the study, all processes together.
        objectives: see :func:`krossfuse.app.objectives.parse_objectives`.
        seeds: a trial is the mean over them; None = the seed of the configuration.
        sampler: node of an ``optuna.samplers`` class.
        pruner: node of an ``optuna.pruners`` class, which stops a trial between two seeds; None = none.
        parallel: trials that are proposed and launched together.
        storage: see :func:`krossfuse.app.study.open_storage`.
        study: its name; None = the sweep's name and folder.
        of_a_sweep: ``max_batch_size``, ``chunk``, ``resume``, ``dry_run`` as of :class:`GridSweep`.

    Raises:
        ConfigError: a value is impossible, or Optuna is not installed.
    """

    def __init__(
        self,
        *,
        trials: int,
        objectives: Any,
        sampler: Mapping[str, Any],
        seeds: Sequence[int] | None = None,
        pruner: Mapping[str, Any] | None = None,
        parallel: int = 1,
        storage: str | None = None,
        study: str | None = None,
        **of_a_sweep: Any,
    ) -> None:
        require(*PACKAGE, extra="optuna", instead="hydra/sweeper=krossfuse")
        from optuna.pruners import BasePruner, NopPruner
        from optuna.samplers import BaseSampler

        super().__init__(**of_a_sweep)
        for name, number in (("trials", trials), ("parallel", parallel)):
            check_positive(f"hydra.sweeper.{name}", number, integer=True)
        for name, text in (("storage", storage), ("study", study)):
            if text is not None and (not isinstance(text, str) or not text):
                raise ConfigError(f"hydra.sweeper.{name}={text!r} must be a text that is not empty")
        self.trials, self.parallel, self.storage, self.study_name = trials, parallel, storage, study
        self.objectives: list[Objective] = parse_objectives(_plain(objectives))
        chosen = _plain(seeds)
        if chosen is not None and not (isinstance(chosen, list) and chosen and all(isinstance(s, int) for s in chosen)):
            raise ConfigError(f"hydra.sweeper.seeds={chosen!r} must be a list of whole numbers, as in [0,1,2], or null")
        self._seeds: list[int | None] = chosen or [None]
        self.sampler: BaseSampler = make(_plain(sampler), "hydra.sweeper.sampler", BaseSampler)
        self.pruner: BasePruner = NopPruner()
        if pruner is not None:
            if len(self.objectives) > 1 or len(self._seeds) < 2:
                raise ConfigError("hydra.sweeper.pruner needs one objective and several seeds, between which it stops")
            self.pruner = make(_plain(pruner), "hydra.sweeper.pruner", BasePruner)

    def sweep(self, arguments: list[str]) -> None:
        """Check the space, run trials until the study has as many as it is to have, and report them.

        Raises:
            ConfigError: a value is impossible, or the study is another one.
            DataError: the data are not there, or an objective is not measured.
            SweepError: another sweep is in the folder.
            HydraException: no trial was completed.
        """
        from krossfuse.app.study import open_storage, open_study, take_up, write_table

        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        fixed, space = split(parser.parse_overrides(arguments))
        if self._seeds != [None] and any(o.partition("=")[0] == "seed" for o in [*fixed, *space]):
            raise ConfigError("seed= and hydra.sweeper.seeds= both name the seed of a trial; leave one out")
        self._compose = Composer(self.hydra_context.config_loader, self.config)
        self._check(fixed, space)
        folder = Path(self.config.hydra.sweep.dir)
        points = self.trials * len(self._seeds)
        if self.dry_run:
            print(f"{self.trials} trials, of {points} points at most, in {folder}")
            print("\n".join([f"  {key}: {distribution}" for key, distribution in space.items()]))
            return
        with alone_in(folder):
            OmegaConf.save(self.config, folder / MULTIRUN)
            name = self.study_name or f"{self.config.name} {folder.resolve().name}"
            parts = {"sampler": self.sampler, "pruner": self.pruner}
            study = open_study(open_storage(self.storage, folder), name, self.objectives, space, **parts)
            take_up(study, folder)
            self._folder, self._anchor, self._failed = folder, _first_point(folder), list[Outcome]()
            try:
                self._search(study, fixed, space)
            finally:
                write_table(study, folder)
                write_failed(folder, self._failed)
                if self._anchor is not None:
                    self._ask(report_sweep, self.config, folder)
            self._say_end(study)

    def _check(self, fixed: Sequence[str], space: Mapping[str, BaseDistribution]) -> None:
        """Compose and build what stands for the whole space, so that whatever is wrong with it is said first."""
        jobs: list[Job] = []
        for number, params in enumerate(corners(space)):
            composed = self._compose([*fixed, *as_overrides(params)], number)
            jobs.append(job_of(composed.plain, composed.choices))
            if number == 0:
                first = composed
        self._ask(check_jobs, jobs, False)
        for objective in self.objectives:
            if "probe" in first.plain:
                objective.check(list(first.plain["probe"] or {}))
            objective.directed()
        self._ask(check_jobs, jobs[:1], True)

    def _search(self, study: Study, fixed: Sequence[str], space: Mapping[str, BaseDistribution]) -> None:
        from krossfuse.app.study import ask, counted

        while (left := self.trials - counted(study)) > 0:
            batch = []
            for _ in range(min(self.parallel, left)):
                trial = ask(study, space, self._folder)
                batch.append(_Running(trial, [*fixed, *as_overrides(trial.params)], [[] for _ in self.objectives]))
            for step, seed in enumerate(self._seeds):
                self._compute([running for running in batch if not running.told], seed)
                for running in batch:
                    self._judge(study, running, step)

    def _compute(self, batch: Sequence[_Running], seed: int | None) -> None:
        """Compute a point of each trial, where it is not there already, and read what was measured."""
        from krossfuse.results.runs import read_run

        jobs: dict[int, list[str]] = {}
        for running in batch:
            job = [*running.overrides, *([] if seed is None else [f"seed={seed}"])]
            try:
                composed = self._compose(job, running.trial.number)
                self._ask(check_jobs, [job_of(composed.plain, composed.choices)], True)
                jobs[running.trial.number] = job
            except (KrossFuseError, HydraException) as error:  # a combination that is impossible
                running.error = str(error)
        if not jobs:
            return
        # A point of before stands for all others of the folder: to be looked at, not to be planned again.
        distinct = {tuple(job): None for job in ([self._anchor] if self._anchor else []) + list(jobs.values())}
        planner = Planner(self._compose, [list(job) for job in distinct], self._folder, self._ask)
        points = {tuple(point.overrides): point for point in planner.plan().points}
        wanted = {tuple(job) for job in jobs.values()}
        chosen = [point for job, point in points.items() if job in wanted and point.state != "done"]
        assert self.launcher is not None
        launching = Launching(
            self.launcher, self._folder, planner.tasks_of, per_task=self._per_task, at_a_time=self.max_batch_size
        )
        with quieter(Launching.__module__):  # a search says a line a trial, not two lines a launch
            outcomes = {tuple(outcome.overrides): outcome for outcome in launching(chosen)}
        if launching.stopped is not None:
            log.warning("stopped; the same command with hydra.sweeper.resume=%s goes on with the study", self._folder)
            raise launching.stopped
        if isinstance(launching.broken, OSError):
            raise launching.broken
        for running in batch:
            if running.trial.number not in jobs:
                continue
            job = jobs[running.trial.number]
            outcome = outcomes.get(tuple(job))
            if outcome is not None and outcome.state != "done":
                self._failed.append(outcome)
                running.error = outcome.error or "it was not reached"
                continue
            self._anchor = self._anchor or job
            place = points[tuple(job)].folder
            records = read_run(self._folder / place).records
            running.runs.append(place)
            for values, objective in zip(running.values, self.objectives, strict=True):
                values.append(objective.value(records))

    def _judge(self, study: Study, running: _Running, step: int) -> None:
        """Tell the study how a trial stands after a seed, and whether it ends here."""
        from optuna.trial import TrialState

        from krossfuse.app.study import RUNS

        if running.told:
            return
        trial, last = running.trial, step + 1 == len(self._seeds)
        trial.set_user_attr(RUNS, running.runs)
        running.told = True
        if running.error:
            log.warning("trial %d failed (%s): %s", trial.number, _shown(trial.params), running.error)
            study.tell(trial, state=TrialState.FAIL)
            return
        means = [fmean(values) for values in running.values]
        if last:
            study.tell(trial, means)
            said = self._named(means)
            log.info("trial %d of %d: %s (%s)", trial.number + 1, self.trials, said, _shown(trial.params))
            return
        running.told = False
        if len(means) == 1:
            trial.report(means[0], step)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                running.told = True
                log.info("trial %d pruned at %.6g (%s)", trial.number, means[0], _shown(trial.params))

    def _named(self, values: Sequence[float]) -> str:
        return ", ".join(f"{o.name} {value:.6g}" for o, value in zip(self.objectives, values, strict=True))

    def _say_end(self, study: Study) -> None:
        from krossfuse.app.study import RUNS, TABLE, best

        front = best(study)
        if not front:
            raise HydraException(f"no trial of {self._folder} was completed; its log says why")
        what = "best" if len(self.objectives) == 1 else f"Pareto front, {len(front)} trials"
        log.info("%s (all are in %s):", what, self._folder / TABLE)
        for trial in front:
            said, runs = self._named(trial.values), " ".join(trial.user_attrs.get(RUNS, []))
            log.info("  trial %d: %s: %s; runs %s", trial.number, said, _shown(trial.params), runs)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _shown(params: Mapping[str, Any]) -> str:
    return " ".join(as_overrides(params))


def _first_point(folder: Path) -> list[str] | None:
    """Return the overrides of a point that a folder holds already."""
    from krossfuse.results.points import read_point

    for path in sorted(folder.glob("*/point.json")):
        if found := read_point(path.parent):
            return found[1]
    return None
