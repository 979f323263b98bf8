"""Ridge regression in closed form: primal, dual, and many small problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krossfuse.core.errors import check_positive
from krossfuse.probes.solvers.rows import Rows


@dataclass(frozen=True)
class RidgeFit:
    """Ridge regressions of t targets, one for each alpha.

    Attributes:
        weights: (n_alpha, t, d) float64; of a kernel matrix (n_alpha, t, n), the dual coefficients.
        intercepts: (n_alpha, t) float64.
    """

    weights: Tensor
    intercepts: Tensor


@torch.no_grad()
def fit_ridge(
    x: Tensor | Sequence[Tensor],
    y: Tensor,
    *,
    alphas: Sequence[float],
    fit_intercept: bool = True,
    weight: Tensor | None = None,
    normalise: bool = False,
    block_rows: int | None = None,
    device: torch.device | str | None = None,
) -> RidgeFit:
    """Minimise ``Σᵢ sᵢ·‖yᵢ − Wxᵢ − b‖² + alpha·‖W‖²`` for every alpha.

    One eigendecomposition, of XᵀX or XXᵀ, whichever is smaller, serves all.

    Args:
        x: (n, d), or several tensors whose rows follow one another, read in blocks of rows.
        y: (n, t) targets.
        alphas: positive strengths of regularisation.
        fit_intercept: fit an unpenalised intercept, as scikit-learn does, by centring.
        weight: (n,) non-negative weights s; None is 1 each. 0 leaves a row out.
        normalise: scale every row to Euclidean norm 1 as it is read.
        block_rows: rows in memory at once; None is some 64 MB of them.
        device: where to compute; None is where ``x`` is.

    Returns:
        Weights (n_alpha, t, d) in float64, on the device of ``x``.
    """
    for alpha in alphas:
        check_positive("alpha", alpha)
    parts = [x] if isinstance(x, Tensor) else list(x)
    home = parts[0].device
    rows = Rows([part[None] for part in parts], device, block_rows, normalise)
    y = y.to(rows.device, torch.float64)
    s = torch.ones(rows.n) if weight is None else weight
    s = s.to(rows.device, torch.float64)
    if int((s > 0).sum()) <= rows.d:
        inner = torch.cat([block[0, s[at] > 0] for at, block in rows]).double()
        gram = inner @ inner.T
        fit = fit_kernel_ridge(gram, y[s > 0], alphas=alphas, fit_intercept=fit_intercept, weight=s[s > 0])
        return RidgeFit((fit.weights @ inner).to(home), fit.intercepts.to(home))
    mean, shift = y.new_zeros(rows.d), y.new_zeros(y.shape[1])
    if fit_intercept:
        mean, shift = rows.mean(s[None])[0].double(), s @ y / s.sum()
    covariance, cross = y.new_zeros(rows.d, rows.d), y.new_zeros(y.shape[1], rows.d)
    for at, block in rows:
        centred = block[0] - mean.to(rows.dtype)
        weighted = centred * s[at, None].to(rows.dtype)
        covariance += weighted.T @ centred
        cross += (y[at] - shift).to(rows.dtype).T @ weighted
    values, vectors = torch.linalg.eigh(covariance)
    strength = torch.tensor(list(alphas), dtype=torch.float64, device=rows.device)[:, None, None]
    weights = ((cross @ vectors) / (values.clamp_min(0) + strength)) @ vectors.T
    return RidgeFit(weights.to(home), (shift - weights @ mean).to(home))


@torch.no_grad()
def fit_kernel_ridge(
    gram: Tensor, y: Tensor, *, alphas: Sequence[float], fit_intercept: bool = True, weight: Tensor | None = None
) -> RidgeFit:
    """Solve ridge regression in the dual for every alpha, by one eigendecomposition of the kernel matrix.

    Scores are ``k(·, rows) @ weights.T + intercepts``. Without intercept it is scikit-learn's ``KernelRidge``.

    Args:
        gram: (n, n) kernel matrix of the training rows.
        y: (n, t) targets.
        alphas: positive strengths of regularisation.
        fit_intercept: fit an unpenalised intercept, by centring in feature space.
        weight: (n,) positive weights of the rows; None is 1 each.
    """
    for alpha in alphas:
        check_positive("alpha", alpha)
    gram, y = gram.double(), y.to(gram.device, torch.float64)
    s = gram.new_ones(len(gram)) if weight is None else weight.to(gram)
    share = s / s.sum()
    mean, shift, centred = gram @ share, share @ y, gram
    if fit_intercept:
        centred = gram - mean - mean[:, None] + share @ mean
    else:
        shift = torch.zeros_like(shift)
    root = s.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * centred * root)
    strength = torch.tensor(list(alphas), dtype=torch.float64, device=gram.device)[:, None, None]
    dual = ((((y - shift) * root[:, None]).T @ vectors) / (values.clamp_min(0) + strength)) @ vectors.T * root
    if not fit_intercept:
        return RidgeFit(dual, shift.expand(len(alphas), -1).clone())
    # Centred features have coefficients that sum to zero, so only the mean's inner products are left to correct.
    dual = dual - dual.sum(2, keepdim=True) * share
    return RidgeFit(dual, shift - dual @ mean)


@torch.no_grad()
def fit_ridge_batch(
    x: Tensor, y: Tensor, weight: Tensor, grid: Sequence[float], n_classes: int
) -> tuple[Tensor, Tensor]:
    """Solve P ridge classifiers, each for all of ``grid`` with one decomposition of its Gram matrix.

    Args:
        x: (P, n, dim) samples.
        y: (P, n) int64 labels; targets are 1 for the label and -1 elsewhere.
        weight: (P, n) sample weights, 0 for padding.
        grid: values of 1/alpha, where the penalty is alpha·‖W‖² and the intercept is free.
        n_classes: number of classes K.

    Returns:
        weights (P, n_C, K, dim) and intercepts (P, n_C, K), those of scikit-learn's ``RidgeClassifier``.
    """
    root = weight.sqrt()[..., None].double()
    total = weight.double().sum(1)[:, None, None]
    target = 2.0 * nn.functional.one_hot(y, n_classes).double() - 1
    mean_x, mean_t = ((root.square() * v.double()).sum(1, keepdim=True) / total for v in (x, target))
    centred = (x.double() - mean_x) * root
    values, vectors = torch.linalg.eigh(centred @ centred.mT)
    spread = vectors.mT @ ((target - mean_t) * root)
    alpha = 1 / torch.tensor(grid, dtype=torch.float64)[None, :, None, None]
    dual = vectors[:, None] @ (spread[:, None] / (values.clamp_min(0)[:, None, :, None] + alpha))
    weights = (dual.mT.flatten(1, 2) @ centred).reshape(len(x), len(grid), n_classes, -1)
    intercepts = mean_t - torch.einsum("pckd,pd->pck", weights, mean_x[:, 0])
    return weights.to(x.dtype), intercepts.to(x.dtype)
