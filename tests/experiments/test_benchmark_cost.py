"""The paper's table 10 at toy size: every row of the paper has one of ours beside it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import cost


@pytest.mark.slow
def test_every_row_of_the_papers_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cost.json"
    few = ["--pair", "openmoji_image", "--batch", "2", "--dim", "32", "--rounds", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["cost", *few, "--out", str(out)])
    cost.main()
    result, shown = json.loads(out.read_text()), capsys.readouterr().out
    rows, paper = result["rows"], result["paper"]
    assert set(cost.PAPER) <= set(rows)
    assert set(cost.PAPER.values()) == set(paper)
    reference = Path(cost.__file__).parents[1] / "reference" / "table10_cost.csv"
    for row in csv.DictReader(reference.open()):
        assert row["time_per_batch"] in shown
        assert row["peak_memory"] in shown
    assert all(of["ms"] > 0 and of["peak_bytes"] > 1e6 for of in rows.values())
    assert rows["sketch pipeline"]["ms"] > rows["sketch overhead"]["ms"]
    side = max(rows["cross_modal"]["ms"], rows["expert"]["ms"]) + rows["sketch overhead"]["ms"]
    assert rows["sketch pipeline, encoders side by side"]["ms"] == pytest.approx(side)
