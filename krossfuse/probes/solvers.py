"""Solvers of the linear probes: logistic regression and ridge, in torch alone, on CPU or GPU.

The logistic objective is scikit-learn's ``LogisticRegression``: ``C·Σᵢ sᵢ·lossᵢ + ½‖W‖²``, intercept unpenalised;
softmax for three classes or more, one logistic for two, a logistic a class where labels are multilabel. L-BFGS
minimises it in full batch in its mean form ``(1/S)·Σ sᵢ·lossᵢ + (λ/2)·‖W‖²`` with ``S = Σ sᵢ``, ``λ = 1/(C·S)``, whose
gradient scikit-learn's ``tol`` bounds too. What makes it fast:

* A preconditioner. The Hessian of class k is about ``c_k·Σ + λ``, with c_k the mean of p_k(1 − p_k) and Σ the
  features' covariance; the leading eigenpairs of Σ (a randomised Nyström sketch, arXiv 2110.02820) invert it for all
  classes and all C.
* Intercepts are eliminated: given the scores, their optimum costs no product with the features.
* One pass over the rows serves every label set and every C that is being solved: their weights stand side by side in
  one matrix product, 4·n·d·(columns) operations for objective and gradient.
* A path: C ascending, each solution extrapolated from the last two in log C. Curvature pairs are not carried over:
  the probabilities sharpen with C, and stale pairs cost more steps than they save.
* Few rows are rotated: L2 is invariant to rotation, so n ≤ d rows are n rows in n dimensions or fewer, in the
  eigenvectors of the Gram matrix, where the preconditioner is diagonal. A kernel matrix is solved by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_positive

_BLOCK_VALUES = 1 << 24  # in one block of rows: 64 MB of float32
_SCORE_VALUES = 1 << 26  # scores of all rows that are kept at once: 256 MB of float32
_BALANCE_STEPS = 10
_GAIN = 1e-2  # of tol: the gain, relative to the objective, that a last step may still expect
_HISTORY = 20
SKETCH_RANK = 512
SKETCH_ROWS = 5120
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@dataclass(frozen=True)
class Target:
    """One label set to be fitted.

    Attributes:
        labels: (n,) or (batch, n) int64, -1 where a row has no label; or (n, K) or (batch, n, K) bool if multilabel.
        n_classes: K, 2 or more (1 or more if multilabel).
        multilabel: fit one logistic a class.
        weight: like ``labels`` without K: s, the rows' non-negative weights; None is 1 each. 0 leaves a row out.
        C: this target's own values of C instead of the call's, as many of them.
    """

    labels: Tensor
    n_classes: int
    multilabel: bool = False
    weight: Tensor | None = None
    C: Sequence[float] | None = None

    def batched(self) -> Target:
        """Return the same target as a batch of one."""
        return replace(self, labels=self.labels[None], weight=None if self.weight is None else self.weight[None])


@dataclass(frozen=True)
class LogisticFit:
    """Solutions of one label set, one for each C (and each problem of a batch, in front).

    Attributes:
        weights: (..., n_C, K, d); of a kernel matrix (..., n_C, K, n), the dual coefficients.
        intercepts: (..., n_C, K).
        objective: (..., n_C) float64, ``C·Σ s·loss + ½‖W‖²``.
        gradient: (..., n_C) float64, the largest entry of the gradient over its largest at W = 0.
        iterations: (..., n_C) int64, accepted steps.
        converged: (..., n_C) bool, within ``tol``; False where ``max_iter`` or the precision ended it.
        passes: evaluations of objective and gradient, in which label sets share.
    """

    weights: Tensor
    intercepts: Tensor
    objective: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    passes: int

    def at(self, index: int) -> LogisticFit:
        """Return the solution of the ``index``-th C of an unbatched fit, without the axis of C."""
        one = {name: getattr(self, name)[index] for name in list(self.__dataclass_fields__)[:-1]}
        return LogisticFit(**one, passes=self.passes)


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
    rows = _Rows([part[None] for part in parts], device, block_rows, normalise)
    if 2 * rows.n <= rows.d:
        inner = torch.cat([block for _, block in rows], 1)
        fits = [_fit_rotated(inner, t.batched(), C, tol, max_iter, fit_intercept, path) for t in targets]
    else:
        spectrum = _nystrom(rows, centred=fit_intercept)
        prepared = [_Prepared.of(t.batched(), rows, fit_intercept) for t in targets]
        grids = [C if t.C is None else t.C for t in targets]
        fits = _solve(rows, prepared, spectrum, grids, tol, max_iter, path)
    return [_unbatched(fit, parts[0].device) for fit in fits]


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
    return _fit_rotated(x, target, C, tol, max_iter, fit_intercept, path)


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
    fit = _fit_dual(gram[None], target.batched(), C, tol, max_iter, fit_intercept, True)
    return _unbatched(fit, gram.device)


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
    rows = _Rows([part[None] for part in parts], device, block_rows, normalise)
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


# ------------------------------------------------------------------------------------------------------------------
# Rows, read in blocks


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return (m, k) @ (n, k)ᵀ of float32 or float64 matrices.

    On CPU in float32 by oneDNN where torch has it: on processors that MKL does not favour it is twice as fast.
    """
    if _ONEDNN is not None and a.device.type == "cpu" and a.dtype == torch.float32:
        product: Tensor = _ONEDNN(a, b, None, "none", [], "")
        return product
    return a @ b.T


class _Rows:
    """The rows of a batch of problems, tensors (batch, n_i, d) below one another, in blocks where they are computed on.

    On a GPU they are kept there if they take at most half of the free memory.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        device: torch.device | str | None = None,
        block_rows: int | None = None,
        normalise: bool = False,
    ) -> None:
        first = parts[0]
        self.device = torch.device(first.device if device is None else device)
        self.dtype = first.dtype if first.dtype in (torch.float32, torch.float64) else torch.float32
        self.batch, _, self.d = first.shape
        self.n = sum(part.shape[1] for part in parts)
        self.normalise = normalise
        self.block_rows = block_rows or max(1, _BLOCK_VALUES // (self.batch * self.d))
        self.parts = list(parts)
        if self.device.type == "cuda" and first.device.type != "cuda":
            size = self.batch * self.n * self.d * torch.finfo(self.dtype).bits // 8
            if 2 * size <= torch.cuda.mem_get_info(self.device)[0]:
                self.parts = [part.to(self.device, self.dtype) for part in parts]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        offset = 0
        for part in self.parts:
            for start in range(0, part.shape[1], self.block_rows):
                block = part[:, start : start + self.block_rows]
                at = slice(offset + start, offset + start + block.shape[1])
                yield at, self._read(block)
            offset += part.shape[1]

    def _read(self, block: Tensor) -> Tensor:
        block = block.to(self.device, self.dtype)
        return torch.nn.functional.normalize(block, dim=2) if self.normalise else block

    def sample(self, count: int) -> Tensor:
        """Return (batch, count, d) rows at even distances."""
        picked, out, offset = torch.arange(count) * self.n // count, [], 0
        for part in self.parts:
            inside = picked[(picked >= offset) & (picked < offset + part.shape[1])] - offset
            out.append(self._read(part[:, inside.to(part.device)]))
            offset += part.shape[1]
        return torch.cat(out, 1)

    def mean(self, weight: Tensor) -> Tensor:
        """Return the (batch, d) mean of the rows under (batch, n) weights."""
        total = torch.zeros(self.batch, self.d, dtype=torch.float64, device=self.device)
        for part, block in self:
            total += (weight[:, None, part].to(self.dtype) @ block)[:, 0]
        return (total / weight.sum(1, keepdim=True).clamp_min(1e-300)).to(self.dtype)

    @staticmethod
    def scores(block: Tensor, weights: Tensor) -> Tensor:
        """Return (batch, m, columns) of a block (batch, m, d) and weights (batch, columns, d)."""
        if block.shape[0] == 1:
            return _product(block[0], weights[0])[None]
        return torch.bmm(block, weights.transpose(1, 2))

    @staticmethod
    def gather(residual: Tensor, block: Tensor) -> Tensor:
        """Return (batch, columns, d): the sum over rows of residual (batch, m, columns) times row."""
        if block.shape[0] == 1:
            return _product(residual[0].T.contiguous(), block[0].T)[None]
        return torch.bmm(residual.transpose(1, 2), block)


@dataclass(frozen=True)
class _Prepared:
    """A target on the device: what the objective needs of it.

    Attributes:
        kind: "softmax" or "sigmoid" (multilabel, and two classes as one logistic).
        labels: (batch, n) int64, or (batch, n, columns) if sigmoid.
        weight: (batch, n), summing to 1.
        total: (batch,) float64, S.
        mean: (batch, d) what the rows are centred by; zero without intercept.
        columns: K, or 1 for two classes.
        share: (batch, columns) float64, of the weight that a class has.
        prior: (batch, columns) float64, ``share`` kept within half a row of 0 and 1.
        intercept: whether one is fitted.
        pair: whether two classes are one column.
    """

    kind: str
    labels: Tensor
    weight: Tensor
    total: Tensor
    mean: Tensor
    columns: int
    share: Tensor
    prior: Tensor
    intercept: bool
    pair: bool

    @staticmethod
    def of(target: Target, rows: _Rows, intercept: bool) -> _Prepared:
        labels = target.labels.to(rows.device)
        k = target.n_classes
        shape = (rows.batch, rows.n, k) if target.multilabel else (rows.batch, rows.n)
        if tuple(labels.shape) != shape:
            raise DataError(f"labels have shape {tuple(labels.shape)}, but the rows need {shape}")
        weight = torch.ones(rows.batch, rows.n, dtype=torch.float64, device=rows.device)
        if target.weight is not None:
            weight = target.weight.to(rows.device, torch.float64)
            if weight.shape != (rows.batch, rows.n) or not bool((weight >= 0).all()):
                raise DataError("weights must be non-negative, one a row")
        if not target.multilabel:
            if k < 2:
                raise ConfigError(f"n_classes={k} must be at least 2")
            if int(labels.min()) < -1 or int(labels.max()) >= k:
                raise DataError(
                    f"labels must lie in -1 ... {k - 1}, but are {int(labels.min())} ... {int(labels.max())}"
                )
            weight = weight * (labels >= 0)
            labels = labels.clamp_min(0)
        total = weight.sum(1)
        if not bool((total > 0).all()):
            raise DataError("a problem has no row with a label and a weight above zero")
        scaled = weight / total[:, None]
        pair = not target.multilabel and k == 2
        if target.multilabel or pair:
            hot = labels.to(rows.dtype) if target.multilabel else labels[..., None].to(rows.dtype)
            prior = (scaled[:, None] @ hot.double())[:, 0]
        else:
            prior = torch.zeros(rows.batch, k, dtype=torch.float64, device=rows.device).scatter_add_(1, labels, scaled)
            hot = labels
        mean = torch.zeros(rows.batch, rows.d, dtype=rows.dtype, device=rows.device)
        if intercept:
            mean = rows.mean(scaled)
        # A class without rows has no finite intercept: half a row keeps it and its curvature finite.
        floor = (0.5 / total)[:, None]
        ceiling = torch.maximum(1 - floor, floor)
        kind = "softmax" if hot.ndim == 2 else "sigmoid"
        columns = 1 if pair else k
        clamped = prior.clamp(floor, ceiling)
        return _Prepared(kind, hot, scaled.to(rows.dtype), total, mean, columns, prior, clamped, intercept, pair)

    def start(self) -> Tensor:
        """Return the (batch, columns, d + 1) null model: W = 0, intercepts at the priors."""
        w = torch.zeros(len(self.prior), self.columns, self.mean.shape[1] + 1, dtype=self.mean.dtype).to(self.mean)
        if self.intercept:
            logit = self.prior.log() if self.kind == "softmax" else torch.logit(self.prior)
            w[..., -1] = logit.to(w.dtype)
        return w

    def balance(
        self, chunks: Sequence[tuple[slice, Tensor]], intercept: Tensor, bound: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the intercepts that are best for given scores without them, and the mean of p(1 − p) there.

        Both are (batch, n_C, columns).

        Args:
            chunks: parts of the rows with their scores (batch, m, n_C, columns).
            intercept: (batch, n_C, columns) to start from.
            bound: (batch, n_C) on the gradient's entries.
        """
        share, start = self.share[:, None], intercept
        for _ in range(_BALANCE_STEPS):
            mean = torch.zeros_like(intercept, dtype=torch.float64)
            second = torch.zeros(*mean.shape, self.columns if self.kind == "softmax" else 1).to(mean)
            for part, scores in chunks:
                shifted = scores + intercept[:, None]
                p = shifted.softmax(-1) if self.kind == "softmax" else shifted.sigmoid_()
                weighted = p * self.weight[:, part, None, None]
                mean += weighted.sum(1)
                if self.kind == "softmax":
                    second += weighted.permute(0, 2, 3, 1) @ p.transpose(1, 2)
                else:
                    second += (weighted * p).sum(1)[..., None]
            excess = mean - share
            square = second.diagonal(dim1=-2, dim2=-1) if self.kind == "softmax" else second[..., 0]
            if bool((excess.abs().amax(-1) <= bound).all()):
                break
            if self.kind == "softmax":
                # Singular along equal changes of all intercepts, which change nothing.
                hessian = torch.diag_embed(mean) - second + 1 / self.columns
                step = torch.linalg.lstsq(hessian, excess[..., None]).solution[..., 0]
                # Iterative scaling never overshoots: it serves where Newton's model is not to be trusted.
                trusted = ((excess.abs() <= 0.3 * share).all(-1) & (step.abs().amax(-1) <= 1))[..., None]
                step = torch.where(trusted, step, (mean.clamp_min(1e-12) / share.clamp_min(1e-12)).log().clamp(-3, 3))
            else:
                step = (excess / (mean - square).clamp_min(1e-12)).clamp(-1, 1)
            intercept = intercept - step.to(intercept.dtype)
        return (intercept if bool(torch.isfinite(intercept).all()) else start), mean - square

    def loss(self, scores: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Turn scores (batch, m, n_C, columns) into residuals, in place; also return the (batch, n_C) loss."""
        weight = self.weight[:, part, None, None]
        labels = self.labels[:, part]
        if self.kind == "softmax":
            torch.log_softmax(scores, -1, out=scores)
            index = labels[:, :, None, None].expand(-1, -1, scores.shape[2], 1)
            loss = -(scores.gather(-1, index) * weight).double().sum((1, 3))
            residual = scores.exp_().scatter_add_(-1, index, -torch.ones_like(index, dtype=scores.dtype))
        else:
            hot = labels[:, :, None]
            loss = ((torch.nn.functional.softplus(scores) - scores * hot) * weight).double().sum((1, 3))
            residual = scores.sigmoid_().sub_(hot)
        return loss, residual.mul_(weight)


def _objective(
    rows: _Rows,
    targets: Sequence[_Prepared],
    trials: Sequence[Tensor],
    strengths: Sequence[Tensor],
    bounds: Sequence[Tensor] | None = None,
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return of each target objective (batch, n_C), gradient like its trial, and curvature, in one pass over the rows.

    The curvature is the (batch, n_C, columns) mean of p(1 − p), where it is known.

    Where the scores of all rows fit in memory, the intercepts of the trials are first replaced by the best ones, which
    costs no product with the features: the intercept's Hessian changes most along the way, and slows W down with it.

    Args:
        rows: the features.
        targets: the label sets.
        trials: of each, weights (batch, n_C, columns, d + 1) on the centred rows, the intercept last.
        strengths: of each, λ (batch, n_C) float64.
        bounds: of each, (batch, n_C) on the intercepts' gradient; None leaves the intercepts as they are.
    """
    shapes = [w.shape[:3] for w in trials]
    sizes = [shape[1] * shape[2] for shape in shapes]
    stacked = torch.cat([w[..., :-1].flatten(1, 2) for w in trials], 1).contiguous()
    means = torch.cat([t.mean[:, None].expand(-1, size, -1) for t, size in zip(targets, sizes, strict=True)], 1)
    shift = -(stacked * means).sum(2)[:, None]
    kept: list[tuple[slice, Tensor]] = []
    curvature: list[Tensor | None] = [None] * len(targets)
    if bounds is not None and rows.batch * rows.n * sum(sizes) <= _SCORE_VALUES:
        kept = [(part, rows.scores(block, stacked).add_(shift)) for part, block in rows]
        columns = [torch.split(scores, sizes, 2) for _, scores in kept]
        for i, target in enumerate(targets):
            if target.intercept:
                chunks = [
                    (at, own[i].view(*own[i].shape[:2], *shapes[i][1:]))
                    for (at, _), own in zip(kept, columns, strict=True)
                ]
                trials[i][..., -1], curvature[i] = target.balance(chunks, trials[i][..., -1], bounds[i])
    offset = torch.cat([w[..., -1].flatten(1) for w in trials], 1)[:, None]
    gradient = torch.zeros_like(stacked)
    sums = torch.zeros_like(offset[:, 0])
    losses = [torch.zeros(shape[:2], dtype=torch.float64, device=rows.device) for shape in shapes]
    for k, (part, block) in enumerate(rows):
        scores = (kept[k][1] if kept else rows.scores(block, stacked).add_(shift)).add_(offset)
        residuals = []
        for i, own in enumerate(torch.split(scores, sizes, 2)):
            loss, residual = targets[i].loss(own.reshape(*own.shape[:2], *shapes[i][1:]), part)
            losses[i] += loss
            residuals.append(residual.flatten(2))
        residual = residuals[0] if len(residuals) == 1 else torch.cat(residuals, 2)
        gradient += rows.gather(residual, block)
        sums += residual.sum(1)
    out = []
    for i, (own, total) in enumerate(zip(torch.split(gradient, sizes, 1), torch.split(sums, sizes, 1), strict=True)):
        target, w, strength = targets[i], trials[i], strengths[i]
        g = torch.empty_like(w)
        if target.intercept:
            own -= total[..., None] * target.mean[:, None]
        g[..., :-1] = own.view_as(w[..., :-1]) + strength[..., None, None].to(w.dtype) * w[..., :-1]
        g[..., -1] = total.view(w.shape[:3]) if target.intercept else 0
        out.append((losses[i] + strength / 2 * w[..., :-1].double().square().sum((2, 3)), g, curvature[i]))
    return out


# ------------------------------------------------------------------------------------------------------------------
# The preconditioner


@dataclass(frozen=True)
class _Spectrum:
    """Covariance of the rows: ``basis·diag(values)·basisᵀ + tail·(the rest)``; without basis the axes are its own.

    Attributes:
        values: (batch, r) float32 or float64.
        basis: (d, r) or None.
        tail: mean variance in the directions that the basis leaves out.
    """

    values: Tensor
    basis: Tensor | None = None
    tail: float = 0.0

    def precondition(self, v: Tensor, curvature: Tensor, strength: Tensor) -> Tensor:
        """Solve with the Hessian's blocks of a class each, ``curvature·covariance + λ``.

        Args:
            v: (batch, n_C, columns, d + 1).
            curvature: (batch, n_C, columns).
            strength: (batch, n_C), λ.
        """
        curvature = curvature.to(v.dtype)[..., None]
        lam = strength.to(v.dtype)[:, :, None, None]
        inverse = 1 / (curvature * self.values[:, None, None].to(v.dtype) + lam)
        out = torch.empty_like(v)
        w = v[..., :-1]
        if self.basis is None:
            out[..., :-1] = w * inverse
        else:
            rest = 1 / (curvature * self.tail + lam)
            turned = (w @ self.basis) * (inverse - rest)
            out[..., :-1] = turned @ self.basis.T + w * rest
        out[..., -1] = v[..., -1] / curvature[..., 0]
        return out


def _nystrom(rows: _Rows, *, centred: bool) -> _Spectrum:
    """Sketch the covariance of an unbatched set of rows from an even sample of them."""
    count = min(rows.n, SKETCH_ROWS)
    sample = rows.sample(count)[0]
    if centred:
        sample = sample - sample.mean(0)
    rank = min(rows.d, SKETCH_RANK)
    probe = torch.randn(rows.d, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = torch.linalg.qr(probe.to(rows.device, rows.dtype))[0]
    image = (sample.T @ (sample @ probe)) / count
    shift = 1e-6 * image.norm().clamp_min(torch.finfo(rows.dtype).tiny)
    image = image + shift * probe
    core = (probe.T @ image).double()
    root = torch.linalg.cholesky((core + core.T) / 2)
    factor = torch.linalg.solve_triangular(root, image.double().T, upper=False)
    # The right singular vectors of the factor, through its small Gram matrix.
    values, vectors = torch.linalg.eigh(factor @ factor.T)
    basis = (vectors / values.clamp_min(1e-300).sqrt()).T @ factor
    values = (values - shift).clamp_min(0)
    left = sample.double().square().sum() / count - values.sum()
    tail = float(left.clamp_min(0) / max(rows.d - rank, 1))
    return _Spectrum(values.to(rows.dtype)[None], basis.T.to(rows.dtype).contiguous(), tail)


# ------------------------------------------------------------------------------------------------------------------
# Few rows: rotate first


def _fit_rotated(
    x: Tensor, target: Target, C: Sequence[float], tol: float, max_iter: int, intercept: bool, path: bool
) -> LogisticFit:
    """Fit a batch of problems (batch, n, d) in the eigenvectors of their Gram matrices, or covariances if n > d."""
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    inner = x.to(torch.float64)
    if x.shape[1] <= x.shape[2]:
        fit = _fit_dual(inner @ inner.transpose(1, 2), target, C, tol, max_iter, intercept, path, dtype=dtype)
        # (batch, n_C, K, n) dual coefficients to weights: scores are inner products with the rows.
        return replace(fit, weights=(fit.weights.double() @ inner[:, None]).to(dtype))
    prepared = _Prepared.of(target, _Rows([inner]), intercept)
    centred = inner - prepared.mean[:, None]
    values, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ (centred * prepared.weight[..., None]))
    rows = _Rows([(centred @ vectors).to(dtype)])
    spectrum = _Spectrum(values.clamp_min(0).to(dtype))
    grid = C if target.C is None else target.C
    (fit,) = _solve(rows, [_Prepared.of(target, rows, intercept)], spectrum, [grid], tol, max_iter, path)
    weights = fit.weights.double() @ vectors.transpose(1, 2)[:, None]
    offset = (weights @ prepared.mean[:, None, :, None])[..., 0]
    return replace(fit, weights=weights.to(dtype), intercepts=(fit.intercepts - offset).to(dtype))


def _fit_dual(
    gram: Tensor,
    target: Target,
    C: Sequence[float],
    tol: float,
    max_iter: int,
    intercept: bool,
    path: bool,
    dtype: torch.dtype = torch.float64,
) -> LogisticFit:
    """Fit a batch of problems given by their (batch, n, n) kernel matrices; ``weights`` are dual coefficients."""
    gram = gram.double()
    prepared = _Prepared.of(target, _Rows([gram]), intercept)
    weight = prepared.weight
    centred = gram
    if intercept:
        mean = gram @ weight[..., None]
        centred = gram - mean - mean.transpose(1, 2) + (weight[:, None] @ mean)
    root = weight.sqrt()
    values, vectors = torch.linalg.eigh(root[..., None] * centred * root[:, None])
    # Directions below the rounding of the largest hold no data.
    inverse = torch.where(values > 1e-13 * values[:, -1:], values.clamp_min(1e-300).rsqrt(), 0)
    dual = root[..., None] * vectors * inverse[:, None]
    features = centred @ dual
    rows = _Rows([features.to(dtype)])
    spectrum = _Spectrum(values.clamp_min(0).to(dtype))
    grid = C if target.C is None else target.C
    (fit,) = _solve(rows, [_Prepared.of(target, rows, intercept)], spectrum, [grid], tol, max_iter, path)
    coefficients = fit.weights.double() @ dual.transpose(1, 2)[:, None]
    intercepts = fit.intercepts.double()
    if intercept:
        # Coefficients sum to zero (the centred features do), so only the mean's inner products move the intercept.
        coefficients = coefficients - coefficients.sum(-1, keepdim=True) * weight[:, None, None]
        intercepts = intercepts - (coefficients @ mean[:, None])[..., 0]
    return replace(fit, weights=coefficients.to(dtype), intercepts=intercepts.to(dtype))


# ------------------------------------------------------------------------------------------------------------------
# The grid of C


class _Problem:
    """One target at one or more values of C, under way."""

    def __init__(
        self,
        target: _Prepared,
        spectrum: _Spectrum,
        strength: Tensor,
        start: Tensor,
        tol: float,
        scale: Tensor,
        max_iter: int,
        columns: Sequence[int],
    ) -> None:
        self.target, self.spectrum, self.strength, self.columns = target, spectrum, strength, list(columns)
        self.shape = start.shape[2:]
        self.null = (target.prior * (1 - target.prior))[:, None]
        self.curvature = self.null.expand(*strength.shape, -1)
        bound = (tol * scale)[:, None].expand(strength.shape).flatten()
        self.search = _Lbfgs(start.flatten(0, 1).flatten(1), self._precondition, bound, _GAIN * tol, max_iter)

    def _precondition(self, v: Tensor) -> Tensor:
        shaped = v.view(*self.strength.shape, *self.shape)
        return self.spectrum.precondition(shaped, self.curvature, self.strength).view_as(v)

    @property
    def trial(self) -> Tensor:
        """The (batch, n_C, columns, d + 1) point to be evaluated."""
        return self.search.trial.view(*self.strength.shape, *self.shape)

    def update(self, f: Tensor, g: Tensor, curvature: Tensor | None) -> None:
        """Take objective, gradient and curvature, if known, at the trial."""
        if curvature is not None:
            self.curvature = torch.clamp(curvature, 1e-3 * self.null, self.null)
        self.search.update(f.flatten(), g.flatten(0, 1).flatten(1))

    def intercept_bound(self) -> Tensor:
        """Return the (batch, n_C) gradient to which intercepts are fitted: well below the rest of it."""
        known = torch.where(torch.isfinite(self.search.norm), 0.1 * self.search.norm, 0)
        return torch.maximum(0.5 * self.search.bound, known).view(self.strength.shape)

    def drop(self, keep: list[int]) -> None:
        """Keep only the values of C at these positions."""
        batch, count = self.strength.shape
        index = torch.tensor(keep, device=self.strength.device)
        self.search.select((torch.arange(batch, device=index.device)[:, None] * count + index).flatten())
        self.strength, self.curvature = self.strength[:, index], self.curvature[:, index]
        self.columns = [self.columns[k] for k in keep]


@dataclass
class _Solution:
    """What a target's solutions are gathered in, by the position of C."""

    w: list[Tensor | None]
    f: Tensor
    norm: Tensor
    iterations: Tensor
    converged: Tensor

    @staticmethod
    def empty(batch: int, count: int, device: torch.device) -> _Solution:
        values = torch.zeros(batch, count, dtype=torch.float64, device=device)
        return _Solution([None] * count, values, values.clone(), values.long(), values.bool())

    def take(self, problem: _Problem, position: int) -> None:
        shape = problem.strength.shape
        column, search = problem.columns[position], problem.search
        self.w[column] = search.w.view(*shape, *problem.shape)[:, position].clone()
        self.f[:, column] = search.f.view(shape)[:, position]
        self.norm[:, column] = search.norm.view(shape)[:, position]
        self.iterations[:, column] = search.iterations.view(shape)[:, position]
        self.converged[:, column] = search.converged.view(shape)[:, position]


def _solve(
    rows: _Rows,
    targets: Sequence[_Prepared],
    spectrum: _Spectrum,
    grids: Sequence[Sequence[float]],
    tol: float,
    max_iter: int,
    path: bool,
) -> list[LogisticFit]:
    """Solve every target at every C of its own grid; the grids are equally long."""
    check_positive("tol", tol)
    check_positive("max_iter", max_iter, integer=True)
    for grid in grids:
        for value in grid:
            check_positive("C", value)
        if not len(grid) or len(set(grid)) != len(grid) or len(grid) != len(grids[0]):
            raise ConfigError(f"C={list(grid)} must be {len(grids[0]) or 'one or more'} distinct values")
    count = len(grids[0])
    logs = [torch.tensor([math.log(c) for c in grid], dtype=torch.float64, device=rows.device) for grid in grids]
    strengths = [1 / (log.exp() * target.total[:, None]) for log, target in zip(logs, targets, strict=True)]
    solutions = [_Solution.empty(rows.batch, count, rows.device) for _ in targets]
    # The null model, from which C makes no difference, gives the scale of the tolerance and starts whatever is cold.
    null = [target.start()[:, None] for target in targets]
    at_null = _objective(rows, targets, null, [s[:, :1] for s in strengths])
    scales = [g.abs().flatten(1).amax(1).double() for _, g, _ in at_null]
    passes = 1
    orders = [sorted(range(count), key=grid.__getitem__) for grid in grids]
    last: list[_Problem] = []
    for stage in [slice(k, k + 1) for k in range(count)] if path else [slice(0, count)]:
        problems = []
        for i, target in enumerate(targets):
            now, done = orders[i][stage], orders[i][: stage.start]
            start = null[i].expand(-1, len(now), -1, -1)
            if done:
                start = _extrapolate(solutions[i].w, done, logs[i], now[0])[:, None]
            strength = strengths[i][:, now]
            problem = _Problem(target, spectrum, strength, start.clone(), tol, scales[i], max_iter, now)
            if done:
                problem.search.scale = last[i].search.scale
            else:
                f, g, _ = at_null[i]
                problem.update(f.expand(-1, len(now)), g.expand_as(start), None)
            problems.append(problem)
        last = list(problems)
        live = dict(enumerate(problems))
        while live:
            for i, problem in list(live.items()):
                active = problem.search.active.view(problem.strength.shape).any(0).tolist()
                for k, going in enumerate(active):
                    if not going:
                        solutions[i].take(problem, k)
                if not any(active):
                    del live[i]
                elif not all(active):
                    problem.drop([k for k, going in enumerate(active) if going])
            if live:
                using = list(live.values())
                values = _objective(
                    rows,
                    [p.target for p in using],
                    [p.trial for p in using],
                    [p.strength for p in using],
                    [p.intercept_bound() for p in using],
                )
                passes += 1
                for problem, (f, g, curvature) in zip(using, values, strict=True):
                    problem.update(f, g, curvature)
    return [
        _finish(t, s, strength, scale, passes)
        for t, s, strength, scale in zip(targets, solutions, strengths, scales, strict=True)
    ]


def _extrapolate(w: Sequence[Tensor | None], done: Sequence[int], logs: Tensor, to: int) -> Tensor:
    """Continue the last two solutions in log C, at most as far as they lie apart."""
    last = w[done[-1]]
    assert last is not None
    before = w[done[-2]] if len(done) > 1 else None
    if before is None:
        return last
    reach = float((logs[to] - logs[done[-1]]) / (logs[done[-1]] - logs[done[-2]]))
    return torch.lerp(before, last, 1 + min(reach, 1.0))


def _finish(target: _Prepared, solution: _Solution, strength: Tensor, scale: Tensor, passes: int) -> LogisticFit:
    w = torch.stack([v for v in solution.w if v is not None], 1)
    weights, intercepts = w[..., :-1], w[..., -1] - (w[..., :-1] @ target.mean[:, None, :, None])[..., 0]
    if target.pair:
        weights = torch.cat([-weights / 2, weights / 2], 2)
        intercepts = torch.cat([-intercepts / 2, intercepts / 2], 2)
    elif target.kind == "softmax":  # equal changes of all change no probability: they sum to zero, as W's rows do
        intercepts = intercepts - intercepts.mean(2, keepdim=True)
    return LogisticFit(
        weights.contiguous(),
        intercepts,
        solution.f / strength,
        solution.norm / scale[:, None].clamp_min(1e-300),
        solution.iterations,
        solution.converged,
        passes,
    )


def _unbatched(fit: LogisticFit, device: torch.device) -> LogisticFit:
    one = {name: getattr(fit, name)[0].to(device) for name in list(fit.__dataclass_fields__)[:-1]}
    return LogisticFit(**one, passes=fit.passes)


# ------------------------------------------------------------------------------------------------------------------
# L-BFGS


class _Lbfgs:
    """L-BFGS on P independent convex problems in step, as ask (``trial``) and tell (``update``).

    Every round evaluates each problem at its own trial point, so that one that rejects its step holds up no other.
    Vectors are (P, D); ``precondition`` is the initial inverse Hessian. A problem has converged when the gradient's
    entries are at most its ``bound`` and the next step is expected to gain at most ``least_gain`` of the objective:
    where regularisation is weak, a small gradient alone says little.
    """

    def __init__(
        self,
        start: Tensor,
        precondition: Callable[[Tensor], Tensor],
        bound: Tensor,
        least_gain: float,
        max_iter: int,
    ) -> None:
        self.trial = self.w = start
        self.precondition, self.bound, self.least_gain, self.max_iter = precondition, bound, least_gain, max_iter
        self.g = self.direction = torch.zeros_like(start)
        self.f = torch.full_like(bound, math.inf)
        self.norm = self.gain = torch.full_like(bound, math.inf)
        self.converged = torch.zeros_like(bound, dtype=torch.bool)
        self.step = self.slope = torch.zeros_like(bound)
        self.scale = torch.ones_like(bound)
        self.iterations = torch.zeros_like(bound, dtype=torch.int64)
        self.active = torch.ones_like(bound, dtype=torch.bool)
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, f: Tensor, g: Tensor) -> None:
        """Take objective (P,) float64 and gradient (P, D) at ``trial`` and choose the next one."""
        first = torch.isinf(self.f)
        slope = _dot(g, self.direction)
        # Armijo's rule; where differences of f drown in rounding, a slope that fell while f hardly rose.
        enough = f <= self.f + 1e-4 * self.step * self.slope
        flat = (f <= self.f + 1e-6 * self.f.abs()) & (slope.abs() <= 0.9 * self.slope.abs())
        accept = self.active & torch.isfinite(f) & (first | enough | flat)
        if bool((accept & ~first).any()):
            self._remember(accept & ~first, g)
        self.iterations = self.iterations + (accept & ~first)
        # A rejected step goes to the bottom of the parabola through both values and the slope.
        bend = 2 * (f - self.f - self.step * self.slope)
        shorter = self.step * (-self.slope * self.step / bend).nan_to_num(0.1).clamp(0.1, 0.5)
        self.w = torch.where(accept[:, None], self.trial, self.w)
        self.g = torch.where(accept[:, None], g, self.g)
        self.f = torch.where(accept, f, self.f)
        self.norm = torch.where(accept, g.abs().amax(1).double(), self.norm)
        if bool(accept.any()):
            direction = -self._inverse_hessian(self.g)
            self.direction = torch.where(accept[:, None], direction, self.direction)
            self.slope = torch.where(accept, _dot(self.g, self.direction), self.slope)
        # A step along the direction is expected to gain half the slope.
        self.gain = torch.where(accept, -self.slope / (2 * self.f.abs().clamp_min(1e-300)), self.gain)
        self.converged = (self.norm <= self.bound) & (self.gain <= self.least_gain)
        self.active = self.active & ~self.converged & (self.iterations < self.max_iter) & (accept | (shorter > 1e-4))
        self.step = torch.where(accept, 1.0, shorter) * self.active
        self.trial = self.w + self.step[:, None].to(self.w.dtype) * self.direction

    def _remember(self, moved: Tensor, g: Tensor) -> None:
        s = torch.where(moved[:, None], self.trial - self.w, 0)
        y = torch.where(moved[:, None], g - self.g, 0)
        sy = _dot(s, y)
        keep = sy > 0
        yhy = _dot(y, self.precondition(y))
        self.scale = torch.where(keep & (yhy > 0), sy / yhy, self.scale)
        self.history = [*self.history[1 - _HISTORY :], (s, y, torch.where(keep, 1 / sy, 0))]

    def _inverse_hessian(self, q: Tensor) -> Tensor:
        q, alphas = q.clone(), []
        for s, y, rho in reversed(self.history):
            alphas.append((rho * _dot(s, q)).to(q.dtype)[:, None])
            q.addcmul_(alphas[-1], y, value=-1)
        q = self.precondition(q) * self.scale[:, None].to(q.dtype)
        for (s, y, rho), alpha in zip(self.history, reversed(alphas), strict=True):
            q.addcmul_(alpha - (rho * _dot(y, q)).to(q.dtype)[:, None], s)
        return q

    def select(self, keep: Tensor) -> None:
        """Drop all problems but ``keep`` (indices)."""
        for name in (
            "w",
            "trial",
            "g",
            "direction",
            "f",
            "norm",
            "gain",
            "converged",
            "step",
            "slope",
            "scale",
            "iterations",
            "active",
            "bound",
        ):
            setattr(self, name, getattr(self, name)[keep])
        self.history = [(s[keep], y[keep], rho[keep]) for s, y, rho in self.history]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the (P,) float64 inner products of the rows."""
    return (a[:, None] @ b[:, :, None])[:, 0, 0].double()
