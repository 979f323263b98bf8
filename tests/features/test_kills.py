"""SIGKILL at random moments: every resume has the bits of the unbroken run, and no process survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KILLS = int(os.environ.get("KROSSFUSE_KILLS", "2"))
"""2 in ``make test-slow``; 100 in ``make test-faults``."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for survivors in /proc")
@pytest.mark.timeout(120 * KILLS + 600)
def test_kills(record_property: Callable[[str, object], None]) -> None:
    command = [sys.executable, Path(__file__).with_name("kill_harness.py"), "--count", str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    assert counts["kills"] == KILLS
    record_property("kills", KILLS)
    assert sum(n for what, n in counts.items() if what.startswith("killed on")) == KILLS
    assert max(counts["seconds until all processes had ended"].values()) < 10
