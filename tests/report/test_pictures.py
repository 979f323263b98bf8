from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from krossfuse.report.board import Board
from krossfuse.report.boards import boards
from krossfuse.report.pictures import (
    accuracy_against_bits,
    accuracy_against_dimension,
    accuracy_against_round,
    clustering_bars,
    few_shot_curves,
    kernel_heat_maps,
    linear_against_zero_shot,
    privacy_bits_accuracy,
    save_pictures,
    similarity_distributions,
    tsne,
    umap,
)
from krossfuse.report.pictures.federated import MECHANISM_COLOURS, trainings
from krossfuse.report.pictures.labels import spread
from krossfuse.report.pictures.mechanisms import error_laws, rate_against_ratio
from krossfuse.report.pictures.projections import _distances
from krossfuse.report.pictures.snapshots import Shot
from krossfuse.report.pictures.style import STYLE, families, settle
from krossfuse.results.aggregate import aggregate
from krossfuse.results.runs import read_runs
from krossfuse.results.snapshot import KernelSnapshot


def board_of(path: Path) -> Board:
    (board,) = boards(aggregate(read_runs(path))[0])
    return board


def texts(figure: Figure) -> list[Any]:
    figure.draw_without_rendering()
    return [t for axes in figure.axes for t in axes.texts if t.get_text()]


def overlaps(one: Any, other: Any) -> bool:
    a, b = one.get_window_extent(), other.get_window_extent()
    return bool(min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1)


def shot(board: Board) -> Shot:
    generator = np.random.default_rng(0)
    labels = np.arange(24) // 8
    points = generator.normal(size=(24, 5)) + 3 * np.eye(5)[labels]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    gram = (points @ points.T).astype(np.float32)
    kernels = {"cross_modal": gram, "dino": gram**2, "sum": (gram + gram**2) / 2, "product": gram**3, "fused": gram**3}
    return Shot(
        board.rows[-1],
        0,
        KernelSnapshot(labels, ("a", "b", "c"), "group", kernels, {"cross_modal": gram, "fused": gram}, np.eye(24) > 0),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=9))
def test_spread_labels_are_apart_in_order_and_inside(values: list[float]) -> None:
    placed = spread(values, 1.0, 0.0, 10.0)
    ranked = sorted(placed)
    assert all(b - a >= 1.0 - 1e-9 for a, b in itertools.pairwise(ranked))
    assert ranked[0] >= -1e-9
    assert ranked[-1] <= 10 + 1e-9
    assert [placed[i] for i in np.argsort(values, kind="stable")] == ranked


def test_labels_that_are_apart_stay_where_they_are() -> None:
    assert spread([1.0, 5.0, 9.0], 1.0, 0.0, 10.0) == [1.0, 5.0, 9.0]


def test_a_method_is_one_family_with_one_colour_over_its_dimensions(quickstart: Path) -> None:
    found = families(board_of(quickstart))
    assert [(f.name, [row.dim for row in f.rows]) for f in found][-1] == ("RP-KrossFuse, exact", [768, 1500])
    assert len({f.colour for f in found}) == len(found)


def test_trade_off_draws_the_recorded_means_and_labels_do_not_overlap(quickstart: Path) -> None:
    board = board_of(quickstart)
    with mpl.rc_context(STYLE):
        figure = linear_against_zero_shot(board)
        assert figure is not None
        left = figure.axes[0]
        labels = texts(figure)
        assert {t.get_text().replace("\n", " ") for t in left.texts} == {
            "Cross-modal alone (256)",
            "Image expert alone (1280)",
            "Concatenation (1536)",
            "RP-KrossFuse, published (768–1500)",
            "RP-KrossFuse, exact (768–1500)",
        }
        assert not [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :] if overlaps(a, b)]
        frame = left.get_window_extent()
        for text in left.texts:
            extent = text.get_window_extent()
            assert frame.x0 <= extent.x0
            assert extent.x1 <= frame.x1
    drawn = {tuple(np.round(point, 2)) for c in left.collections for point in np.ma.getdata(c.get_offsets()).tolist()}
    group = {c.probe: c.key for c in board.columns if c.measure["label_set"] == "group"}
    means = {
        tuple(round(100 * row.cells[group[probe]]["mean"], 2) for probe in ("zero_shot", "linear_probe"))
        for row in board.rows
    }
    assert drawn >= means


def test_a_method_without_texts_is_a_line(sweep: Any) -> None:
    sweep.run("cross_modal", {"group": 0.5})
    folder = sweep.run("image_expert", {"group": 0.6})
    path = folder / "results.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if "zero_shot" not in line))
    figure = linear_against_zero_shot(board_of(sweep.folder))
    assert figure is not None
    assert "Image expert alone (64),\nno zero-shot" in {t.get_text() for t in texts(figure)}


def test_dimension_figure_has_a_line_a_swept_method_and_levels_for_the_others(quickstart: Path) -> None:
    figure = accuracy_against_dimension(board_of(quickstart))
    assert figure is not None
    axes = figure.axes[0]
    lines = [line for line in axes.lines if list(line.get_xdata()) == [768, 1500]]
    assert len(lines) == 2
    assert [t.get_text() for t in axes.get_xticklabels()] == ["768", "1500"]


def test_figures_that_were_not_measured_are_not_drawn(sweep: Any) -> None:
    sweep.run("cross_modal", {"group": 0.5})
    board = board_of(sweep.folder)
    for draw in (accuracy_against_dimension, few_shot_curves, clustering_bars):
        assert draw(board) is None
    assert kernel_heat_maps(board, []) is None
    assert similarity_distributions(board, []) is None
    assert [path.name for path in save_pictures([board], read_runs(sweep.folder), sweep.folder / "f")] == [
        "linear_against_zero_shot.png"
    ]


def test_heat_maps_share_one_scale_and_mark_the_classes(quickstart: Path) -> None:
    board = board_of(quickstart)
    figure = kernel_heat_maps(board, [shot(board)])
    assert figure is not None
    images = [image for axes in figure.axes for image in axes.images]
    assert len(images) == 5
    assert len({image.get_clim() for image in images}) == 1
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_distributions_state_the_chance_that_a_match_is_the_more_similar(quickstart: Path) -> None:
    board = board_of(quickstart)
    made = shot(board)
    figure = similarity_distributions(board, [made])
    assert figure is not None
    similarity, matches = made.snapshot.similarities["fused"], made.snapshot.matches
    match, other = similarity[matches], similarity[~matches]
    auc = np.mean((match[:, None] > other[None, :]) + 0.5 * (match[:, None] == other[None, :]))
    assert figure.axes[1].texts[0].get_text() == f"AUC {auc:.3f}"


def test_kernel_distances_are_euclidean_ones() -> None:
    points = np.random.default_rng(0).normal(size=(6, 3))
    expected = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    np.testing.assert_allclose(_distances((points @ points.T).astype(np.float32)), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [tsne, umap])
def test_projections_draw_every_item(quickstart: Path, draw: Any) -> None:
    board = board_of(quickstart)
    figure = draw(board, [shot(board)])
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 24


def test_class_names_are_drawn_as_they_are(quickstart: Path, tmp_path: Path) -> None:
    board = board_of(quickstart)
    one = shot(board)
    names = ("costs $5 {", "$\\foo$ bar", "a_b")
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = kernel_heat_maps(board, [replace(one, snapshot=replace(one.snapshot, classes=names))])
        assert figure is not None
        figure.savefig(tmp_path / "names.png")
    assert {label.get_text() for axes in figure.axes for label in axes.get_yticklabels()} >= set(names)


@pytest.mark.filterwarnings("error")
def test_letters_that_no_font_has_and_long_names_warn_of_nothing(sweep: Any, tmp_path: Path) -> None:
    strange = "犬 ខ្មែរ \U0001fae8 " + "long " * 40
    for fusion in ("cross_modal", strange):
        for dim in (64, 128):
            sweep.run(fusion, {strange: 0.5}, dim=dim, deterministic=True, data=strange)
        sweep.run(
            fusion, {strange: 0.5}, dim=64, deterministic=True, data=strange,
            protocols=[{"shots": k, "form": "I", "subset_seed": s} for k in (1, 2) for s in (1, 2)],
        )  # fmt: skip
    board = board_of(sweep.folder)
    one = shot(board)
    made = replace(one, snapshot=replace(one.snapshot, classes=(strange, "b", "ж"), label_set=strange))
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        for number, draw in enumerate((kernel_heat_maps, similarity_distributions)):
            figure = draw(board, [made])
            assert figure is not None
            settle(figure)
            figure.savefig(tmp_path / f"{number}.png")
    written = save_pictures([board], read_runs(sweep.folder), tmp_path)
    assert {path.stem for path in written} == {"linear_against_zero_shot", "accuracy_against_dimension", "few_shot"}


def test_titles_of_panels_lie_inside_the_picture(quickstart: Path) -> None:
    board = board_of(quickstart)
    one = shot(board)
    wide = replace(one, row=replace(one.row, label="RP-KrossFuse, exact, complex to real SRHT, weight 3, and more"))
    for draw in (similarity_distributions, kernel_heat_maps):
        figure = draw(board, [wide])
        assert figure is not None
        settle(figure)
        width = figure.get_window_extent().x1
        for axes in figure.axes:
            for title in (axes.title, axes._left_title):
                if title.get_text():
                    assert title.get_window_extent().x1 <= width


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_items_in_a_snapshot_draw_what_they_can(quickstart: Path, rows: int, tmp_path: Path) -> None:
    import torch

    from krossfuse.results.snapshot import make_snapshot, save_snapshot

    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    folder = quickstart / "6"
    shots = {"cross_modal": x, "experts": {"dino": x**2}, "fused": x, "text_cross_modal": x, "text_fused": x}
    save_snapshot(make_snapshot(torch.arange(rows), list("abc"), text_of=torch.arange(rows), **shots), folder)
    runs = read_runs(quickstart)
    written = save_pictures(boards(aggregate(runs)[0]), runs, tmp_path, kinds=["kernels", "similarities"])
    assert {path.stem for path in written} == (set() if rows == 1 else {"kernels", "similarities"})


FEDERATIONS = {
    "none, 30 clients": (None, 3.0e7),
    "gaussian, ε=8, 30 clients": (7.99, 3.0e7),
    "cepam, ε=8, 30 clients": (7.99, 2.0e5),
    "cepam, ε=1, 30 clients": (0.999, 1.0e5),
}


def federated(sweep: Any, *, seeds: int = 3, protected_only: bool = False) -> Board:
    """Return a board of two methods under four federations, with a rise of 10 points in each of three rounds."""
    for fusion, dim in (("cross_modal", 8), ("rp_krossfuse", 24)):
        for seed in range(seeds):
            protocols = [
                {
                    "federation": name,
                    "mechanism": name.split(",")[0],
                    "clients": 30,
                    "epsilon": epsilon,
                    "total_bits": bits,
                    "statement": f"statement {seed} {name}",
                    "history": {
                        "round": [1, 2, 3],
                        "accuracy": [0.3 + 0.01 * seed, 0.4 + 0.01 * seed, 0.5 + 0.01 * seed],
                        "total_bits": [bits / 3, 2 * bits / 3, bits],
                    },
                }
                for name, (epsilon, bits) in FEDERATIONS.items()
                if epsilon is not None or not protected_only
            ]
            sweep.run(fusion, {"group": 0.5 + 0.01 * seed}, seed=seed, dim=dim, protocols=protocols)
    return board_of(sweep.folder)


def test_federations_are_columns_of_their_own_and_their_curves_are_means_over_seeds(sweep: Any) -> None:
    board = federated(sweep)
    assert [column.measure["federation"] for column in board.columns] == list(FEDERATIONS)
    assert all("statement" not in column.title and "history" not in column.title for column in board.columns)
    found, columns = trainings(board)
    assert (len(found), len(columns)) == (8, 4)
    assert {one.name for one in found} == {name.removesuffix(", 30 clients") for name in FEDERATIONS}
    assert {one.panel[2] for one in found} == {"30 clients"}
    for one in found:
        assert one.curves["accuracy"] == pytest.approx([31.0, 41.0, 51.0])
        # The half width of three values a percent apart, by Student's t with two degrees of freedom.
        assert (one.high - one.low) / 2 == pytest.approx(np.full(3, 4.3027 / np.sqrt(3)), rel=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("draw", "name"), [(accuracy_against_round, "round"), (accuracy_against_bits, "total_bits")])
def test_curves_of_federated_training(sweep: Any, draw: Any, name: str) -> None:
    board = federated(sweep)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw(board)
        settle(figure)
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 2
    by_name = {one.name: one for one in trainings(board)[0]}
    for axes in panels:
        assert len(axes.lines) == len(axes.collections) == 4
        drawn = {tuple(np.round(np.ravel(line.get_xdata()), 3)): line.get_color() for line in axes.lines}
        for one in by_name.values():
            assert tuple(np.round(one.curves[name], 3)) in drawn
        assert set(drawn.values()) <= set(MECHANISM_COLOURS.values())
        assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.lines}) == 4
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [name.removesuffix(", 30 clients") for name in FEDERATIONS]


@pytest.mark.filterwarnings("error")
def test_what_privacy_and_bits_buy(sweep: Any) -> None:
    board = federated(sweep)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = privacy_bits_accuracy(board)
        assert figure is not None
        settle(figure)
    first = figure.axes[0]
    points = sorted(tuple(np.ravel(c.get_offsets())) for c in first.collections)
    assert [p[1] for p in points] == pytest.approx([1.0e5, 2.0e5, 3.0e7, 3.0e7])
    assert [round(float(x), 2) for x, _ in points[:3]] == [1.0, 7.99, 7.99]
    assert points[3][0] > 8
    accuracy = board.rows[0].cells[board.columns[0].key]["mean"]
    assert {text.get_text() for text in first.texts} == {f"{100 * accuracy:.0f}"}


def test_partitions_and_numbers_of_clients_have_panels_of_their_own(sweep: Any) -> None:
    for clients, partition in ((30, "iid"), (1000, "resampled")):
        words = f"{clients} clients" + (", resampled" if partition == "resampled" else "")
        protocols = [
            {
                "federation": f"cepam, ε={epsilon}, {words}",
                "mechanism": "cepam",
                "clients": clients,
                "partition": partition,
                "epsilon": float(epsilon),
                "total_bits": 100.0,
                "history": {"round": [1, 2], "accuracy": [0.1, 0.01], "total_bits": [50.0, 100.0]},
            }
            for epsilon in (8, 2, 1)
        ]
        for seed in (0, 1):
            protocols = [
                {**p, "history": {**p["history"], "accuracy": [0.1, 0.01 + 0.02 * seed]}}  # type: ignore[dict-item]
                for p in protocols
            ]
            sweep.run("cross_modal", {"group": 0.5}, seed=seed, dim=8, protocols=protocols)
    board = board_of(sweep.folder)
    assert {one.panel[2] for one in trainings(board)[0]} == {"30 clients", "1000 clients, resampled"}
    assert {one.name for one in trainings(board)[0]} == {"cepam, ε=8", "cepam, ε=2", "cepam, ε=1"}
    assert all(one.low.min() == 0 for one in trainings(board)[0])
    figure = accuracy_against_bits(board)
    assert figure is not None
    for axes in figure.axes[:2]:
        assert len({str(line._unscaled_dash_pattern) for line in axes.lines}) == 3


@pytest.mark.parametrize("protected_only", [False, True])
def test_there_is_an_infinite_epsilon_only_where_something_is_unprotected(sweep: Any, protected_only: bool) -> None:
    figure = privacy_bits_accuracy(federated(sweep, seeds=1, protected_only=protected_only))
    assert figure is not None
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["0.999", "7.99", *([] if protected_only else ["∞"])]


def test_without_a_federation_there_is_no_picture(quickstart: Path) -> None:
    for draw in (accuracy_against_round, accuracy_against_bits, privacy_bits_accuracy):
        assert draw(board_of(quickstart)) is None


def test_a_single_seed_has_no_band(sweep: Any) -> None:
    figure = accuracy_against_round(federated(sweep, seeds=1))
    assert figure is not None
    assert not figure.axes[0].collections


@pytest.mark.filterwarnings("error")
def test_rates_and_error_laws(tmp_path: Path) -> None:
    rows = [
        {"lattice": name, "s_over_sigma": ratio, "floor": ratio, "bits": ratio + gap}
        for name, gap in (("Z1", 0.5), ("E8", 0.36), ("Z1 laplace", 0.8))
        for ratio in (0.1, 1.0, 10.0)
    ]
    normal = np.random.default_rng(0).normal(size=20_000)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = rate_against_ratio(rows)
        settle(figure)
        left, right = figure.axes
        assert list(left.lines[0].get_ydata()) == [0.1, 1.0, 10.0]
        assert list(right.lines[1].get_ydata()) == pytest.approx([0.36] * 3)
        laws = error_laws({"sound": normal, "too wide": 1.2 * normal, "laplace": np.sign(normal) * normal**2})
        settle(laws)
        laws.savefig(tmp_path / "laws.png")
    colours = [axes.lines[1].get_color() for axes in laws.axes[:3]]
    assert colours[0] != colours[1] == colours[2]
    expected, drawn = (np.ravel(v) for v in (laws.axes[0].lines[1].get_xdata(), laws.axes[0].lines[1].get_ydata()))
    assert np.corrcoef(expected, drawn)[0, 1] > 0.999
    slope = np.polyfit(*(np.ravel(v) for v in laws.axes[1].lines[1].get_data()), 1)[0]
    assert slope == pytest.approx(1.2, rel=0.02)
