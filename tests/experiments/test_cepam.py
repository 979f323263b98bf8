"""The MNIST study and the benchmark of CEPAM, in small."""

from __future__ import annotations

import json
import math

import pytest
import torch

from experiments.benchmarks import cepam as benchmark
from experiments.cepam.__main__ import main
from experiments.cepam.table import claims, difference, interval, table
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.data.pixels import Digits, MNISTPixels
from krossfuse.federated.mnist import VARIANTS, make_model, play


@pytest.fixture(scope="module")
def digits(shared) -> Digits:
    return MNISTPixels(root=str(shared / "data" / "mnist")).load(0)


def test_the_data_are_the_papers(digits):
    assert [len(y) for _, y in (digits.train, digits.val, digits.test)] == [50_000, 10_000, 10_000]
    assert digits.train[0].shape == (50_000, 784)
    assert float(digits.train[0].min()) == -1
    assert float(digits.train[0].max()) == 1
    assert (make_model("mlp").d, make_model("cnn").d) == (25_818, 6_422)


def test_no_data_is_said(tmp_path):
    with pytest.raises(DataError, match="data.download=true"):
        MNISTPixels(root=str(tmp_path)).check()
    with pytest.raises(ConfigError, match="data.root is not set"):
        MNISTPixels(root=None)
    with pytest.raises(ConfigError, match="download='yes'"):
        MNISTPixels(root=str(tmp_path), download="yes")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns(digits, variant):
    torch.set_num_threads(1)
    record = play(digits, "mlp", variant, 0, rounds=20)
    accuracy = [h["validation"] for h in record["history"] if "validation" in h]
    assert accuracy[-1] > 0.4 > accuracy[0]
    bits = record["bits_per_coordinate"]
    most = 0.8 if variant.startswith("cepam") or variant == "sdq" else 2.3 if variant == "gaussian_sdq" else 32.1
    assert most / 4 < bits < most


@pytest.mark.slow
def test_a_study_is_written_and_not_repeated(shared, tmp_path, capsys):
    arguments = ["--data", str(shared / "data" / "mnist"), "--out", str(tmp_path), "--jobs", "1", "--rounds", "1"]
    arguments += ["--seeds", "0", "1", "--models", "mlp", "--variants", "fedavg", "cepam"]
    main(arguments)
    out = capsys.readouterr().out
    assert out.count("mlp-cepam-") == 2
    assert "| cepam | 2 |" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "claims.json").read_text())["mlp"]["float32_over_cepam"] > 20
    main(arguments)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    main(arguments)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def fake(variant, seed, accuracy, bits=32.0):
    history = [{"round": 20, "validation": accuracy / 2, "accuracy": accuracy}] * 4
    return {"model": "mlp", "variant": variant, "seed": seed, "bits_per_coordinate": bits, "history": history}


def test_intervals_and_claims():
    mean, width = interval([1.0, 2.0, 3.0])
    assert (mean, width) == (2.0, pytest.approx(4.3027 / math.sqrt(3), rel=1e-4))
    assert math.isnan(interval([1.0])[1])
    records = [fake("cepam", s, 0.8 + 0.01 * s, 0.32) for s in range(3)]
    records += [fake("gaussian", s, 0.8 + 0.01 * (2 - s)) for s in range(3)] + [fake("fedavg", 0, 0.9)]
    out = difference(records, "mlp", "cepam", "gaussian", "test")
    assert (out["seeds"], out["within"]) == (3, True)
    assert out["difference"] == pytest.approx(0, abs=1e-9)
    assert claims(records)["mlp"]["float32_over_cepam"] == pytest.approx(100)
    assert claims(records)["privacy"]["epsilon"] == pytest.approx(14_030, rel=1e-3)
    assert "| cepam | 3 | 81.00 ± " in table(records, "mlp")


def test_the_benchmark_in_small(monkeypatch):
    monkeypatch.setattr(benchmark, "RATIOS", (0.3, 10.0))
    speeds = benchmark.speeds(100_000, 200, 2)
    assert speeds["quantise_ratio"] > speeds["message_ratio"] > 10
    rows = {(r["lattice"], r["s_over_sigma"]): r for r in benchmark.rates(40_000)}
    assert rows["Z1", 0.3]["bits"] <= 1.1 * 0.3 + 0.01
    for lattice in ("Z1", "E8", "Z1 laplace"):
        row = rows[lattice, 10.0]
        assert row["gap"] == pytest.approx(row["theory"], abs=0.03)
    assert all(row["gap"] > 0 for row in rows.values())
    simulated = benchmark.simulation(1)
    assert max(simulated["simulation_difference"].values()) < 1e-6
    assert simulated["simulation_ratio"]["mlp"] > 2


def test_the_floor_of_laplace_noise():
    # At a high resolution it is h(X) − h(Z); at a low one it falls like the signal's power.
    high = benchmark.floor_bits(100.0, "laplace")
    entropy = 0.5 * math.log2(2 * math.pi * math.e * (100.0**2 + 1))
    assert high == pytest.approx(entropy - math.log2(2 * math.e * math.sqrt(0.5)), abs=1e-3)
    assert benchmark.floor_bits(0.02, "laplace") == pytest.approx(4 * benchmark.floor_bits(0.01, "laplace"), rel=0.05)
    assert benchmark.theory("E8") == pytest.approx(0.363, abs=1e-3)
    assert benchmark.theory("Z1", "laplace") == pytest.approx(0.833, abs=1e-3)


def test_the_benchmarks_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "RATIOS", (0.3, 10.0))
    written = benchmark.save_pictures(benchmark.rates(10_000), 10_000, tmp_path)
    assert [path.stat().st_size > 10_000 for path in written] == [True, True]
