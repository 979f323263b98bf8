"""What Hydra's launchers leave to be done: their options checked, their extras named, their killed jobs survived."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from krossfuse.core.errors import ConfigError, check_positive

EXTRAS = {
    "joblib": "joblib",
    "ray": "ray",
    "ray_aws": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
}
"""By launcher of Hydra's, the extra of this package that brings it."""

POSITIVE = ("timeout_min", "cpus_per_task", "tasks_per_node", "mem_gb", "nodes", "array_parallelism")


def why_missing(launcher: str) -> str | None:
    """Return what to install for a launcher that Hydra does not find; None if it is none that we know of."""
    if (extra := EXTRAS.get(launcher)) is None:
        return None
    return f"hydra/launcher: {launcher} is not installed; it comes with an extra: pip install 'krossfuse[{extra}]'"


def check_launcher(node: Mapping[str, Any]) -> None:
    """Check the numbers that a launcher would find impossible only when it starts.

    Raises:
        ConfigError: no number of processes, or a limit that is not positive.
    """
    jobs = node.get("n_jobs", 1)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs == 0:
        raise ConfigError(f"hydra.launcher.n_jobs={jobs!r} must be a number of processes, or -1 for one a core")
    for key in POSITIVE:
        if (value := node.get(key)) is not None:
            check_positive(f"hydra.launcher.{key}", value, integer=True)


@contextmanager
def collecting_each_job() -> Iterator[None]:
    """Let submitit's launchers return the error of a job that was killed, in place of raising it before all others."""
    submitit = sys.modules.get("submitit") or _submitit()
    if submitit is None:
        yield
        return
    job: Any = submitit.Job
    results = job.results

    def kept(self: Any) -> list[Any]:
        try:
            collected: list[Any] = results(self)
        except Exception as error:
            failed = JobReturn(status=JobStatus.FAILED)
            failed.return_value = error
            return [failed]
        return collected

    job.results = kept
    try:
        yield
    finally:
        job.results = results


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        return None
    return submitit
