"""Few rows, or a kernel matrix: rotated first into their own axes, in which the preconditioner is diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from krossfuse.probes.solvers.grid import solve_grid
from krossfuse.probes.solvers.objective import Prepared
from krossfuse.probes.solvers.preconditioner import Spectrum
from krossfuse.probes.solvers.rows import Rows
from krossfuse.probes.solvers.targets import LogisticFit, Target

_ROUNDING = 8


def fit_rotated(
    x: Tensor, targets: Sequence[Target], C: Sequence[float], tol: float, max_iter: int, intercept: bool, path: bool
) -> list[LogisticFit]:
    """Fit a batch of problems (batch, n, d) in the eigenvectors of their Gram matrices, or covariances if n > d.

    All targets share the rotation, which is of the rows as these weigh in all of them, and so the passes. Where they do
    not weigh the same in each the preconditioner is a little off; the solutions are not.
    """
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    inner = x.to(torch.float64)
    if x.shape[1] <= x.shape[2]:
        fits = fit_dual(inner @ inner.transpose(1, 2), targets, C, tol, max_iter, intercept, path, dtype=dtype)
        # (batch, n_C, K, n) dual coefficients to weights: scores are inner products with the rows.
        return [replace(fit, weights=(fit.weights.double() @ inner[:, None]).to(dtype)) for fit in fits]
    weight, mean = _common(targets, Rows([inner]), intercept)
    centred = inner - mean[:, None]
    values, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ (centred * weight[..., None]))
    fits = []
    for fit in _solve(Rows([(centred @ vectors).to(dtype)]), values, targets, C, tol, max_iter, intercept, path):
        weights = fit.weights.double() @ vectors.transpose(1, 2)[:, None]
        offset = (weights @ mean[:, None, :, None])[..., 0]
        fits.append(replace(fit, weights=weights.to(dtype), intercepts=(fit.intercepts - offset).to(dtype)))
    return fits


def fit_dual(
    gram: Tensor,
    targets: Sequence[Target],
    C: Sequence[float],
    tol: float,
    max_iter: int,
    intercept: bool,
    path: bool,
    dtype: torch.dtype = torch.float64,
) -> list[LogisticFit]:
    """Fit a batch of problems given by their (batch, n, n) kernel matrices; ``weights`` are dual coefficients."""
    gram = gram.double()
    weight, _ = _common(targets, Rows([gram]), intercept)
    centred = gram
    if intercept:
        mean = gram @ weight[..., None]
        centred = gram - mean - mean.transpose(1, 2) + (weight[:, None] @ mean)
    root = weight.sqrt()
    values, vectors = torch.linalg.eigh(root[..., None] * centred * root[:, None])
    # Directions below the rounding of the largest, or of what was centred, hold no data.
    size = (weight * gram.diagonal(dim1=1, dim2=2)).sum(1, keepdim=True)
    least = torch.maximum(1e-13 * values[:, -1:], _ROUNDING * torch.finfo(torch.float64).eps * size)
    inverse = torch.where(values > least, values.clamp_min(1e-300).rsqrt(), 0)
    dual = root[..., None] * vectors * inverse[:, None]
    fits = []
    for fit in _solve(Rows([(centred @ dual).to(dtype)]), values, targets, C, tol, max_iter, intercept, path):
        coefficients = fit.weights.double() @ dual.transpose(1, 2)[:, None]
        intercepts = fit.intercepts.double()
        if intercept:
            # Coefficients sum to zero (the centred features do), so only the mean's inner products move the intercept.
            coefficients = coefficients - coefficients.sum(-1, keepdim=True) * weight[:, None, None]
            intercepts = intercepts - (coefficients @ mean[:, None])[..., 0]
        fits.append(replace(fit, weights=coefficients.to(dtype), intercepts=intercepts.to(dtype)))
    return fits


def _common(targets: Sequence[Target], rows: Rows, intercept: bool) -> tuple[Tensor, Tensor]:
    """Return what rows weigh in all targets together, (batch, n) summing to 1, and their (batch, d) mean."""
    prepared = [Prepared.of(target, rows, intercept) for target in targets]
    weight = torch.stack([one.weight for one in prepared]).mean(0)
    return weight, torch.stack([one.mean for one in prepared]).mean(0)


def _solve(
    rows: Rows,
    values: Tensor,
    targets: Sequence[Target],
    C: Sequence[float],
    tol: float,
    max_iter: int,
    intercept: bool,
    path: bool,
) -> list[LogisticFit]:
    """Solve targets on rows in the eigenvectors of their covariance, whose (batch, d) eigenvalues are given."""
    prepared = [Prepared.of(target, rows, intercept) for target in targets]
    grids = [C if target.C is None else target.C for target in targets]
    return solve_grid(rows, prepared, Spectrum(values.clamp_min(0).to(rows.dtype)), grids, tol, max_iter, path)
