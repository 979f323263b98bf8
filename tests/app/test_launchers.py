"""Sweeps under launchers: several points a task, a worker killed in the middle, and what cannot be launched."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import sweeps

from krossfuse.app.launchers import check_launcher, why_missing
from krossfuse.app.launching import quoted
from krossfuse.core.errors import ConfigError

PLUGINS = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}

DEADLY = """
import os, signal
from pathlib import Path
from krossfuse import Concatenation


class Deadly(Concatenation):
    def __init__(self, *, inputs, seed, **more):
        super().__init__(inputs=inputs, **more)
        self.own_seed = seed

    def fit(self, *args, **kwargs):
        if self.own_seed == 1 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(*args, **kwargs)
"""


def installed(launcher: str) -> bool:
    return importlib.util.find_spec(f"hydra_plugins.{PLUGINS[launcher]}") is not None


def launcher(name: str, *options: str) -> pytest.param:  # type: ignore[valid-type]
    reason = f"the extra of hydra/launcher={name} is not installed (make test-launchers)"
    return pytest.param(
        [f"hydra/launcher={name}", *options], id=name, marks=pytest.mark.skipif(not installed(name), reason=reason)
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [launcher("joblib", "hydra.launcher.n_jobs=2"), launcher("submitit_local")])
def test_a_killed_worker_loses_its_point_alone(options: list[str], tmp_path: Path) -> None:
    sweeps.made(tmp_path)
    (tmp_path / "mine.py").write_text(DEADLY)
    grid = [
        "fusion=concatenation",
        "fusion.missing=zeros",
        "fusion._target_=mine.Deadly",
        "seed=range(6)",
        "hydra.sweeper.chunk=3",
    ]
    said = sweeps.finish(tmp_path, *grid, *options, "hydra.sweep.dir=s", status=2)
    lost = {outcome["folder"] for outcome in sweeps.outcomes(tmp_path / "s")}
    assert "1" in lost, said
    assert len(lost) <= 2, "joblib ends the other worker too"
    assert "its process ended in the middle" in said
    assert "seed=1" in said
    before = sweeps.finished(tmp_path / "s")
    assert set(before) == {str(number) for number in range(6)} - lost
    assert (tmp_path / "s/report/results.csv").is_file()
    sweeps.finish(tmp_path, *grid, *options, "hydra.sweep.dir=s", "hydra.sweeper.only=failed")
    assert before.items() <= sweeps.finished(tmp_path / "s").items()
    assert sweeps.outcomes(tmp_path / "s") == []
    sweeps.finish(tmp_path, *grid, "hydra.sweep.dir=whole")
    assert sweeps.values(tmp_path / "s") == sweeps.values(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("options", [launcher("ray", "+hydra.launcher.ray.init.num_cpus=1")])
def test_ray_computes_the_same(options: list[str], tmp_path: Path) -> None:
    sweeps.made(tmp_path)
    grid = ["fusion.dim=24", "seed=range(4)", "hydra.sweeper.chunk=2"]
    assert "4 points in 2 tasks of up to 2 by RayLauncher" in sweeps.finish(
        tmp_path, *grid, *options, "hydra.sweep.dir=s"
    )
    sweeps.finish(tmp_path, *grid, "hydra.sweep.dir=whole")
    assert sweeps.values(tmp_path / "s") == sweeps.values(tmp_path / "whole")


@pytest.mark.slow
def test_several_tasks_in_this_process_compute_the_same(tmp_path: Path) -> None:
    sweeps.made(tmp_path)
    grid = ["fusion.dim=24", "seed=range(5)"]
    said = sweeps.finish(
        tmp_path, *grid, "hydra.sweep.dir=s", "hydra.sweeper.chunk=2", "hydra.sweeper.max_batch_size=4"
    )
    assert "4 points in 2 tasks of up to 2" in said
    assert "1 point in 1 task of up to 2" in said
    sweeps.finish(tmp_path, *grid, "hydra.sweep.dir=whole")
    assert sweeps.values(tmp_path / "s") == sweeps.values(tmp_path / "whole")


@pytest.mark.parametrize(("preset", "name"), [("machine", "joblib"), ("slurm_cpu", "submitit_slurm"),
                                              ("slurm_gpu", "submitit_slurm"), ("ray_cluster", "ray")])  # fmt: skip
def test_a_preset_composes_or_names_its_extra(preset: str, name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "krossfuse", f"hydra/launcher={preset}", "--cfg", "hydra", "-p", "hydra.launcher"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    if installed("submitit_local" if name.startswith("submitit") else name):
        assert done.returncode == 0, done.stderr
        assert "_target_" in done.stdout
    else:
        assert done.returncode == 2
        assert str(why_missing(name)) in done.stderr


@pytest.mark.parametrize("node", [{"n_jobs": 0}, {"n_jobs": "four"}, {"timeout_min": 0}, {"array_parallelism": -1}])
def test_numbers_that_cannot_be(node: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="hydra.launcher."):
        check_launcher(node)


@pytest.mark.parametrize("text", ["plain", "it's", "a,b c", "${not}", "100%", "[x]", "a\\b", "ends in \\"])
def test_a_path_survives_hydras_grammar(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert OmegaConf.create({"key": override.value()}).key == text
