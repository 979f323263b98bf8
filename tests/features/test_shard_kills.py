from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_shards_eight_workers_ten_kills() -> None:
    """The harness checks bits, counts and what is said of lost and altered shards; see its text."""
    harness = Path(__file__).with_name("shard_kills.py")
    out = subprocess.run([sys.executable, harness], check=False, capture_output=True, text=True, timeout=1700)
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    counts = json.loads(out.stdout.splitlines()[-1])
    assert (counts["shards"], counts["workers"], counts["kills"]) == (100, 8, 10)
