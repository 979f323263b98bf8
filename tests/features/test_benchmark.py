from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_benchmark_writes_its_figures(repository: Path, tmp_path: Path) -> None:
    """One repeat on the smallest split; how fast it is, is not a test."""
    out = tmp_path / "bench.json"
    module = "experiments.benchmarks.extraction"
    command = [sys.executable, "-m", module, "--out", out, "--splits", "val", "--repeats", "1"]
    subprocess.run(command, check=True, cwd=repository, timeout=500)
    result = json.loads(out.read_text())
    assert result["ratio"] == pytest.approx(result["samples_per_second"] / result["bare_samples_per_second"])
    assert result["samples"] > 50
