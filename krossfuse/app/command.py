"""The console script: ``krossfuse`` runs or sweeps a configuration; the commands of :data:`COMMANDS` do the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import hydra
from omegaconf import DictConfig

from krossfuse.app.journal import TASK
from krossfuse.app.machine import foresee
from krossfuse.app.messages import friendly
from krossfuse.app.paths import CONFIG_DIR, take_up_user_code
from krossfuse.core.errors import ConfigError, did_you_mean

COMMANDS = {
    "report": "krossfuse.report.command",
    "dashboard": "krossfuse.report.serve",
    "store": "krossfuse.app.store",
    "list": "krossfuse.app.catalogue",
    "shards": "krossfuse.app.shards",
    "diagnose": "krossfuse.app.diagnose",
    "export": "krossfuse.app.export",
    "encode": "krossfuse.app.encode",
    "index": "krossfuse.app.index",
    "search": "krossfuse.app.search",
}


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def hydra_main(cfg: DictConfig) -> None:
    """Run one job; or a task, which is several jobs of a sweep: what a launcher calls."""
    from hydra.core.hydra_config import HydraConfig

    take_up_user_code()  # a launcher's worker is an interpreter of its own
    if TASK in cfg:
        from krossfuse.app.task import run_task

        run_task(Path(cfg[TASK]))
        return
    from krossfuse.app.build import job_config
    from krossfuse.app.job import run

    job = HydraConfig.get()
    run(job_config(cfg), Path(job.runtime.output_dir), choices=dict(job.runtime.choices), with_report=True)


HYDRAS_OWN = {"--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--package", "--cfg", "--info"}
"""Hydra's flags that take a value."""


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``--key=value`` as ``key=value``: so ``wandb agent`` hands over a point of its sweep.

    >>> as_overrides(["-m", "--fusion.dim=64", "--cfg=job", "seed=1", "--help"])
    ['-m', 'fusion.dim=64', '--cfg=job', 'seed=1', '--help']
    """
    return [
        a.removeprefix("--") if a.startswith("--") and "=" in a and a.partition("=")[0] not in HYDRAS_OWN else a
        for a in arguments
    ]


def main() -> None:
    """Dispatch to a sub-command, or to the Hydra application."""
    with friendly():
        arguments = take_up_user_code(sys.argv[1:])
        sys.argv[1:] = arguments
        if arguments and arguments[0] == "--version":
            from krossfuse import __version__

            print(f"krossfuse {__version__}")
            return
        if arguments in (["--help"], ["-h"]):
            from krossfuse.app.help import help_text

            print(help_text())
            return
        if arguments and arguments[0] in COMMANDS:
            sys.exit(import_module(COMMANDS[arguments[0]]).main(arguments[1:]))
        if arguments and arguments[0].isalpha():
            raise ConfigError(
                f"no command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}; the commands are "
                f"{', '.join(COMMANDS)}, and everything else is key=value"
            )
        sys.argv[1:] = as_overrides(arguments)
        foresee(sys.argv[1:])
        hydra_main()
