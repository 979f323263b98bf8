from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import calibration
from experiments.benchmarks.calibration import Setting, Simulation, main, simulate


def test_the_simulated_accuracy_and_spread_are_the_wanted_ones() -> None:
    simulation = Simulation(Setting("mean", 4, 400, 0.02, 0.9), 0)
    means = np.array([simulation.scores(simulation.items(), 400).values.mean(axis=(1, 2)) for _ in range(60)])
    assert abs(means.mean() - simulation.truth) < 0.005
    assert abs(means.std(axis=1, ddof=1).mean() - np.sqrt(0.02**2 + 0.09 / 2.5 / 400)) < 0.003


def test_the_fast_form_finds_no_fault(tmp_path: Path, capsys: Any) -> None:
    assert main(["--fast", "--out", str(tmp_path / "out.json")]) == 0
    outcomes = json.loads((tmp_path / "out.json").read_text())["outcomes"]
    assert len(outcomes) == 36
    assert {outcome["outside"] for outcome in outcomes} <= {
        "",
        "discrete",
        "two seeds each",
        "discrete, two seeds each",
    }
    assert "0 of them unexplained" in capsys.readouterr().out


def test_large_test_sets_announce_no_difference_that_is_not_there() -> None:
    for seeds in (2, 3):
        outcome = simulate(Setting("random", seeds, 5000, 0.02, 0.9), 200)
        assert outcome.coverage >= 92
        assert outcome.false_verdicts == 100 - outcome.coverage


def test_an_interval_that_is_too_short_is_a_fault() -> None:
    assert (
        calibration.reason(calibration.Outcome(Setting("mean", 3, 2465, 0.0, 0.9), 4000, 90.0, None)) == "unexplained"
    )
    assert (
        calibration.reason(calibration.Outcome(Setting("random", 3, 2465, 0.0, 0.9), 4000, 99.0, 1.0)) == "unexplained"
    )

    def reason(setting: Setting, coverage: float, false: float | None) -> str:
        return calibration.reason(calibration.Outcome(setting, 4000, coverage, false))

    assert reason(Setting("mean", 3, 2465, 0.0, 0.9), 90.0, None) == "unexplained"
    assert reason(Setting("random", 3, 2465, 0.0, 0.9), 99.0, 1.0) == "unexplained"
    assert reason(Setting("random", 2, 50, 0.0, 0.9), 99.0, 1.0) == "discrete, two seeds each"
    assert reason(Setting("random", 2, 50, 0.0, 0.9), 95.0, 5.0) == ""
