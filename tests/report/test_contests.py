"""Wins, draws and losses over several data sets, against verdicts that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from krossfuse.report.boards import boards
from krossfuse.report.contests import contest_table, contest_title, contests, lost_table
from krossfuse.report.page import report
from krossfuse.results.aggregate import aggregate
from krossfuse.results.records import Record
from krossfuse.results.runs import read_runs
from krossfuse.results.writer import RunWriter

ITEMS = 400


def measured(folder: Path, data: str, fusion: str, right: int, metric: str = "accuracy") -> None:
    """Write one run: the first ``right`` of the items score 1."""
    scores = (np.arange(ITEMS) < right).astype(float)
    with RunWriter(folder / f"{data}-{fusion}-{metric}") as writer:
        record = Record(
            data, "p", fusion, 4, "knn", metric, "image", 0, float(scores.mean()), label_set="class",
            fusion_config={"method": fusion, "title": fusion}, deterministic=True, config_digest=f"{data}{fusion}",
        )  # fmt: skip
        writer.append(record, per_item=scores)


def test_verdicts_are_counted_rival_by_rival(tmp_path: Path) -> None:
    for data, right in {"one": (300, 200, 301), "two": (300, 390, 299)}.items():
        for fusion, count in zip(("preset", "rival", "twin"), right, strict=True):
            measured(tmp_path, data, fusion, count)
    made = boards(aggregate(read_runs(tmp_path))[0], "preset")
    found = {c.rival: (c.wins, c.draws, c.losses) for c in contests(made)}
    assert found == {"rival": (1, 0, 1), "twin": (0, 2, 0)}
    assert contest_table(made).to_dict("list") == {
        "against": ["rival", "twin"],
        "wins": [1, 0],
        "no difference shown": [0, 2],
        "losses": [1, 0],
    }
    (lost,) = lost_table(made).to_dict("records")
    assert (lost["data"], lost["better"]) == ("two", "rival")
    assert lost["by"].startswith("+22.5 (+1")
    assert "preset against the others on 2 data sets" in contest_title(made)
    report(tmp_path, baseline="preset", formats=("md", "html", "csv"), pictures=())
    for name in ("results.md", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert "against the others on 2 data sets" in text
        assert "+22.5 (+1" in text
    assert (tmp_path / "report" / "contests.csv").is_file()


def test_one_data_set_is_no_contest(tmp_path: Path) -> None:
    measured(tmp_path, "one", "preset", 300)
    measured(tmp_path, "one", "rival", 200)
    assert contest_table(boards(aggregate(read_runs(tmp_path))[0], "preset")).empty


def test_without_losses_there_is_nothing_to_list(tmp_path: Path) -> None:
    measured(tmp_path, "one", "preset", 300)
    measured(tmp_path, "one", "rival", 300)
    assert lost_table(boards(aggregate(read_runs(tmp_path))[0], "preset")).empty
