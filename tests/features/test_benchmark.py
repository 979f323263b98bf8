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
    few = ["--splits", "val", "--repeats", "1", "--search", "16", "--batches", "4", "8"]
    command = [sys.executable, "-m", module, "--out", out, *few]
    subprocess.run(command, check=True, cwd=repository, timeout=500)
    result = json.loads(out.read_text())
    assert result["ratio"] == pytest.approx(result["samples_per_second"] / result["best_bare_samples_per_second"])
    assert len(result["searched"]) == 2 * 2 * 2 * 2
    best = min(result["loops"], key=lambda way: way["seconds"])
    assert result["best_bare"] == {name: best[name] for name in result["best_bare"]}
    assert {way["workers"] for way in result["loops"]} == set(range(result["threads"] + 1))
    alone = result["encoders_alone"]
    assert alone in [{name: way[name] for name in alone} for way in result["finalists"]]
    speed = result["ratio_encoders_alone"] * result["encoders_alone_samples_per_second"]
    assert speed == pytest.approx(result["samples_per_second"])
    assert result["samples"] > 50
