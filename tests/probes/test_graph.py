"""Neighbours, graphs and what spreads over them, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.probes import neighbours as module
from krossfuse.probes.graph import Solved, attach, edges, graph_record, normalised_graph, spread, undirected
from krossfuse.probes.neighbours import Neighbours, check_index, nearest_by_faiss, nearest_in_tiles


def unit(n: int, dim: int, seed: int) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1)


def dense_neighbours(similarity: Tensor, k: int, *, own: bool) -> Neighbours:
    similarity = similarity.clone()
    if own:
        similarity.fill_diagonal_(-torch.inf)
    return Neighbours(*similarity.topk(k, dim=1))


def tiles(x: Tensor, y: Tensor, k: int, *, first: int | None, block: int) -> Neighbours:
    return nearest_in_tiles(
        lambda b: x[b], lambda b: y[b], lambda a, b: a @ b.T, (len(x), len(y)), k, first=first, block_rows=block
    )


def dense_graph(near: Neighbours, n: int, power: float) -> Tensor:
    """W of the neighbours, normalised, by dense algebra."""
    directed = torch.zeros(n, n, dtype=torch.float64).scatter(1, near.places, near.scores.clamp_min(0) ** power)
    weights = (directed + directed.T) / 2
    degrees = weights.sum(1)
    scale = torch.where(degrees > 0, degrees, torch.ones_like(degrees)).rsqrt()
    return scale[:, None] * weights * scale


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(4, 30), m=st.integers(4, 30), k=st.integers(1, 3), block=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_tiles_find_what_the_whole_matrix_has(n: int, m: int, k: int, block: int, seed: int) -> None:
    x, y = unit(n, 5, seed), unit(m, 5, seed + 1)
    for near, expected in (
        (tiles(x, y, k, first=None, block=block), dense_neighbours(x @ y.T, k, own=False)),
        (tiles(x, x, k, first=0, block=block), dense_neighbours(x @ x.T, k, own=True)),
    ):
        torch.testing.assert_close(near.scores, expected.scores)
        torch.testing.assert_close(near.places, expected.places)


def test_queries_that_are_later_gallery_items_are_not_their_own_neighbours() -> None:
    x = unit(20, 4, 0)
    near = tiles(x[7:12], x, 3, first=7, block=4)
    expected = dense_neighbours(x @ x.T, 3, own=True)
    torch.testing.assert_close(near.places, expected.places[7:12])
    with pytest.raises(DataError, match=r"k=20 nearest neighbours of 19 other items"):
        tiles(x, x, 20, first=0, block=4)


def test_equal_scores_keep_the_order_of_the_gallery() -> None:
    x = torch.ones(9, 2)
    for block in (2, 4, 9):
        assert tiles(x, x, 3, first=0, block=block).places[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(6, 40),
    classes=st.integers(1, 70),
    k=st.integers(1, 5),
    power=st.floats(0.5, 5),
    alpha=st.floats(0.0, 0.95),
    seed=st.integers(0, 99),
)
def test_conjugate_gradients_solve_what_dense_algebra_does(
    n: int, classes: int, k: int, power: float, alpha: float, seed: int
) -> None:
    x = unit(n, 4, seed)
    near = tiles(x, x, k, first=0, block=7)
    graph = normalised_graph(undirected(edges(near, n, power=power)))
    dense = dense_graph(near, n, power)
    np.testing.assert_allclose(graph.toarray(), dense.numpy(), atol=1e-12)
    start = torch.rand(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    solved = spread(graph, start.numpy(), alpha=alpha)
    expected = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - alpha * dense, start)
    np.testing.assert_allclose(solved.values, expected.numpy(), atol=1e-8)
    assert solved.residual <= 1e-10
    eigenvalues = np.linalg.eigvalsh(graph.toarray())
    assert eigenvalues[0] >= -1 - 1e-9
    assert eigenvalues[-1] <= 1 + 1e-9


def test_spreading_keeps_order_of_items_and_says_when_it_does_not_converge() -> None:
    n, x = 30, unit(30, 6, 3)
    start = unit(30, 4, 5).abs().numpy()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))

    def solve(points: Tensor, right: np.ndarray, **options: float) -> Solved:
        near = tiles(points, points, 4, first=0, block=8)
        return spread(normalised_graph(undirected(edges(near, n, power=3))), right, alpha=0.7, **options)  # type: ignore[arg-type]

    one, other = solve(x, start), solve(x[order], start[order.numpy()])
    np.testing.assert_allclose(other.values, one.values[order.numpy()], atol=1e-8)
    assert 5 < one.iterations < 60
    with pytest.raises(DataError, match=r"residual of .* after 2 iterations.*raise max_iter=2"):
        solve(x, start, max_iter=2)


def test_an_item_that_is_like_no_other_keeps_its_start() -> None:
    x = torch.eye(4, dtype=torch.float64)
    x[3] = x[2]
    graph = undirected(edges(tiles(x, x, 2, first=0, block=2), 4))
    assert graph_record(graph) == {"n_graph": 4, "n_edges": 1, "n_isolated": 2, "n_components": 3}
    values = spread(normalised_graph(graph), np.eye(4), alpha=0.5).values
    np.testing.assert_allclose(values[:2, :2], np.eye(2))
    np.testing.assert_allclose(values[2:, 2:], np.linalg.inv(np.eye(2) - 0.5 * np.array([[0, 1], [1, 0]])))


def test_attaching_is_the_weighted_mean_of_the_neighbours() -> None:
    x, y = unit(25, 3, 0), unit(6, 3, 1)
    values = unit(25, 4, 2).numpy()
    near = tiles(y, x, 5, first=None, block=4)
    attached = attach(edges(near, 25, power=3), values)
    for i in range(6):
        weights = near.scores[i].clamp_min(0).numpy() ** 3
        expected = sum(w * values[int(j)] for w, j in zip(weights, near.places[i], strict=True)) / weights.sum()
        np.testing.assert_allclose(attached[i], expected)
    alone = Neighbours(torch.full((1, 2), -0.5), torch.tensor([[0, 1]]))
    np.testing.assert_array_equal(attach(edges(alone, 25), values), np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("own", "factory"), [(True, "Flat"), (False, "Flat"), (True, "IVF4,Flat"), (False, "IVF4,Flat")]
)
def test_faiss_finds_the_same_neighbours_when_it_looks_everywhere(own: bool, factory: str) -> None:
    pytest.importorskip("faiss")
    x = unit(300, 8, 0).float()
    y = x if own else unit(40, 8, 1).float()
    near = nearest_by_faiss(
        lambda b: y[b], lambda b: x[b], (len(y), len(x)), 5, first=0 if own else None, factory=factory, nprobe=4,
        block_rows=64, train_rows=100,
    )  # fmt: skip
    expected = tiles(y, x, 5, first=0 if own else None, block=64)
    torch.testing.assert_close(near.scores, expected.scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(near.places, expected.places)


def test_faiss_says_what_it_cannot_do() -> None:
    pytest.importorskip("faiss")
    x = unit(20, 8, 0).float()

    def search(k: int = 3, factory: str = "Flat") -> Neighbours:
        return nearest_by_faiss(lambda b: x[b], lambda b: x[b], (20, 20), k, first=0, factory=factory)

    with pytest.raises(ConfigError, match=r"faiss_factory='Flatt' is no index of 8 dimensions"):
        search(factory="Flatt")
    with pytest.raises(DataError, match=r"faiss_factory='IVF1024,Flat' cannot be trained on 20 items"):
        search(factory="IVF1024,Flat")
    with pytest.raises(DataError, match=r"k=20 nearest neighbours of 19 items"):
        search(k=20)


def test_faiss_that_is_not_installed_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'krossfuse\[faiss\]'"):
        check_index("faiss", "Flat", 1)
    assert check_index("exact", "Flat", 1) == "exact"
