"""A sweep that is killed, changed, extended or damaged computes what is missing, and nothing twice."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sweeps
from faults.case import Made, forget
from faults.files import IMAGES, images

from krossfuse.app.sweep_folder import SweepError, alone_in

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a sweep in this process; returns what it printed."""
    from krossfuse.__main__ import main

    sweeps.made(tmp_path)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, status: int = 0, common: Sequence[str] = sweeps.COMMON) -> str:
        monkeypatch.setattr(sys, "argv", ["krossfuse", "-m", *common, *arguments])
        forget()
        ended = 0
        try:
            main()
        except SystemExit as end:
            ended = int(end.code or 0)
        printed = capsys.readouterr()
        assert ended == status, printed.out + printed.err
        return printed.out + printed.err

    return call


def test_a_finished_sweep_computes_nothing_again(run: Run, tmp_path: Path) -> None:
    run("fusion.dim=24,32", "seed=0,1", "name=study")
    (sweep,) = (tmp_path / "runs/study").iterdir()
    before = sweeps.finished(sweep)
    assert len(before) == 4
    said = run("fusion.dim=24,32", "seed=0,1", "name=study", "hydra.sweeper.resume=true")
    assert "of 4 points 4 done; 0 to compute" in said
    assert sweeps.finished(sweep) == before
    assert list((tmp_path / "runs/study").iterdir()) == [sweep]
    assert not (sweep / ".tasks").exists()


def test_an_extended_sweep_computes_what_is_new(run: Run, tmp_path: Path) -> None:
    run("fusion.dim=24,32", "seed=0", "hydra.sweep.dir=s")
    before = sweeps.finished(tmp_path / "s")
    said = run("fusion.dim=16,24,32", "seed=0,1", "hydra.sweep.dir=s")
    assert "of 6 points 2 done, 4 missing; 4 to compute" in said
    after = sweeps.finished(tmp_path / "s")
    assert before.items() <= after.items()
    assert len(sweeps.values(tmp_path / "s")) == len(after) == 6
    fewer = run("fusion.dim=24,32", "seed=0", "hydra.sweep.dir=s")
    assert "no points of this sweep, and reported all the same" in fewer


def test_run_folders_may_have_names_of_their_own(run: Run, tmp_path: Path) -> None:
    arguments = ["fusion.dim=24", "seed=0,1", "hydra.sweep.dir=s", "hydra.sweep.subdir='dim-${fusion.dim}/${seed}'"]
    run(*arguments)
    assert {path.parent.name for path in (tmp_path / "s/dim-24").glob("*/status.json")} == {"0", "1"}
    assert "2 done; 0 to compute" in run(*arguments)


def test_what_has_changed_is_computed_anew_and_kept_aside(run: Run, tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    run("fusion.dim=24", "seed=0,1", "hydra.sweep.dir=s")
    (sweep / "1/results.jsonl").write_text((sweep / "1/results.jsonl").read_text().replace("0", "1", 1))
    assert "1 done, 1 damaged; 1 to compute" in run("fusion.dim=24", "seed=0,1", "hydra.sweep.dir=s")
    os.utime(tmp_path / "features.npz", ns=(1, 1))
    assert "2 changed; 2 to compute" in run("fusion.dim=24", "seed=0,1", "hydra.sweep.dir=s")
    assert len(list((sweep / ".replaced").iterdir())) == 3
    assert sorted(sweeps.finished(sweep)) == ["0", "1"]


def test_a_configuration_file_that_has_changed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conf/fusion").mkdir(parents=True)
    own = tmp_path / "conf/fusion/mine.yaml"
    own.write_text("defaults: [rp_krossfuse]\ndim: 24\n")
    arguments = ["--config-dir", str(tmp_path / "conf"), "fusion=mine", "seed=0,1", "hydra.sweep.dir=s"]
    run(*arguments)
    own.write_text("defaults: [rp_krossfuse]\ndim: 32\n")
    assert "2 changed; 2 to compute" in run(*arguments)
    assert {record["dim"] for records in sweeps.values(tmp_path / "s").values() for record in records[:-1]} == {32}


def test_failed_points_are_listed_and_run_again_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nfrom krossfuse import Concatenation\n\n\nclass Mine(Concatenation):\n"
        "    def __init__(self, *, inputs, seed, **more):\n        super().__init__(inputs=inputs, **more)\n"
        "        self.own_seed = seed\n"
        "    def fit(self, *args, **kwargs):\n"
        "        if self.own_seed == 1 and not Path('mended').exists():\n"
        "            raise RuntimeError('a fit of mine')\n"
        "        return super().fit(*args, **kwargs)\n"
    )
    mine = [
        "fusion=concatenation",
        "fusion.missing=zeros",
        "fusion._target_=mine.Mine",
        "seed=0,1,2",
        "hydra.sweep.dir=s",
    ]
    sys.modules.pop("mine", None)
    said = run(*mine, status=2)
    assert "point 1 failed" in said
    assert "1 of 3 jobs failed" in said
    (failed,) = sweeps.outcomes(tmp_path / "s")
    assert failed["folder"] == "1"
    assert "seed=1" in failed["overrides"]
    assert "a fit of mine" in failed["error"]
    assert "mine.py" in failed["traceback"]
    before = sweeps.finished(tmp_path / "s")
    (tmp_path / "mended").touch()
    (tmp_path / "s/2/status.json").unlink()
    said = run(*mine, "hydra.sweeper.only=failed")
    assert "1 to compute" in said
    assert sweeps.finished(tmp_path / "s").keys() == before.keys() - {"2"} | {"1"}
    assert not (tmp_path / "s/failed.jsonl").exists()


def test_a_damaged_list_of_what_is_known_costs_composing_alone(run: Run, tmp_path: Path) -> None:
    run("fusion.dim=24", "seed=0,1", "hydra.sweep.dir=s")
    before = sweeps.finished(tmp_path / "s")
    (tmp_path / "s/.points.jsonl").write_text("{")
    said = run("fusion.dim=24", "seed=0,1", "hydra.sweep.dir=s")
    assert ".points.jsonl is damaged" in said
    assert sweeps.finished(tmp_path / "s") == before


def test_a_dry_run_says_what_there_is_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    said = run("fusion.dim=24,32", "seed=range(60)", "hydra.sweeper.dry_run=true", "hydra.sweeper.chunk=50")
    assert "120 points in runs/run/" in said
    assert "to compute: 120 points in 3 tasks of up to 50" in said
    assert "... and 100 more" in said
    assert "to encode: nothing" in said
    assert not (tmp_path / "runs").exists()
    run("fusion.dim=24,32", "seed=0,1", "hydra.sweep.dir=s")
    said = run("fusion.dim=24,32", "seed=0,1,2", "hydra.sweep.dir=s", "hydra.sweeper.dry_run=true")
    assert "6 points in s: 4 done, 2 missing" in said


@pytest.mark.slow
def test_ten_thousand_points_in_two_hundred_tasks(run: Run, tmp_path: Path) -> None:
    said = run("fusion.dim=24,32", "seed=range(5000)", "hydra.sweeper.dry_run=true", "hydra.sweeper.chunk=50")
    assert "to compute: 10000 points in 200 tasks of up to 50" in said


def test_a_dry_run_says_what_must_be_encoded(run: Run, tmp_path: Path) -> None:
    images(each=3)(tmp_path, Made(tmp_path))
    said = run(*IMAGES, "seed=0", "hydra.sweeper.dry_run=true", common=())
    assert "to encode first:" in said
    assert re.search(r"image_folder/train:image: \d+ items by openmoji_clip, efficientnet_lite0", said)
    assert not (tmp_path / "store").exists()


def test_one_sweep_at_a_time_in_a_folder(run: Run, tmp_path: Path) -> None:
    with alone_in(tmp_path / "s"):
        said = run("fusion.dim=24", "hydra.sweep.dir=s", status=1)
        with pytest.raises(SweepError):
            alone_in(tmp_path / "s").__enter__()
    assert "s is being written by another sweep" in said
    assert str(os.getpid()) in said


def test_another_study_is_refused(run: Run, tmp_path: Path) -> None:
    run("fusion.dim=24", "seed=0", "hydra.sweep.dir=s")
    said = run("fusion=concatenation", "hydra.sweep.dir=s", "seed=1", status=2)
    assert "s holds another study" in said
    assert "hydra.sweep.dir=" in said


def killed_halfway(folder: Path, points: int, *arguments: str) -> None:
    """Start a sweep, and kill its whole group when so many points are done."""
    process = sweeps.start(folder, *arguments)
    end = time.monotonic() + 400
    while len(sweeps.finished(folder / "s")) < points:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("n", "options", "at_once"),
    [
        pytest.param(12, sweeps.MACHINE, 2, id="12-machine"),
        pytest.param(200, [], 1, id="200-here", marks=pytest.mark.slow),
        pytest.param(200, sweeps.MACHINE, 2, id="200-machine", marks=pytest.mark.slow),
    ],
)
def test_killed_twice_and_started_again_each_point_is_computed_once(
    n: int, options: Sequence[str], at_once: int, tmp_path: Path
) -> None:
    sweeps.made(tmp_path)
    grid = ["fusion.dim=24,32", f"seed=range({n // 2})", *options]
    killed_halfway(tmp_path, n // 3, *grid, "hydra.sweep.dir=s")
    first = sweeps.finished(tmp_path / "s")
    killed_halfway(tmp_path, 2 * n // 3, *grid, "hydra.sweep.dir=s")
    second = sweeps.finished(tmp_path / "s")
    said = sweeps.finish(tmp_path, *grid, "hydra.sweep.dir=s")
    after = sweeps.finished(tmp_path / "s")
    assert f"{len(second)} done" in said
    assert first.items() <= second.items() <= after.items(), "a finished point was computed again"
    assert len(after) == n
    assert sum(sweeps.times_computed(tmp_path / "s").values()) <= n + 2 * at_once, "no more than were killed"
    sweeps.finish(tmp_path, *grid, "hydra.sweep.dir=whole")
    assert sweeps.values(tmp_path / "s") == sweeps.values(tmp_path / "whole")


@pytest.mark.parametrize(
    ("sent", "status", "options"),
    [
        pytest.param(signal.SIGTERM, 143, sweeps.MACHINE, id="SIGTERM-machine"),
        pytest.param(signal.SIGINT, 130, sweeps.MACHINE, id="SIGINT-machine", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, [], id="SIGTERM-here", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, [], id="SIGINT-here", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_that_is_stopped_reports_what_there_is(
    sent: signal.Signals, status: int, options: Sequence[str], tmp_path: Path
) -> None:
    sweeps.made(tmp_path)
    grid = ["fusion.dim=24,32", "seed=range(100)", *options]
    # A shell lets what it starts in the background ignore Ctrl-C, and so this suite.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = sweeps.start(tmp_path, *grid, "hydra.sweep.dir=s", **heard)
    while len(sweeps.finished(tmp_path / "s")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, sent)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == status, out
    done = len(sweeps.finished(tmp_path / "s"))
    assert f"stopped: {done} of 200 points are done, and reported" in out
    assert "hydra.sweeper.resume=s computes the others" in out
    assert "Traceback" not in out
    assert (tmp_path / "s/report/results.csv").is_file()
    assert sweeps.outcomes(tmp_path / "s") == []


def test_a_full_disk_ends_a_sweep_that_can_go_on(tmp_path: Path) -> None:
    """No file may grow above a limit that the first point's matrices need: what a disk says that is full."""
    sweeps.made(tmp_path, {"train": 36, "val": 12, "test": 90})
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))}
    process = sweeps.start(tmp_path, "fusion.dim=24", "seed=0,1,2", "hydra.sweep.dir=s", **limit)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 1, out
    assert "stopped: 0 of 3 points are done; when there is room" in out
    assert "too large" in out
    assert "Traceback" not in out
    assert "1 failed, 2 missing" in sweeps.finish(tmp_path, "fusion.dim=24", "seed=0,1,2", "hydra.sweep.dir=s")
    assert len(sweeps.finished(tmp_path / "s")) == 3
