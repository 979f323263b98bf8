"""Tasks of a sweep in several processes of this machine, which import while the sweep is still being planned."""

from __future__ import annotations

import copy
import gc
import logging
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import chain
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

from hydra import version
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from krossfuse.app.journal import TASK
from krossfuse.app.paths import CONFIG_DIR, take_up_user_code, user_config_dirs
from krossfuse.core.collector import FORKS
from krossfuse.core.errors import ConfigError
from krossfuse.core.processes import cores, end_with_parent
from krossfuse.core.stopping import listening

T = TypeVar("T")

IMPORTED = ("krossfuse.app.fuse_and_probe", "krossfuse.app.job", "krossfuse.app.task")
"""What nearly every job imports."""

BY_LOGGER = {"krossfuse.results.WandbTracker": ("wandb", "pandas")}
"""What a tracker imports when a run begins, or ends."""

FOR_A_TASK = ("scipy.special", "scipy.sparse.linalg", "scipy.sparse.csgraph")
"""What probes import when they measure; a process does while another one checks the points."""

FOR_THE_REPORT = ("krossfuse.report.page", "matplotlib.figure", "matplotlib.backends.backend_agg")
"""What a process imports when there is no task left for it."""

AT_ITS_START = {
    "OMP_NUM_THREADS": "1",  # no pool of threads is made as it imports; how many there are is said later
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",  # a file where the user stands that is named like a library is none
    FORKS: "1",
}
"""Variables of the process that all others are forked from."""


class MachineLaunch:
    """Launch tasks in processes of this machine; what ``hydra_plugins.krossfuse_sweeper`` makes Hydra's launcher of.

    The processes are forked from one that has imported what jobs need (:mod:`multiprocessing.forkserver`; where the
    system cannot fork, each imports for itself). It starts when the sweep does, and imports while the sweep is planned.
    This process imports none of it: what needs it, checks and the report, it asks the others (:meth:`ask`).
    Each has its share of the cores: ``cores / n_jobs`` threads, unless ``OMP_NUM_THREADS`` says how many.

    Args:
        n_jobs: processes; -1: one a core.
    """

    config: DictConfig | None = None
    hydra_context: HydraContext | None = None
    imported: Sequence[str] = IMPORTED
    _pool: ProcessPoolExecutor | None = None

    def __init__(self, n_jobs: int = -1) -> None:
        self.n_jobs = n_jobs if n_jobs > 0 else max(1, cores() + 1 + n_jobs)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Let the process that all others are forked from begin to import."""
        self.config, self.hydra_context = config, hydra_context
        self.imported = [*IMPORTED, *BY_LOGGER.get(str(config.get("logger", {}).get("_target_")), ())]
        if not config.hydra.sweeper.get("dry_run"):
            _context(self.imported)

    def ask(self, function: Callable[..., T], /, *arguments: Any) -> T:
        """Return what a function returns that one of the processes calls."""
        _flush()  # what is printed there comes after it
        first = self._pool is None
        with self._processes() as pool:
            answer = pool.submit(_answer, function, arguments)
            if first and self.n_jobs > 1:  # that process is busy now, and there will be a second one
                components = re.findall(r"_target_: (krossfuse\.\S+)", OmegaConf.to_yaml(self.config))
                pool.submit(_import, [*dict.fromkeys(components), *FOR_A_TASK])
            return answer.result()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run tasks, and return how each ended, in their order.

        Raises:
            ConfigError: the sweeper is not one of ours.
        """
        tasks = [_own_values(overrides) for overrides in job_overrides]
        workers = min(self.n_jobs, len(tasks))
        threads = None if "OMP_NUM_THREADS" in os.environ else max(1, cores() // workers)
        with self._processes() as pool:
            futures = [pool.submit(_compute, values, initial_job_idx + at, threads) for at, values in enumerate(tasks)]
            for _ in range(workers):
                pool.submit(_import, FOR_THE_REPORT)
            returned = [_returned(future) for future in futures]
            if broken := next((r for r in returned if isinstance(r._return_value, BrokenProcessPool)), None):
                raise broken._return_value
        return returned

    @contextmanager
    def _processes(self) -> Iterator[ProcessPoolExecutor]:
        """Give the processes, which start as they are needed and stay; if one was killed, others come next time."""
        if self._pool is None:
            sweep = pickle.dumps((self.hydra_context, self.config))
            setting = (sweep, str(version.getbase()), list(_unsaid()), multiprocessing.get_start_method())
            context = _context(self.imported)
            self._pool = ProcessPoolExecutor(self.n_jobs, mp_context=context, initializer=_start, initargs=setting)
        pool = self._pool
        try:
            yield pool
        except BrokenProcessPool:
            self._pool = None
            raise
        except Exception:
            raise
        except BaseException:  # Ctrl-C, or a signal
            self._pool = None
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(cancel_futures=True)
            raise


_SAID = re.compile(r"^\s*-\s*override\s+/?(hydra/launcher|logger):\s*(\S+)", re.MULTILINE)


def foresee(arguments: Sequence[str]) -> None:
    """Let the process that all others are forked from begin to import, if a command line, or its experiment, wants it.

    Else that begins when Hydra has composed the sweep, a second later. A wrong guess costs a process that ends with
    this one.
    """
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    if not given.keys() & {"-m", "--multirun"} or "hydra.sweeper.dry_run" in given:
        return
    said: dict[str, str] = {}
    for folder in (CONFIG_DIR, *user_config_dirs()):
        with suppress(OSError, ValueError):
            said |= _SAID.findall((folder / "experiment" / f"{given.get('experiment')}.yaml").read_text())
    said |= given
    if said.get("hydra/launcher") == "machine" and said.get("logger", "wandb") == "wandb":
        _context([*IMPORTED, *chain.from_iterable(BY_LOGGER.values())])


def _context(imported: Sequence[str]) -> BaseContext:
    """Return how processes are started; where they are forked, from one that runs then and begins to import."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # which not every system has

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["krossfuse.core.collector", *imported])
    with _surroundings(_unsaid()):
        forkserver.ensure_running()
    return context


def _unsaid() -> dict[str, str]:
    """Return the variables of :data:`AT_ITS_START` of which the user's surroundings say nothing."""
    return {name: value for name, value in AT_ITS_START.items() if name not in os.environ}


@contextmanager
def _surroundings(variables: Mapping[str, str]) -> Iterator[None]:
    """Let a process that is started meanwhile have variables that this one has not."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _own_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what tells a task from the others: its file and its folder."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = (TASK, "hydra.sweep.dir", "hydra.sweep.subdir")
    own = {o.key_or_group: o.value() for o in parsed if o.key_or_group in keys}
    if set(own) != set(keys):
        raise ConfigError("hydra/launcher=machine runs the tasks of krossfuse's own sweepers; this sweep has another")
    return own


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _import(names: Sequence[str]) -> None:
    """Import modules, or what components are of."""
    for name in names:
        with suppress(Exception):  # whoever needs it says what is wrong
            get_object(name)


def _returned(future: Future[None]) -> JobReturn:
    returned = JobReturn()
    error = future.exception()
    returned.status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    returned.return_value = error
    return returned


# What follows runs in the processes.


def _start(sweep: bytes, version_base: str, unsaid: Sequence[str], start_method: str) -> None:
    """Prepare a process: it ends with its parent, which alone hears Ctrl-C and says what becomes of the tasks."""
    end_with_parent()
    gc.freeze()  # see krossfuse.core.collector.FORKS
    gc.enable()
    # A loader's workers are started as everywhere: a process of a pool would start its own as it was started.
    multiprocessing.set_start_method(start_method, force=True)
    for name in unsaid:
        os.environ.pop(name, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup_globals()
    version.setbase(version_base)
    _sweep[:] = pickle.loads(sweep)
    _, master = _sweep
    with suppress(Exception):  # who opens a run says what is wrong
        tracker = instantiate(master.logger, _convert_="all")
        threading.Thread(target=_try, args=(tracker.foresee,), daemon=True).start()


def _try(call: Callable[[], None]) -> None:
    with suppress(Exception):
        call()


_sweep: list[Any] = []
"""Of a process: Hydra's context, and the configuration of the sweep whose tasks it runs."""


def _answer(function: Callable[..., T], arguments: Sequence[Any]) -> T:
    """Call a function as the process would that asks."""
    _, master = _sweep
    HydraConfig.instance().set_config(copy.deepcopy(master))  # which makes it read-only
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    take_up_user_code()
    try:
        return function(*arguments)
    except Exception as error:
        if (sent := sendable(error)) is error:
            raise
        raise sent from error
    finally:
        _flush()


def sendable(error: Exception) -> Exception:
    """Return an error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _compute(own: dict[str, Any], number: int, threads: int | None) -> None:
    """Run a task.

    Nothing is composed, since a task's points bring their configurations.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    context, master = _sweep
    config = copy.deepcopy(master)
    with read_write(config), open_dict(config):
        for key, value in own.items():
            OmegaConf.update(config, key, value)
        config.hydra.job.num, config.hydra.job.id = number, str(number)
        config.hydra.output_subdir = None  # the configuration is the sweep's
    try:
        with listening():
            returned = run_job(
                _run,
                config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=context,
            )
    except (SystemExit, KeyboardInterrupt):
        logging.shutdown()
        os._exit(1)  # a process of the pool would go on with the next task
    returned.return_value  # noqa: B018  raises what the task has raised


def _run(config: DictConfig) -> None:
    from krossfuse.app.task import run_task

    take_up_user_code()
    run_task(Path(config[TASK]))
