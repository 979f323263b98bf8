from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krossfuse.report.board import Board
from krossfuse.report.boards import boards
from krossfuse.report.few_shot import few_shot_table
from krossfuse.results.aggregate import aggregate
from krossfuse.results.records import Record
from krossfuse.results.runs import read_runs
from krossfuse.results.writer import RunWriter


def write(folder: Path, fusion: str, options: dict[str, Any], described: dict[str, Any], seed: int = 0) -> None:
    """Write a run as the application does: the options in its configuration, what became of them in the record."""
    with RunWriter(folder) as writer:
        writer.write_config({"seed": seed, "fusion": {"_target_": f"x.{fusion}", "seed": seed, **options}})
        description = {"method": fusion, "dim": 8, "seed": seed, **described}
        writer.append(
            Record(
                "d", "p", fusion, 8, "few_shot", "accuracy", "image", seed, 0.5, "group",
                protocol={"shots": 1, "form": "I", "subset_seed": 1},
                fusion_config=description, config_digest=str(options), method_digest=str(options),
            )
        )  # fmt: skip


def board_of(folder: Path) -> Board:
    (board,) = boards(aggregate(read_runs(folder))[0])
    return board


def test_a_new_methods_option_and_title_show_by_themselves(tmp_path: Path) -> None:
    for number, power in enumerate((0.5, 1.0)):
        write(tmp_path / str(number), "mine", {"power": power, "lr": 3}, {"title": "My method", "power": power})
    board = board_of(tmp_path)
    assert [(row.label, row.numbers) for row in board.rows] == [("My method", {"power": p}) for p in ("0.5", "1")]
    assert board.numbers == ["power"]


def test_what_the_data_chose_is_no_option_and_is_shown_as_a_range(tmp_path: Path) -> None:
    for seed, chosen in enumerate((0.1, 1.0)):
        write(tmp_path / f"auto{seed}", "m", {"C": "auto"}, {"C": chosen, "best_epoch": seed}, seed)
    write(tmp_path / "fixed", "m", {"C": 3.0}, {"C": 3.0, "best_epoch": 7})
    assert [(row.label, row.numbers) for row in board_of(tmp_path).rows] == [("m", {"C": "0.1–1"}), ("m", {"C": "3"})]


def test_parts_and_words_stand_in_the_label(tmp_path: Path) -> None:
    for name in ("Uniform", "Spectral"):
        sketch = {"sketch": {"_target_": f"x.{name}Sketch"}, "centre": name == "Uniform", "missing": "none"}
        write(tmp_path / name, "m", sketch, {"sketch": name.lower(), "title": "M"})
    assert {row.label for row in board_of(tmp_path).rows} == {"M, uniform, centre", "M, spectral, no centre"}


def test_the_parts_of_parts_are_named_only_where_nothing_else_tells(tmp_path: Path) -> None:
    described = {"title": "M"}
    kernel = {"_target_": "x.CentredKernel", "power": 0.5}
    for number, options in enumerate(
        (
            {"sketch": {"_target_": "x.Uniform"}, "own": None},
            {"sketch": {"_target_": "x.Spectral"}, "own": {**kernel}},
            {"sketch": {"_target_": "x.Spectral"}, "own": {**kernel, "power": 0.25}},
        )
    ):
        sketch = options["sketch"]["_target_"].removeprefix("x.").lower()  # type: ignore[index]
        write(tmp_path / str(number), "m", options, {**described, "sketch": sketch})
    assert [(row.label, row.numbers) for row in board_of(tmp_path).rows] == [
        ("M, uniform", {}),
        ("M, spectral", {"power": "0.5"}),
        ("M, spectral", {"power": "0.25"}),
    ]


def test_what_each_fold_chose_is_a_range(tmp_path: Path) -> None:
    write(tmp_path / "a", "m", {"C": "variance"}, {"C": [0.25, 0.5, 0.3], "title": "M"})
    write(tmp_path / "b", "m", {"C": 1.0}, {"C": 1.0, "title": "M"})
    assert [(row.label, row.numbers) for row in board_of(tmp_path).rows] == [
        ("M", {"C": "0.25–0.5"}),
        ("M", {"C": "1"}),
    ]


def test_the_few_shot_table_says_the_constant_of_a_preset(tmp_path: Path) -> None:
    write(tmp_path / "a", "rp", {"C": 1.0, "sketch": {"_target_": "x.U"}}, {"C": 1.0, "sketch": "uniform"})
    described = {"C": 0.1, "sketch": "spectral", "method": "rp"}
    write(tmp_path / "b", "preset", {"C": 0.1, "sketch": {"_target_": "x.S"}}, described)
    methods = few_shot_table([board_of(tmp_path)])["method"].tolist()
    assert methods == ["rp, C=1", "preset, C=0.1"]


def test_records_without_a_configuration_are_told_apart_by_what_they_say(tmp_path: Path) -> None:
    for number, extra in enumerate(({}, {"heads": 8})):
        with RunWriter(tmp_path / str(number)) as writer:
            record = Record(
                "d", "p", "attn", 8, "knn", "accuracy", "image", 0, 0.5,
                fusion_config={"method": "attn", **extra}, config_digest=str(number),
            )  # fmt: skip
            writer.append(record)
    assert [row.label for row in board_of(tmp_path).rows] == ["ATTN", "ATTN, heads=8"]


@pytest.mark.parametrize("key", ["alignment", "sketch", "kernel", "C"])
def test_lines_of_old_are_understood(tmp_path: Path, key: str) -> None:
    from krossfuse.results.records import parse_record

    value = 0.3 if key == "C" else "exact"
    line = (
        '{"data": "d", "pair": "p", "fusion": "f", "dim": 1, "probe": "p", "metric": "accuracy", "modality": "image",'
        f' "seed": 0, "value": 0.5, "{key}": {value if key == "C" else repr(value).replace(chr(39), chr(34))}}}'
    )
    assert parse_record(line).fusion_config == {key: value}
