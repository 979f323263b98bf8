"""What a fault is: a bad input or option, what a user must then see, and how it is tried with the real command."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

# The heavy libraries are loaded here, not in the time of the first case.
import krossfuse.app.fuse_and_probe
import krossfuse.report.page  # noqa: F401
from krossfuse.core.errors import KrossFuseError

TRACEBACK = "Traceback (most recent call last)"
BAD, FAILED = 2, 1
"""Exit status: what was asked for is impossible as it stands; it was possible and did not work out (files, locks)."""

Words = Sequence["str | tuple[str, ...]"]
"""Each must be there, whatever its case; of a tuple one of its members."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault.

    Attributes:
        id: unique.
        room: that has to deal with it, a folder of the package.
        words: that the user needs: the thing, both sides, the way out. In what is written to stderr; where ``status``
            is 0 (a warning, or what must just work), or ``call`` is tried, in all of the output or the message.
        run: arguments of the command, tried in a fresh folder (whose path stands for ``{here}``).
        call: in place of ``run``, what a user writes in Python; it must raise ``error``.
        error: that ``call`` raises.
        files: makes files in the fresh folder first; it also gets the things that are slow to make.
        status: of the command.
        never: words that would mislead.
        after: checks what was left behind.
        process: whether ``run`` needs a process of its own (signals, all output of all libraries).
        stdin: what is typed.
        environment: variables added to the process's.
        timeout: seconds; more is a hang.
        short: whether it stands for others in the short form.
    """

    id: str
    room: str
    words: Words = ()
    run: Sequence[str] = ()
    call: Callable[[Path], object] | None = None
    error: type[Exception] = KrossFuseError
    files: Callable[[Path, Made], object] | None = None
    status: int = BAD
    never: tuple[str, ...] = ()
    after: Callable[[Path, Outcome], None] | None = None
    process: bool = False
    stdin: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 90
    short: bool = False


def measured(folder: Path, outcome: Outcome) -> None:
    """Check that a job came to its end with measurements."""
    results = [path.read_text() for path in folder.rglob("results.jsonl")]
    assert any(results), f"nothing was measured:\n{outcome.out}\n{outcome.err}"


def warned(*words: str | tuple[str, ...]) -> Callable[[Path, Outcome], None]:
    """Return a check that a job measured, and that one line of its output has all words."""

    def check(folder: Path, outcome: Outcome) -> None:
        measured(folder, outcome)
        lines = f"{outcome.out}\n{outcome.err}".splitlines()
        assert any(not missing(words, line) for line in lines), f"no line with {words}:\n{outcome.out}\n{outcome.err}"

    return check


def missing(words: Words, text: str) -> list[object]:
    """Return those of ``words`` that ``text`` lacks."""
    low = text.lower()
    return [w for w in words if not any(word.lower() in low for word in ([w] if isinstance(w, str) else w))]


def in_process(arguments: Sequence[str], capture: pytest.CaptureFixture[str]) -> Outcome:
    """Run the command in this process and where it stands: what an uncaught error would print counts as printed."""
    from krossfuse.app.command import main

    forget()
    capture.readouterr()
    handlers, argv, path, environment = logging.root.handlers[:], sys.argv, sys.path[:], dict(os.environ)
    sys.argv = ["krossfuse", *arguments]
    status, raised = 0, ""
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raised = end.code if isinstance(end.code, str) else ""
    except Exception:
        status, raised = 1, traceback.format_exc()
    finally:
        # What a process takes with it when it ends.
        sys.argv, sys.path[:] = argv, path
        os.environ.clear()
        os.environ.update(environment)
        for handler in logging.root.handlers[:]:
            if handler not in handlers:
                logging.root.removeHandler(handler)
                handler.close()
    out, err = capture.readouterr()
    return Outcome(status, out, err + raised)


def in_own_process(
    arguments: Sequence[str], *, stdin: str | None = None, environment: Mapping[str, str], timeout: float
) -> Outcome:
    """Run the command in a process of its own; one that hangs is killed, and so is whatever it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "krossfuse", *arguments],
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        out, err = process.communicate()
        pytest.fail(f"no end within {timeout} s; until then it wrote:\n{out}\n{err}")
    return Outcome(process.returncode, out, err)


def forget() -> None:
    """Forget what is remembered of files: every case has its own files, and modules, under the same names."""
    GlobalHydra.instance().clear()
    for name, module in list(sys.modules.items()):
        if name == "mine":
            del sys.modules[name]
        elif name.startswith("krossfuse.") and module is not None:
            for value in list(vars(module).values()):
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()
    gc.collect()


@dataclass
class Made:
    """What is slow to make: made by the real command when first asked for, once, and copied."""

    folder: Path
    capture: pytest.CaptureFixture[str] | None = None
    ready: set[str] = field(default_factory=set)

    def __call__(self, name: str, make: Callable[[], Sequence[str]], to: Path) -> None:
        """Copy to ``to`` what the command leaves in a folder of its own.

        Args:
            name: of what is made.
            make: makes the command's files where it stands, and returns its arguments.
            to: a folder.
        """
        assert self.capture is not None
        source = self.folder / name
        if name not in self.ready:
            source.mkdir()
            with contextlib.chdir(source):
                outcome = in_process(make(), self.capture)
            assert outcome.status == 0, outcome
            self.ready.add(name)
        shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True)
