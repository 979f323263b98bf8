"""Logistic regression: large sets, many small problems at once, and in the dual of a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krossfuse.probes.solvers.grid import solve_grid
from krossfuse.probes.solvers.objective import Prepared
from krossfuse.probes.solvers.preconditioner import nystrom
from krossfuse.probes.solvers.rotated import fit_dual, fit_rotated
from krossfuse.probes.solvers.rows import Rows
from krossfuse.probes.solvers.targets import LogisticFit, Target, unbatched

_FEW_VALUES, _FEW_AXES = 1 << 22, 768  # of rows that are rotated: a copy in float64, and an eigendecomposition


@torch.no_grad()
def fit_logistic(
    x: Tensor | Sequence[Tensor],
    targets: Target | Sequence[Target],
    *,
    C: Sequence[float],
    tol: float = 1e-3,
    max_iter: int = 1000,
    fit_intercept: bool = True,
    path: bool = True,
    normalise: bool = False,
    block_rows: int | None = None,
    device: torch.device | str | None = None,
) -> list[LogisticFit]:
    """Fit every label set at every C on the same rows.

    Args:
        x: (n, d), read in blocks of rows, so it may lie over a memory map larger than memory; or several such
            tensors, whose rows follow one another.
        targets: the label sets, solved together; unbatched.
        C: inverse strengths of regularisation, in any order.
        tol: bound on the gradient's largest entry, relative to its largest at W = 0 (with intercepts at the priors);
            besides, the next step must be expected to gain at most ``tol``/100 of the objective.
        max_iter: accepted steps at most.
        fit_intercept: fit an unpenalised intercept.
        path: solve C ascending, each from the last; else all at once, which needs the fewest passes over ``x``.
        normalise: scale every row to Euclidean norm 1 as it is read.
        block_rows: rows in memory at once; None is some 64 MB of them.
        device: where to compute; None is where ``x`` is.

    Returns:
        One :class:`LogisticFit` a target, weights on the device and in the dtype of ``x`` (float32 if it is half).

    Example:
        >>> x = torch.eye(3).repeat(4, 1)
        >>> fit, = fit_logistic(x, Target(torch.arange(3).repeat(4), 3), C=[1.0, 100.0])
        >>> fit.weights.shape, (x @ fit.weights[0].T).argmax(1).tolist()[:3]
        (torch.Size([2, 3, 3]), [0, 1, 2])
    """
    targets = [targets] if isinstance(targets, Target) else list(targets)
    parts = [x] if isinstance(x, Tensor) else list(x)
    rows = Rows([part[None] for part in parts], device, block_rows, normalise)
    if 2 * rows.n <= rows.d or (rows.n * rows.d <= _FEW_VALUES and min(rows.n, rows.d) <= _FEW_AXES):
        inner = torch.cat([block for _, block in rows], 1)
        fits = fit_rotated(inner, [t.batched() for t in targets], C, tol, max_iter, fit_intercept, path)
    else:
        spectrum = nystrom(rows, centred=fit_intercept)
        prepared = [Prepared.of(t.batched(), rows, fit_intercept) for t in targets]
        grids = [C if t.C is None else t.C for t in targets]
        fits = solve_grid(rows, prepared, spectrum, grids, tol, max_iter, path)
    return [unbatched(fit, parts[0].device) for fit in fits]


@torch.no_grad()
def fit_logistic_batch(
    x: Tensor,
    labels: Tensor,
    *,
    n_classes: int,
    C: Sequence[float],
    weight: Tensor | None = None,
    tol: float = 1e-3,
    max_iter: int = 1000,
    fit_intercept: bool = True,
    path: bool = True,
) -> LogisticFit:
    """Fit many small problems (subsets, seeds, shots) at every C, together.

    Args:
        x: (batch, n, d) the rows of each problem, padded to the same n.
        labels: (batch, n) int64; -1 marks padding.
        n_classes: K, the same for all.
        C: inverse strengths of regularisation, in any order.
        weight: (batch, n) non-negative weights of the rows; None is 1 each.
        tol: see :func:`fit_logistic`.
        max_iter: see :func:`fit_logistic`.
        fit_intercept: see :func:`fit_logistic`.
        path: see :func:`fit_logistic`.

    Returns:
        ``weights`` (batch, n_C, K, d), ``intercepts`` (batch, n_C, K), and so on.
    """
    target = Target(labels, n_classes, weight=weight)
    return fit_rotated(x, [target], C, tol, max_iter, fit_intercept, path)[0]


@torch.no_grad()
def fit_kernel_logistic(
    gram: Tensor,
    target: Target,
    *,
    C: Sequence[float],
    tol: float = 1e-3,
    max_iter: int = 1000,
    fit_intercept: bool = True,
) -> LogisticFit:
    """Fit kernel logistic regression in the dual: scores are ``k(·, rows) @ weights.T + intercepts``.

    Equal to :func:`fit_logistic` on any explicit features whose inner products are ``gram``.

    Args:
        gram: (n, n) positive semi-definite kernel matrix of the training rows.
        target: the labels, unbatched.
        C: see :func:`fit_logistic`.
        tol: see :func:`fit_logistic`.
        max_iter: see :func:`fit_logistic`.
        fit_intercept: see :func:`fit_logistic`.

    Returns:
        ``weights`` (n_C, K, n), the dual coefficients.
    """
    (fit,) = fit_dual(gram[None], [target.batched()], C, tol, max_iter, fit_intercept, True)
    return unbatched(fit, gram.device)
