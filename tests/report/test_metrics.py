"""Units and directions come from declarations, also of metrics that this process has never heard of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from krossfuse.report.boards import boards, compare_with
from krossfuse.report.cells import cell_text, is_best
from krossfuse.report.page import report
from krossfuse.report.values import axis_label, format_value, within
from krossfuse.results.aggregate import aggregate
from krossfuse.results.runs import read_runs

PLUGIN = """
import sys
import numpy as np
from krossfuse.core.metrics import Metric, declare
from krossfuse.results.records import Record
from krossfuse.results.writer import RunWriter

declare(Metric(name="fpr95", better="lower", low=0.0, high=1.0))
declare(Metric(name="ece", better="lower", low=0.0, high=1.0))
declare(Metric(name="epsilon", unit="epsilon", better="lower", low=0.0))
declare(Metric(name="mean_rank", unit="", better="lower", low=1.0))
declare(Metric(name="width", unit="bits", better="", low=0.0))
for number, fusion in enumerate(("cross_modal", "cca")):
    with RunWriter(f"{sys.argv[1]}/{number}") as writer:
        for metric, values in (("fpr95", (0.4, 0.2)), ("ece", (0.3, 0.1)), ("epsilon", (8.0, 2.0)),
                               ("mean_rank", (9.0, 3.0)), ("width", (32.0, 16.0)), ("unheard_of", (0.9, 0.1))):
            value = values[number]
            items = value + 0.01 * np.resize([-1, 1], 40)
            record = Record("d", "p", fusion, 4, "mine", metric, "image", 0, value, deterministic=True)
            writer.append(record, items)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of another process, whose plug-in declared the metrics."""
    folder = tmp_path_factory.mktemp("plugin")
    subprocess.run([sys.executable, "-c", PLUGIN, str(folder)], check=True)
    return folder


def test_a_report_elsewhere_knows_the_plug_ins_units_and_directions(measured: Path) -> None:
    (board,) = boards(aggregate(read_runs(measured))[0])
    _, cca = board.rows
    shown = {column.metric: (cell_text(cca, column), is_best(board, cca, column)) for column in board.columns}
    assert shown == {
        "fpr95": (("20.0 ±0.3*", "-20.0 ▲"), True),
        "ece": (("10.0 ±0.3*", "-20.0 ▲"), True),
        "epsilon": (("2.00 ±0.00*", "-6.00 ▲"), True),
        "mean_rank": (("3.00 ±0.00*", "-6.00 ▲"), True),
        "width": (("16.00 ±0.00*", "-16.00 ≠"), False),
        "unheard_of": (("0.10 ±0.00*", "-0.80 ≠"), False),
    }
    labels = {column.metric: axis_label(column.declared, column.metric) for column in board.columns}
    assert labels["fpr95"] == "fpr95 (%)"
    assert labels["width"] == "width (bits)"
    assert labels["mean_rank"] == "mean rank"
    against = compare_with(board, cca).rows[0].against
    for column in board.columns:
        assert against[column.key].verdict == ("worse" if column.declared.better else "different")


def test_its_report_is_written(measured: Path, tmp_path: Path) -> None:
    report(measured, tmp_path, formats=("csv", "md", "html"), pictures=())
    page = (tmp_path / "report.html").read_text()
    assert 'class="difference different"' in page


def test_axes_keep_to_the_bounds(measured: Path) -> None:
    (board,) = boards(aggregate(read_runs(measured))[0])
    declared = {column.metric: column.declared for column in board.columns}
    assert within(declared["fpr95"], (-30.0, 130.0)) == (-4.0, 104.0)
    assert within(declared["mean_rank"], (-9.0, 11.0)) == pytest.approx((0.2, 11.0))
    assert within(declared["unheard_of"], (-9.0, 11.0)) == (-9.0, 11.0)


def test_small_values_keep_digits_that_mean_something(measured: Path) -> None:
    (board,) = boards(aggregate(read_runs(measured))[0])
    plain = next(column.declared for column in board.columns if column.metric == "unheard_of")
    assert format_value(plain, 0.00123, 0.0004) == "0.0012 ±0.0004"
    assert format_value(plain, np.pi) == "3.14"
