from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SHORT = ["--toy", "--shards=12", "--workers=3", "--kills=2"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("options", "counts"), [(SHORT, (12, 3, 2)), pytest.param([], (100, 8, 10), marks=pytest.mark.slow)]
)
def test_workers_that_are_killed(options: list[str], counts: tuple[int, int, int]) -> None:
    """The harness checks bits, counts and what is said of lost and altered shards; see its text."""
    harness = Path(__file__).with_name("shard_kills.py")
    out = subprocess.run([sys.executable, harness, *options], check=False, capture_output=True, text=True, timeout=1700)
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    told = json.loads(out.stdout.splitlines()[-1])
    assert (told["shards"], told["workers"], told["kills"]) == counts
