"""The paper's printed values (arXiv 2506.08645 v2), to stand beside measured ones; never a measured result."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from krossfuse.report.board import Board, Column, Row
from krossfuse.report.values import format_difference, format_value
from krossfuse.results.aggregate import Cell

SOURCE = "arXiv 2506.08645 v2"

_FOLDERS = (Path(__file__).parents[1] / "reference", Path(__file__).parents[2] / "experiments" / "reference")
_TASKS = {"linear probe": "linear_probe", "zero-shot": "zero_shot"}
_DIRECTIONS = {"image-to-text": "image->text", "text-to-image": "text->image"}
_FILES = {
    "table1_linear_probe": {"probe": "linear_probe", "metric": "accuracy"},
    "table2_senteval": {"probe": "text_probe", "metric": "accuracy"},
    "table3_few_shot": {"probe": "few_shot", "metric": "accuracy"},
    "table4_clustering": {"probe": "clustering"},
    "table6_retrieval": {"probe": "retrieval"},
    "table7_linear_probe_and_zero_shot": {"metric": "accuracy"},
    "table8_text_experts": {"probe": "text_probe", "metric": "accuracy"},
    "table9_cross_modal_encoders_imagenet": {"metric": "accuracy", "dataset": "ImageNet"},
    "table11_concatenation": {},
}
_COUNTERPARTS = {
    "cross_modal": ("CLIP", "OpenCLIP", "baseline"),
    "image_expert": ("DINOv2",),
    "text_expert": ("E5", "SRoBERTa"),
    "concatenation": ("Concatenation",),
    "rp_krossfuse": ("RP-KrossFuse", "KrossFuse"),
    "spectral_krossfuse": ("RP-KrossFuse", "KrossFuse"),
    "released_code": ("RP-KrossFuse", "KrossFuse"),
    "exact_krossfuse": ("KrossFuse", "RP-KrossFuse"),
    "gate": ("GATE",),
    "attn": ("ATTN",),
    "comm": ("COMM",),
}
"""By fusion, how the names of the paper's methods begin that it is set beside: the first of these that is there."""


_KPOMRP = "kpomrp"
"""A sketch here, and a method of its own in the paper."""

_DATASETS = {
    "oxfordpets": "oxfordiiitpet",
    "imagewoof": "imagenetdogs",
    "mscocoobjects": "mscoco",
    "imagenettypographic": "typoattackedimagenet",
}
"""Data sets that the paper calls otherwise, by :func:`same_name`."""

_PAIRS = {
    **dict.fromkeys(("clip_dinov2", "clip_e5", "clip_sroberta", "clip_dinov2_e5"), "clip_b32"),
    "clip_l14_dinov2": "clip_l14",
    "siglip_dinov2": "siglip_b16",
}
"""The cross-modal encoder of each pair that has a name of its own."""

_ENCODERS = {
    "openclip_h14": "OpenCLIP ViT-H/14",
    "openclip_l14": "OpenCLIP ViT-L/14",
    "clip_l14_336": "ViT-L/14@336",
    "clip_l14": "ViT-L/14",
    "clip_b32": "ViT-B/32",
    "siglip": "SigLIP",
    "mobileclip": "MobileCLIP",
    "openvision": "OpenVision",
}
"""By the beginning of a cross-modal encoder's name, the paper's; a name that holds another stands before it."""

_TEXT_EXPERTS = {"e5": "E5", "sroberta": "SRoBERTa"}


def same_name(name: str) -> str:
    """Return a dataset's name without case and marks: ``FGVC-Aircraft`` and ``fgvcaircraft`` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def folder() -> Path | None:
    """Return the folder of the paper's tables: in the package (wheel) or in the checkout; None where there is none."""
    return next((path for path in _FOLDERS if path.is_dir()), None)


@functools.cache
def paper_values() -> pd.DataFrame:
    """Return the paper's values, one a row.

    Columns: ``table`` (its number in the paper), ``dataset``, ``method``, ``probe``, ``metric``, ``modality`` (of
    retrieval), ``shots``, ``form``, and ``value`` as a fraction. Empty where the tables are not installed.
    """
    place = folder()
    parts = []
    for name, constants in _FILES.items() if place else ():
        assert place is not None
        table = pd.read_csv(place / f"{name}.csv", na_values=["n/a"])
        table = table.rename(columns={"accuracy": "value", "score": "value", "recall": "value", "training": "form"})
        table["table"] = re.findall(r"\d+", name)[0]
        for column, constant in constants.items():
            table[column] = constant
        if "form" in table:  # its I+T trains one head on shots and texts (Lin et al. 2023)
            table["form"] = table["form"].replace({"I+T": "texts as samples"})
        if "task" in table:
            table["probe"] = table["task"].map(_TASKS)
        if "direction" in table:
            table["modality"] = table["direction"].map(_DIRECTIONS)
            table["metric"] = "recall@" + table["k"].astype(str)
        for extra in ("backbone", "cross_modal_encoder"):
            if extra in table:
                table["method"] = table["method"] + " (" + table[extra] + ")"
        if name == "table11_concatenation":
            linear = table["metric"] == "linear probe accuracy"
            table["probe"] = linear.map({True: "linear_probe", False: "clustering"})
            table.loc[linear, "metric"] = "accuracy"
            table = table[linear | table["metric"].isin(["NMI", "AMI", "ARI"])]
        table["metric"] = table["metric"].str.lower()
        parts.append(table)
    columns = ["table", "dataset", "method", "probe", "metric", "modality", "shots", "form", "value"]
    if not parts:
        return pd.DataFrame(columns=columns)
    found = pd.concat(parts, ignore_index=True).reindex(columns=columns).dropna(subset=["value"])
    found["value"] = found["value"].astype(float) / 100
    return found


def _matching(values: pd.DataFrame, column: Column) -> pd.DataFrame:
    measure = column.measure
    mask = (values["probe"] == column.probe) & (values["metric"] == column.metric)
    if measure["shots"] != "":
        mask &= (values["shots"] == float(measure["shots"])) & (values["form"] == measure["form"])
    else:
        mask &= values["shots"].isna()
    if "->" in measure["modality"]:
        mask &= values["modality"] == measure["modality"]
    return values[mask]


def _of_pair(values: pd.DataFrame, pair: str) -> pd.DataFrame:
    """Return the paper's values of a pair's encoders; of a pair that it has not, all."""
    parts = _PAIRS.get(pair, pair).split("+") + pair.split("_")[1:] * (pair in _PAIRS)
    cross = next((paper for name, paper in _ENCODERS.items() for part in parts if part.startswith(name)), None)
    if cross is None:
        return values
    methods = values["method"]
    encoder = methods.map(lambda method: next((paper for paper in _ENCODERS.values() if paper in method), "ViT-B/32"))
    alone = methods.str.match("|".join(("DINOv2", *_TEXT_EXPERTS.values())))
    kept = (encoder == cross) | alone
    experts = [paper for name, paper in _TEXT_EXPERTS.items() if any(part.startswith(name) for part in parts)]
    if experts:
        others = [paper for paper in _TEXT_EXPERTS.values() if paper not in experts]
        kept &= ~methods.str.contains("|".join(others))
    return values[kept]


def _counterparts(row: Row, values: pd.DataFrame) -> pd.DataFrame:
    if _KPOMRP in row.name.lower():
        return values[values["method"].str.match("KPoMRP")]
    for name in _COUNTERPARTS.get(row.fusion, ()):
        found = values[values["method"].str.match(rf"{re.escape(name)}\b")]
        if len(found):
            return found
    return values.iloc[:0]


def paper_beside_measured(boards: Sequence[Board]) -> pd.DataFrame:
    """Return, where a dataset is one of the paper's, its values beside the measured ones; else an empty table.

    Columns, all text: ``data``, ``pair``, ``measurement``, ``method``, ``dim``, ``measured`` (with its interval),
    ``paper`` (its methods with their values, and the number of its table) and ``difference`` (measured less paper, for
    each of these, and whether it is larger than the interval, which is all that is known of chance: the paper gives
    none). A method that only the paper has stands with ``measured`` empty.
    """
    rows: list[dict[str, Any]] = []
    everything = paper_values()
    for board in boards:
        name = same_name(board.data)
        values = everything[everything["dataset"].map(same_name) == _DATASETS.get(name, name)]
        values = _of_pair(values, board.pair)
        for column in board.columns:
            there = _matching(values, column)
            if there.empty:
                continue
            shared = {"data": board.data, "pair": board.pair, "measurement": column.name}
            used: set[int] = set()
            for row in (row for row in board.rows if column.key in row.cells):
                cell = row.cells[column.key]
                beside = _counterparts(row, there)
                used |= set(beside.index)
                rows.append(
                    shared
                    | {"method": row.label, "dim": str(row.dim)}
                    | {"measured": format_value(column.declared, cell["mean"], cell["half_width"])}
                    | {"paper": "; ".join(_quote(value, column) for _, value in beside.iterrows()) or "–"}
                    | {"difference": "; ".join(_difference(cell, value, column) for value in beside["value"]) or "–"}
                )
            for _, value in there.drop(index=list(used)).iterrows():
                rows.append(shared | {"method": "–", "dim": "", "measured": "–"}
                            | {"paper": _quote(value, column), "difference": "–"})  # fmt: skip
    columns = ["data", "pair", "measurement", "method", "dim", "measured", "paper", "difference"]
    return pd.DataFrame(rows, columns=columns)


def _difference(cell: Cell, paper: float, column: Column) -> str:
    """Return how far a measured value is from the paper's, and whether that is more than the interval's half width."""
    difference, half = cell["mean"] - paper, cell["half_width"]
    text = format_difference(column.declared, difference)
    if pd.isna(half):
        return f"{text} (no interval)"
    return f"{text} ({'larger than' if abs(difference) > half else 'within'} the interval)"


def _quote(value: pd.Series[Any], column: Column) -> str:
    return f"{value['method']} {format_value(column.declared, value['value'])} (table {value['table']})"
