"""The GPU's benchmark, run small on the CPU: every stage gives its figures, and without a device it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import gpu
from krossfuse.fusion.named import SKETCHES


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--small", "--out", str(out)])
    gpu.main()
    result = json.loads(out.read_text())
    assert {"bf16_tflops", "float32_tflops", "copy_gb_per_second"} <= set(result["floors"])
    for name in ("jpeg", "memory"):
        row = result["extraction"][name]
        assert row["images_per_second"] > 0
        assert row["ratio"] <= row["ratio_autocast"]
    milliseconds = result["fusion"]["milliseconds"]
    assert set(milliseconds) == {"published_formula", *SKETCHES} - set(gpu.NOT_FOR_COSINE)
    assert all(("called" in row) != ("left_out" in row) for row in milliseconds.values())
    assert all(result["stream"][name]["rows_per_second"] > 0 for name in ("to_host", "kept_on_device"))
    probes = [row for row in result["probes"].values() if isinstance(row, dict)]
    assert len(probes) == 5
    assert all(row["largest_difference"] == 0 for row in probes), "the same device twice"
    assert all(row["first_measurement"][1] > 0.2 for row in probes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "there is no CUDA device here; --device cpu --small" in capsys.readouterr().err
