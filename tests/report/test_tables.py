from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from krossfuse.core.metrics import find_metric
from krossfuse.report.board import Board, Column, Row
from krossfuse.report.boards import boards
from krossfuse.report.few_shot import few_shot_table
from krossfuse.report.files import long_table, markdown_table
from krossfuse.report.reference import folder, paper_beside_measured, paper_values
from krossfuse.report.terminal import print_boards
from krossfuse.report.values import format_value
from krossfuse.results.aggregate import aggregate
from krossfuse.results.records import Record
from krossfuse.results.runs import read_runs
from krossfuse.results.writer import RunWriter


def board_of(path: Path) -> Board:
    (board,) = boards(aggregate(read_runs(path))[0])
    return board


def find(board: Board, label: str, dim: int) -> Row:
    (row,) = (row for row in board.rows if (row.label, row.dim) == (label, dim))
    return row


def column(board: Board, **wanted: Any) -> Column:
    (found,) = (c for c in board.columns if all(c.measure[name] == value for name, value in wanted.items()))
    return found


def printed(found: list[Board], width: int = 120) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_boards(found, console)
    return console.export_text()


def test_rows_are_methods_and_a_label_leaves_out_what_all_share(quickstart: Path) -> None:
    board = board_of(quickstart)
    assert [(row.label, row.dim, row.numbers) for row in board.rows] == [
        ("Cross-modal alone", 256, {}),
        ("Image expert alone", 1280, {}),
        ("Concatenation", 1536, {}),
        ("RP-KrossFuse, published", 768, {}),
        ("RP-KrossFuse, published", 1500, {}),
        ("RP-KrossFuse, exact", 768, {}),
        ("RP-KrossFuse, exact", 1500, {}),
    ]
    assert board.title == "openmoji · openmoji_image · uniform sketch · cosine kernel · C = 1"


def test_verdicts_are_against_the_cross_modal_encoder_alone(quickstart: Path) -> None:
    board = board_of(quickstart)
    linear = column(board, probe="linear_probe", label_set="group")
    assert linear.key not in find(board, "Cross-modal alone", 256).against
    exact = find(board, "RP-KrossFuse, exact", 1500)
    comparison = exact.against[linear.key]
    parent = find(board, "Cross-modal alone", 256).cells[linear.key]["mean"]
    assert comparison.verdict == "better"
    assert comparison.difference == pytest.approx(exact.cells[linear.key]["mean"] - parent)
    assert (comparison.n_seeds, comparison.n_items) == ((3, 1), 240)


def test_a_small_difference_is_not_shown_as_one(sweep: Any) -> None:
    sweep.run("cross_modal", {"group": 0.600}, deterministic=True)
    sweep.run("concatenation", {"group": 0.604}, deterministic=True)
    sweep.run("image_expert", {"group": 0.30}, deterministic=True)
    board = board_of(sweep.folder)
    linear = column(board, probe="linear_probe")
    verdicts = {row.label: row.against[linear.key].verdict for row in board.rows[1:]}
    assert verdicts == {"Concatenation": "no difference shown", "Image expert alone": "worse"}
    text = printed([board])
    assert "≈" in text
    assert "▼" in text


def test_lower_ranks_are_better(sweep: Any, tmp_path: Path) -> None:
    for number, (fusion, ranks) in enumerate({"cross_modal": [9, 8, 9, 8] * 9, "cca": [2, 3, 2, 3] * 9}.items()):
        with RunWriter(tmp_path / "ranks" / str(number)) as writer:
            record = Record("d", "p", fusion, 4, "retrieval", "median_rank", "image->text", 0, float(np.median(ranks)))
            writer.append(record, per_item=ranks)
    board = board_of(tmp_path / "ranks")
    comparison = board.rows[1].against[board.columns[0].key]
    assert comparison.verdict == "better"
    assert "-6.00 ▲" in printed([board])
    assert long_table([board])["difference"].dropna().tolist() == [-6.0]


def test_every_line_fits_the_width_and_no_cell_is_cut(quickstart: Path) -> None:
    for width in (80, 100, 120):
        text = printed([board_of(quickstart)], width)
        assert max(map(len, text.splitlines())) <= width
        assert text.count("\n method") == 1, "one table"
        assert all(part in text for part in ("75.7 ±5.1", "+16.1 ▲"))
        assert "…" not in text


def test_the_notes_say_which_interval_it_is(quickstart: Path) -> None:
    text = " ".join(printed([board_of(quickstart)]).split())
    assert "* over 240 test items; over 3 seeds and 240 test items" in text
    assert "59.6 ±6.2*" in text


def test_markdown_and_csv_hold_the_same_figures(quickstart: Path) -> None:
    board = board_of(quickstart)
    text = markdown_table(board)
    assert "| RP-KrossFuse, exact | 1500 | **75.7 ±5.1** +16.1 ▲ |" in text
    assert r"59.6 ±6.2\*" in text
    csv = long_table([board])
    assert len(csv) == 7 * 4
    best = csv[(csv["label"] == "RP-KrossFuse, exact") & (csv["dim"] == 1500) & (csv["label_set"] == "group")]
    assert best["mean"].round(3).tolist() == [0.757, 0.658]
    assert set(csv["verdict"]) == {"", "better"}


def test_methods_that_differ_in_an_option_of_their_own_get_labels_apart(tmp_path: Path) -> None:
    for number, heads in enumerate((4, 8)):
        with RunWriter(tmp_path / str(number)) as writer:
            own = {"config_digest": str(heads), "fusion_config": {"method": "attn", "heads": heads, "seed": 0}}
            writer.append(Record("d", "p", "attn", 8, "knn", "accuracy", "image", 0, 0.5, **own))
    assert [row.label for row in board_of(tmp_path).rows] == ["ATTN", "ATTN"]
    assert [row.numbers for row in board_of(tmp_path).rows] == [{"heads": "4"}, {"heads": "8"}]


def test_runs_that_differ_in_their_probes_alone_share_a_row(tmp_path: Path) -> None:
    for probe in ("knn", "linear_probe"):
        with RunWriter(tmp_path / probe) as writer:
            writer.append(Record("d", "p", "attn", 8, probe, "accuracy", "image", 0, 0.5, config_digest=probe))
    (row,) = board_of(tmp_path).rows
    assert len(row.cells) == 2


SHOTS = [
    {"shots": shots, "form": form, "subset_seed": subset, "shift": 0.03 * shots + 0.01 * subset}
    for shots in (1, 2)
    for form in ("I", "I+T")
    for subset in (1, 2, 3)
]


def test_few_shot_table_has_the_form_of_the_papers_table_3(sweep: Any) -> None:
    for fusion in ("cross_modal", "rp_krossfuse"):
        for data in ("DTD", "Food101"):
            sweep.run(fusion, {"class": 0.4}, protocols=SHOTS, data=data, deterministic=True)
    found = boards(aggregate(read_runs(sweep.folder))[0])
    table = few_shot_table(found)
    assert list(table.columns) == ["shots", "method", "training", "DTD", "Food101"]
    assert table[["shots", "method", "training"]].to_numpy().tolist() == [
        [shots, method, form]
        for shots in (1, 2)
        for method in ("Cross-modal alone", "RP-KrossFuse")
        for form in ("I", "I+T")
    ]
    assert table["DTD"].str.fullmatch(r"\d\d\.\d ±\d\.\d").all()
    assert few_shot_table([]).empty


def test_the_papers_figures_stand_beside_measured_ones_of_the_same_dataset(sweep: Any) -> None:
    sweep.run("cross_modal", {"class": 0.7}, data="imagenet", deterministic=True)
    sweep.run("concatenation", {"class": 0.8}, data="imagenet", deterministic=True)
    shots = [*SHOTS, *({**p, "form": "texts as samples"} for p in SHOTS if p["form"] == "I+T")]
    sweep.run("cross_modal", {"class": 0.4}, data="D-T-D", protocols=shots, deterministic=True)
    sweep.run("cross_modal", {"class": 0.4}, data="openmoji", deterministic=True)
    table = paper_beside_measured(boards(aggregate(read_runs(sweep.folder))[0]))
    assert set(table["data"]) == {"imagenet", "D-T-D"}
    linear = table[(table["measurement"] == "linear probe, class") & (table["method"] == "Concatenation")]
    assert linear["paper"].tolist() == ["Concatenation 83.6 (table 11)"]
    zero = table[(table["measurement"] == "zero shot, class") & (table["method"] == "Cross-modal alone")]
    assert zero["paper"].tolist() == ["CLIP 57.9 (table 7)"]
    of_clip = table[table["method"] == "Cross-modal alone"].set_index("measurement")["paper"]
    assert of_clip["few shot, class, shots=1, texts as samples"] == "CLIP 44.9 (table 3)"  # which the paper calls I+T
    assert "few shot, class, shots=1, I+T" not in of_clip
    assert (table["measured"] == "–").any()


def test_every_figure_of_the_papers_tables_is_read() -> None:
    figures = paper_values()
    assert folder() is not None
    assert figures.groupby("table").size().to_dict() == {
        "1": 35,
        "11": 32,
        "2": 88,
        "3": 140,
        "4": 54,
        "6": 120,
        "7": 36,
        "8": 40,
        "9": 12,
    }
    assert figures["value"].between(0, 1).all()
    assert not figures[["probe", "metric", "dataset", "method"]].isna().any(axis=None)


@pytest.mark.parametrize(
    ("metric", "value", "half", "text"),
    [
        ("recall@10", 0.5, 0.01, "50.0 ±1.0"),
        ("5nn_accuracy", 0.5, float("nan"), "50.0"),
        ("spearman", 0.5, 0.01, "0.50 ±0.01"),
        ("similarity_variance", 0.5, float("nan"), "0.50"),
    ],
)
def test_units_of_metrics(metric: str, value: float, half: float, text: str) -> None:
    known = find_metric(metric) or Record("d", "p", "f", 1, "p", metric, "image", 0, value).declaration()
    assert format_value(known, value, half) == text


def test_folds_of_unequal_size_are_compared_fold_by_fold(tmp_path: Path) -> None:
    for number, (fusion, dim) in enumerate((("cross_modal", 8), ("concatenation", 20))):
        with RunWriter(tmp_path / str(number)) as writer:
            for fold, size in enumerate((6, 5)):
                hits = np.arange(size) % 2
                writer.append(
                    Record(
                        data="MR", pair="p", fusion=fusion, dim=dim, probe="text_probe", metric="fold_accuracy",
                        modality="text", seed=0, value=float(hits.mean()), protocol={"subset_seed": fold},
                    ),
                    hits,
                )  # fmt: skip
    board = board_of(tmp_path)
    assert [row.label for row in board.rows] == ["Cross-modal alone", "Concatenation"]
    (comparison,) = board.rows[1].against.values()
    assert (comparison.test, comparison.n_items) == ("subsets", 1)


def test_what_was_selected_does_not_make_a_column(tmp_path: Path) -> None:
    for number, fusion in enumerate(("cross_modal", "concatenation")):
        with RunWriter(tmp_path / str(number)) as writer:
            for kind in ("kernel logistic", "kernel ridge"):
                protocol = {"classifier": kind, "selection_score": 0.1 * number, "iterations": 7 + number}
                hits = np.arange(20) % (number + 2) == 0
                writer.append(
                    Record(
                        data="d", pair="p", fusion=fusion, dim=8, probe="kernel_probe", metric="accuracy",
                        modality="image", seed=0, value=float(hits.mean()), protocol=protocol,
                    ),
                    hits,
                )  # fmt: skip
    board = board_of(tmp_path)
    assert len(board.columns) == 2
    assert len(find(board, "Concatenation", 8).against) == 2
