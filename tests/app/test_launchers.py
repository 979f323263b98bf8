"""Sweeps under launchers: several points a task, a worker killed in the middle, and what cannot be launched."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sweeps

from krossfuse.app.launchers import check_launcher, why_missing
from krossfuse.app.launching import quoted
from krossfuse.app.machine import MachineLaunch, foresee, sendable
from krossfuse.core.errors import ConfigError
from krossfuse.core.processes import cores

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


def launcher(name: str, *options: str, slow: bool = False) -> pytest.param:  # type: ignore[valid-type]
    reason = f"the extra of hydra/launcher={name} is not installed (make test-launchers)"
    marks = [pytest.mark.skipif(not installed(name), reason=reason), *([pytest.mark.slow] if slow else [])]
    return pytest.param([f"hydra/launcher={name}", *options], id=name, marks=marks)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(sweeps.MACHINE, id="machine"),
        launcher("joblib", "hydra.launcher.n_jobs=2", slow=True),
        launcher("submitit_local", slow=True),
    ],
)
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
    assert len(lost) <= 2, "joblib and this package's own end the other worker too"
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


def test_processes_of_this_machine_compute_the_same(tmp_path: Path) -> None:
    """Also what only the command line knows: modules beside it, and where it stands. What takes imports, checks and the
    report among it, is asked of them, and printed where it would be."""
    sweeps.made(tmp_path)
    (tmp_path / "start.py").write_text(
        "import sys\nfrom krossfuse.app.command import main\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
        "    print('imported', sorted({'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))\n"
    )
    (tmp_path / "mine.py").write_text(
        "import gc\nfrom krossfuse import Concatenation\n\n\nclass Mine(Concatenation):\n    pass\n\n\n"
        "open('collector', 'w').write(f'{gc.isenabled()}, imports left out {gc.get_freeze_count() > 10**5}')\n"
    )
    grid = ["fusion=concatenation", "fusion.missing=zeros", "fusion._target_=mine.Mine", "seed=range(3)"]
    options = sweeps.command(*grid, *sweeps.MACHINE, "hydra.sweep.dir=s", "hydra.sweeper.max_batch_size=2")[3:]
    done = subprocess.run(
        [sys.executable, "start.py", *options], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.index("3 of 3 points done") < said.index("Accuracies, recalls and the like in percent")
    assert said.strip().endswith("imported []")
    assert (tmp_path / "collector").read_text() == "True, imports left out True"
    assert gc.isenabled()
    assert (tmp_path / "s/report/report.html").exists()
    assert "2 points in 2 tasks of up to 1 by MachineLauncher" in said
    assert "1 point in 1 task of up to 1 by MachineLauncher" in said
    assert not (tmp_path / "s/.tasks").exists()
    assert (tmp_path / "s/0/krossfuse.log").read_text()
    sweeps.finish(tmp_path, *grid, "hydra.sweep.dir=whole")
    assert sweeps.values(tmp_path / "s") == sweeps.values(tmp_path / "whole")


def test_processes_of_this_machine_take_no_file_of_the_users_for_a_library(tmp_path: Path) -> None:
    """As little as the command does that starts them."""
    sweeps.made(tmp_path)
    (tmp_path / "random.py").write_text("raise RuntimeError('not mine to import')\n")
    command = [str(Path(sys.executable).parent / "krossfuse"), *sweeps.command("seed=0,1", *sweeps.MACHINE)[3:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 points done" in done.stdout


def test_a_process_that_is_asked_says_what_is_wrong(tmp_path: Path) -> None:
    sweeps.made(tmp_path)
    said = sweeps.finish(tmp_path, "seed=0,1", *sweeps.MACHINE, "data.path=none.npz", "hydra.sweep.dir=s", status=2)
    assert said == "krossfuse: error: embeddings 'none.npz': there is no such file\n"
    assert not (tmp_path / "s").exists()


class UnsendableError(Exception):
    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}, line {line}")


def test_an_error_that_cannot_be_sent_keeps_its_words() -> None:
    sent = sendable(UnsendableError("a.csv", 3))
    assert (type(sent), str(sent)) == (RuntimeError, "UnsendableError: a.csv, line 3")
    error = ConfigError("seed=-1 must be 0 or more")
    assert sendable(error) is error


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        ("-m experiment=quickstart", True),
        ("--multirun hydra/launcher=machine seed=0,1", True),
        ("-m experiment=quickstart hydra/launcher=basic", False),
        ("-m experiment=quickstart hydra.sweeper.dry_run=true", False),
        ("-m experiment=quickstart logger=none", False),  # what it is to import is another list
        ("-m experiment=no_such_one", False),
        ("-m seed=0,1", False),
        ("experiment=quickstart", False),
    ],
)
def test_imports_begin_where_a_command_line_will_want_them(
    arguments: str, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Sequence[str]] = []
    monkeypatch.setattr("krossfuse.app.machine._context", begun.append)
    foresee(arguments.split())
    assert bool(begun) is begins
    assert all({"krossfuse.app.task", "wandb"} <= set(modules) for modules in begun)


def test_this_machines_launcher_wants_a_sweeper_of_ours(tmp_path: Path) -> None:
    sweeps.made(tmp_path)
    said = sweeps.finish(tmp_path, "seed=0,1", *sweeps.MACHINE, "hydra/sweeper=basic", "hydra.sweep.dir=s", status=2)
    assert "runs the tasks of krossfuse's own sweepers" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("n_jobs", "processes"), [(-1, cores()), (3, 3), (-1000, 1)])
def test_as_many_processes_as_are_asked_for(n_jobs: int, processes: int) -> None:
    assert MachineLaunch(n_jobs).n_jobs == processes


@pytest.mark.parametrize(("preset", "name"), [("machine", None), ("slurm_cpu", "submitit_slurm"),
                                              ("slurm_gpu", "submitit_slurm"), ("ray_cluster", "ray")])  # fmt: skip
def test_a_preset_composes_or_names_its_extra(preset: str, name: str | None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "krossfuse", f"hydra/launcher={preset}", "--cfg", "hydra", "-p", "hydra.launcher"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    if name is None or installed("submitit_local" if name.startswith("submitit") else name):
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
