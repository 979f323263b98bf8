"""A job that is interrupted, ended, cut off from its reader or from its disk ends as it should, and alone."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.case import FAILED, TRACEBACK, Made
from faults.files import EMBEDDINGS, IMAGES, embeddings, images, run_folder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start the command in a fresh folder and in a group of its own; nothing of it is left at the end."""
    monkeypatch.chdir(tmp_path_factory.mktemp("f"))
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **options: object) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        command = [sys.executable, "-u", "-m", "krossfuse", *arguments]
        started.append(subprocess.Popen(command, **{"preexec_fn": hearing, **pipes, **options}))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def hearing() -> None:
    """Hear Ctrl-C, which a shell lets the processes ignore that it starts in the background, these tests among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"never said {words!r}: {process.stderr and process.stderr.read()}")


def survivors(group: int) -> list[int]:
    """Return the processes of a group that still run."""
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # After the name, which is in brackets: state, parent, group.
                state, _, of_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(of_group) == group and state not in "ZX":
                    alive.append(int(entry.name))
    return alive


def ends_alone(group: int, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while left := survivors(group):
        assert time.monotonic() < end, f"processes {left} outlive their job by {seconds} s"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [(signal.SIGINT, {130}, "interrupted"), (signal.SIGTERM, {143}, "terminated")],
    ids=["interrupt", "terminate"],
)
def test_a_job_that_encodes_ends_when_it_is_told_to(
    sent: signal.Signals,
    status: set[int],
    words: str,
    start: Start,
    made: Made,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("faults", 1)
    images(each=60)(Path.cwd(), made)
    process = start(*IMAGES)
    wait_for(process, "encoding")
    os.kill(process.pid, sent)
    out, err = process.communicate(timeout=120)
    assert process.returncode in status, err
    assert TRACEBACK not in out + err, err
    assert words in err
    ends_alone(process.pid)


def test_a_reader_that_goes_away_is_no_error_of_ours(
    start: Start, made: Made, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    record_property("faults", 1)
    made.capture = capfd
    run_folder()(Path.cwd(), made)
    reading, writing = os.pipe()
    os.close(reading)
    process = start("report", "run", "--format", "terminal", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=120)
    assert TRACEBACK not in err, err
    assert "Exception ignored" not in err, err


def test_a_disk_that_is_full_is_said(start: Start, made: Made, record_property: Callable[[str, object], None]) -> None:
    record_property("faults", 1)
    embeddings()(Path.cwd(), made)
    process = start(
        *EMBEDDINGS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000)),
    )
    out, err = process.communicate(timeout=200)
    assert TRACEBACK not in out + err, err
    assert process.returncode == FAILED
    assert "too large" in err  # what the system says of a file that hits the limit
