"""Graphs of nearest neighbours, and what spreads over them. Section 8 of docs/mathematics.md."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError
from krossfuse.probes.neighbours import Neighbours

Array = NDArray[np.float64]
Sparse = Any
"""A ``scipy.sparse.csr_array`` of float64."""

CLASSES_AT_ONCE = 64
"""Columns that one run of conjugate gradients solves together, so that its work vectors stay small."""


class Solved(NamedTuple):
    """What :func:`spread` returns.

    Attributes:
        values: (n, classes).
        iterations: the most that a block of classes took.
        residual: the largest norm of what is left of the equations, relative to the right-hand sides.
    """

    values: Array
    iterations: int
    residual: float


def edges(neighbours: Neighbours, n: int, *, power: float = 1.0) -> Sparse:
    """Return the directed graph (queries, n): each query's k nearest, weighted by max(score, 0)^power."""
    from scipy.sparse import csr_array

    scores = np.maximum(neighbours.scores.double().numpy(), 0.0) ** power
    rows, k = scores.shape
    # A copy: what follows works in place, and the neighbours are used again.
    places = neighbours.places.numpy().ravel().copy()
    matrix = csr_array((scores.ravel(), places, np.arange(0, rows * k + 1, k)), (rows, n))
    matrix.eliminate_zeros()
    return matrix


def undirected(graph: Sparse) -> Sparse:
    """Return (B + Bᵀ)/2 of a directed graph B without loops."""
    symmetric = ((graph + graph.T) / 2).tocsr()
    symmetric.setdiag(0)
    symmetric.eliminate_zeros()
    return symmetric


def normalised_graph(graph: Sparse) -> Sparse:
    """Return D^(−1/2)·W·D^(−1/2) of an undirected graph W, D its degrees; an item without an edge keeps none.

    Its eigenvalues lie in [−1, 1].
    """
    from scipy.sparse import diags_array

    degrees = np.asarray(graph.sum(axis=1)).ravel()
    scale = np.zeros_like(degrees)
    scale[degrees > 0] = degrees[degrees > 0] ** -0.5
    return (diags_array(scale) @ graph @ diags_array(scale)).tocsr()


def spread(graph: Sparse, start: Array, *, alpha: float, tol: float = 1e-10, max_iter: int = 1000) -> Solved:
    """Solve (I − α·S)·F = B by conjugate gradients, the classes in blocks of :data:`CLASSES_AT_ONCE` together.

    The matrix is positive definite with condition number (1 + α)/(1 − α) at most, so the number of iterations does not
    grow with the items. Classes that are solved together are one system with a block for each.

    Args:
        graph: S (n, n), symmetric with eigenvalues in [−1, 1], see :func:`normalised_graph`.
        start: B (n, classes).
        alpha: in [0, 1).
        tol: of the residual's norm, relative to B's.
        max_iter: iterations at most.

    Raises:
        DataError: they did not reach ``tol``.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    n, classes = start.shape
    values, most, worst = np.empty_like(start), 0, 0.0
    for block in blocks(classes, CLASSES_AT_ONCE):
        right = np.ascontiguousarray(start[:, block])
        shape = right.shape

        def apply(x: Array, shape: tuple[int, int] = shape) -> Array:
            columns = x.reshape(shape)
            product: Array = (columns - alpha * (graph @ columns)).ravel()
            return product

        steps: list[None] = []
        operator = LinearOperator((right.size, right.size), matvec=apply, dtype=np.float64)
        solution, failed = cg(
            operator, right.ravel(), rtol=tol, atol=0.0, maxiter=max_iter, callback=lambda _, s=steps: s.append(None)
        )
        size = float(np.linalg.norm(right)) or 1.0
        residual = float(np.linalg.norm(apply(solution) - right.ravel())) / size
        if failed:
            raise DataError(
                f"conjugate gradients on a graph of {n} items left a residual of {residual:.1e} after {len(steps)} "
                f"iterations, above tol={tol:g}; raise max_iter={max_iter}, or lower alpha={alpha:g}"
            )
        values[:, block] = solution.reshape(shape)
        most, worst = max(most, len(steps)), max(worst, residual)
    return Solved(values, most, worst)


def attach(graph: Sparse, values: Array) -> Array:
    """Return the weighted mean over each query's neighbours of their (n, classes) values; zero where it has none.

    Args:
        graph: (queries, n) directed, see :func:`edges`.
        values: (n, classes).
    """
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    mean: Array = (graph @ values) / np.where(degrees > 0, degrees, 1.0)[:, None]
    return mean


def graph_record(graph: Sparse) -> dict[str, Any]:
    """Return what the records say of an undirected graph: items, edges, items without an edge, components."""
    from scipy.sparse.csgraph import connected_components

    degrees = np.diff(graph.indptr)
    return {
        "n_graph": graph.shape[0],
        "n_edges": graph.nnz // 2,
        "n_isolated": int((degrees == 0).sum()),
        "n_components": int(connected_components(graph, directed=False, return_labels=False)),
    }
