"""The logistic objective of several targets at several C, its gradient and curvature, in one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.probes.solvers.rows import Rows
from krossfuse.probes.solvers.targets import Target

_SCORE_VALUES = 1 << 26  # scores of all rows that are kept at once: 256 MB of float32
_BALANCE_STEPS = 10
_ROUNDING = 16  # roundings of a product with the rows that may add up
_SUM_ROUNDING = 2  # the same of a sum of residuals
_REGISTER = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # numbers in float32


@dataclass(frozen=True)
class Prepared:
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
    def of(target: Target, rows: Rows, intercept: bool) -> Prepared:
        """Return the target for these rows.

        Raises:
            ConfigError: one class.
            DataError: labels or weights that do not fit the rows, or no row with a label.
        """
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
        return Prepared(kind, hot, scaled.to(rows.dtype), total, mean, columns, prior, clamped, intercept, pair)

    def start(self) -> Tensor:
        """Return the (batch, columns, d + 1) null model: W = 0, intercepts at the priors."""
        w = torch.zeros(len(self.prior), self.columns, self.mean.shape[1] + 1, dtype=self.mean.dtype).to(self.mean)
        if self.intercept:
            logit = self.prior.log() if self.kind == "softmax" else torch.logit(self.prior)
            w[..., -1] = logit.to(w.dtype)
        return w

    def rounding(self) -> tuple[Tensor, Tensor]:
        """Return what rounding can make of a gradient of zero: of its entries for weights, of those for intercepts.

        Both are (batch,) float64. Rows are centred after the product with them, ``Σ rᵢ·xᵢ − mean·Σ rᵢ``, and either
        term has the rounding of its own size: at the null model ``2·p·(1 − p)·|mean|``, and 1 for the mean.
        """
        size = torch.finfo(self.mean.dtype).eps * (2 * self.prior * (1 - self.prior)).amax(1)
        return _ROUNDING * size * self.mean.abs().amax(1).double(), _SUM_ROUNDING * size

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
            square = torch.zeros_like(mean)
            for part, scores in chunks:
                p, weighted = self._probabilities(scores, intercept, part)
                mean += weighted.sum(1)
                square += (weighted * p).sum(1)
            excess = mean - share
            if bool((excess.abs().amax(-1) <= bound).all()):
                break
            if self.kind == "softmax":
                # Singular along equal changes of all intercepts, which change nothing.
                hessian = torch.diag_embed(mean) + 1 / self.columns
                for part, scores in chunks:
                    if len(chunks) > 1:  # else they are at hand
                        p, weighted = self._probabilities(scores, intercept, part)
                    hessian -= weighted.permute(0, 2, 3, 1) @ p.transpose(1, 2)
                step = torch.linalg.solve_ex(hessian, excess).result  # not finite where it cannot be solved
                # Iterative scaling never overshoots: it serves where Newton's model is not to be trusted.
                trusted = ((excess.abs() <= 0.3 * share).all(-1) & (step.abs().amax(-1) <= 1))[..., None]
                step = torch.where(trusted, step, (mean.clamp_min(1e-12) / share.clamp_min(1e-12)).log().clamp(-3, 3))
            else:
                step = (excess / (mean - square).clamp_min(1e-12)).clamp(-1, 1)
            intercept = intercept - step.to(intercept.dtype)
        return (intercept if bool(torch.isfinite(intercept).all()) else start), mean - square

    def _probabilities(self, scores: Tensor, intercept: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Return those of some rows (batch, m, n_C, columns), and the same times the rows' weights."""
        shifted = scores + intercept[:, None]
        p = softmax(shifted) if self.kind == "softmax" else shifted.sigmoid_()
        return p, p * self.weight[:, part, None, None]

    def loss(self, scores: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Turn scores (batch, m, n_C, columns) into residuals, in place; also return the (batch, n_C) loss."""
        weight = self.weight[:, part, None, None]
        labels = self.labels[:, part]
        if self.kind == "softmax":
            log_softmax_(scores)
            index = labels[:, :, None, None].expand(-1, -1, scores.shape[2], 1)
            loss = -(scores.gather(-1, index) * weight).double().sum((1, 3))
            residual = scores.exp_().scatter_add_(-1, index, -torch.ones_like(index, dtype=scores.dtype))
        else:
            hot = labels[:, :, None]
            loss = ((torch.nn.functional.softplus(scores) - scores * hot) * weight).double().sum((1, 3))
            residual = scores.sigmoid_().sub_(hot)
        return loss, residual.mul_(weight)


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension, as :func:`torch.softmax` does.

    On a CPU that takes ten numbers a class at a time, where they are fewer than fill a vector register.
    """
    if scores.shape[-1] >= _REGISTER or scores.device.type != "cpu":
        return scores.softmax(-1)
    p = torch.sub(scores, scores.amax(-1, keepdim=True)).exp_()
    return p.div_(p.sum(-1, keepdim=True))


def log_softmax_(scores: Tensor) -> None:
    """Replace scores by their :func:`torch.log_softmax` over the last dimension; see :func:`softmax`."""
    if scores.shape[-1] >= _REGISTER or scores.device.type != "cpu":
        torch.log_softmax(scores, -1, out=scores)
        return
    scores.sub_(scores.amax(-1, keepdim=True))
    scores.sub_(scores.exp().sum(-1, keepdim=True).log_())


def evaluate(
    rows: Rows,
    targets: Sequence[Prepared],
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
    moved = [w @ t.mean[:, :, None] for t, w in zip(targets, torch.split(stacked, sizes, 1), strict=True)]
    shift = -torch.cat(moved, 1).transpose(1, 2)
    kept: list[tuple[slice, Tensor]] = []
    curvature: list[Tensor | None] = [None] * len(targets)
    if bounds is not None and rows.batch * rows.n * sum(sizes) <= _SCORE_VALUES:
        kept = [(part, rows.scores(block, stacked).add_(shift)) for part, block in rows]
        columns = [torch.split(scores, sizes, 2) for _, scores in kept]
        for i, target in enumerate(targets):
            if target.intercept:
                chunks = [
                    (at, piece[i].view(*piece[i].shape[:2], *shapes[i][1:]))
                    for (at, _), piece in zip(kept, columns, strict=True)
                ]
                trials[i][..., -1], curvature[i] = target.balance(chunks, trials[i][..., -1], bounds[i])
    offset = torch.cat([w[..., -1].flatten(1) for w in trials], 1)[:, None]
    gradient = torch.zeros_like(stacked)
    sums = torch.zeros_like(offset[:, 0])
    losses = [torch.zeros(shape[:2], dtype=torch.float64, device=rows.device) for shape in shapes]
    for k, (part, block) in enumerate(rows):
        scores = (kept[k][1] if kept else rows.scores(block, stacked).add_(shift)).add_(offset)
        residuals = []
        for i, piece in enumerate(torch.split(scores, sizes, 2)):
            loss, residual = targets[i].loss(piece.contiguous().view(*piece.shape[:2], *shapes[i][1:]), part)
            losses[i] += loss
            residuals.append(residual.flatten(2))
        residual = residuals[0] if len(residuals) == 1 else torch.cat(residuals, 2)
        gradient += rows.gather(residual, block)
        sums += residual.sum(1)
    out = []
    for i, (piece, total) in enumerate(zip(torch.split(gradient, sizes, 1), torch.split(sums, sizes, 1), strict=True)):
        target, w, strength = targets[i], trials[i], strengths[i]
        g = torch.empty_like(w)
        if target.intercept:
            piece = torch.baddbmm(piece, total[..., None], target.mean[:, None], alpha=-1)
        inner = w[..., :-1]
        torch.addcmul(piece.view(inner.shape), strength[..., None, None].to(w.dtype), inner, out=g[..., :-1])
        g[..., -1] = total.view(w.shape[:3]) if target.intercept else 0
        size = torch.linalg.vector_norm(inner, dim=(2, 3), dtype=torch.float64).square()
        out.append((losses[i] + strength / 2 * size, g, curvature[i]))
    return out
