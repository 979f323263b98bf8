"""C and the experts' weight by cross-validation: all candidates in one basis, no sample refitted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.fusion.choice import Choice, Terms

GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
"""The paper's grid of C (arXiv 2506.08645, section 5)."""

WEIGHTS = (0.5, 2.0, 8.0)
"""Values of a that are tried with every C."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties, as shares of the kernel's mean diagonal, of which each candidate gets its best."""

SHARPENINGS = 4
"""Log-losses are those of scores of spread 1, 2, 4 and 8, whichever is least: the penalty shrinks scores."""

LEAST = -10.0
"""A score's distance below the true class's, in spreads, from which it counts no less: its powers stay normal numbers.

Subnormal ones make the loss several times slower.
"""

FINALISTS = 2
"""Weights that are compared without a basis in the end: a basis favours kernels whose spectrum falls fast."""

BASIS = 192
"""Directions in which the candidates are compared; all of them where there are no more samples."""


def cross_validate(
    terms: Terms,
    labels: Tensor,
    *,
    grid: Sequence[float] = GRID,
    weights: Sequence[float] = (0.0,),
    ridges: Sequence[float] = RIDGES,
    basis: int = BASIS,
    seed: int = 0,
) -> Choice:
    """Choose C and a by the leave-one-out log-loss of a ridge classifier on the exact kernel C·k_ψ + (a + p)·k_γ.

    All candidates are compared in one basis V, the leading directions of their terms' mean, in which each is a small
    matrix; what a candidate has outside of it is taken as noise of the same variance everywhere: K ≈ V·D·Vᵀ + ρ·I, ρ
    the rest of the trace a direction, D what VᵀKV has above ρ. With as many directions as samples nothing is left out.
    One eigendecomposition for each candidate serves all samples and penalties λ: with H = V·D(D + (ρ + λ)I)⁻¹·Vᵀ, a
    sample that is left out is predicted as (HY − h·Y)/(1 − h), h the diagonal of H, exactly as if refitted without it.

    Where several weights are compared in fewer directions than samples, the best candidates of the two best weights are
    compared again on the whole kernels, G = K + λI, where the prediction is Y − G⁻¹Y/diag(G⁻¹).

    The log-loss decides (at the best temperature, :func:`log_losses`), because accuracies of candidates that are near
    each other differ by a few samples, and the squared error by how far the penalty shrinks scores.

    Args:
        terms: exact kernels of the n samples.
        labels: (n,) int64.
        grid: values of C.
        weights: values of a.
        ridges: penalties, as shares of the mean diagonal.
        basis: most directions of V.
        seed: of the search for V.

    Returns:
        The choice, with the loss and the accuracy, in the basis, of every C at its best weight and penalty.

    Raises:
        DataError: one class only, or a kernel that is zero or not finite.
    """
    classes, targets = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"C=cv needs training samples of two classes or more, got {len(classes)}")
    with _one_thread():
        small = compress(terms, basis, seed)
        left_out = _LeftOut(small.v, targets.to(small.v.device))
        found = {(C, a): left_out.best(*small.candidate(C, a), ridges) for C in grid for a in weights}
        finalists = {best: found[best] for best in _best_of_weights(found)[:FINALISTS]}
        if len(finalists) > 1 and small.v.shape[1] < len(targets):
            finalists = {(C, a): left_out.best_of_whole(_kernel(terms, C, a), ridges) for C, a in finalists}
    of_each = {C: min((found[C, a] for a in weights), key=lambda score: score.loss) for C in grid}
    C, a = min(finalists, key=lambda candidate: finalists[candidate].loss)
    record = {
        "C_rows": len(targets),
        "C_basis": small.v.shape[1],
        "C_ridge": finalists[C, a].ridge,
        "C_loss": {f"{C:g}": round(score.loss, 6) for C, score in of_each.items()},
        "C_accuracy": {f"{C:g}": round(score.accuracy, 6) for C, score in of_each.items()},
    }
    return Choice(C, "cv", a, record)


def _best_of_weights(found: Mapping[tuple[float, float], _Score]) -> list[tuple[float, float]]:
    """Return the best candidate of each weight, the best first."""
    best: dict[float, tuple[float, float]] = {}
    for candidate in sorted(found, key=lambda candidate: found[candidate].loss):
        best.setdefault(candidate[1], candidate)
    return list(best.values())


def _kernel(terms: Terms, C: float, a: float) -> Tensor:
    """Return (C·k_ψ + (a + p)·k_γ)/(C + a + 1) in float64."""
    cross, expert, within = (k.double() for k in terms)
    return (C * cross + (a + within) * expert) / (C + a + 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: many small decompositions spend their time in waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Compressed:
    """The kernels k_ψ, k_γ and p·k_γ of n samples in a basis of q directions.

    Attributes:
        v: (n, q) orthonormal: float32, or the identity in float64 where q = n.
        kernels: (3, q, q) float64, VᵀkV.
        traces: the (n, n) kernels' own.
    """

    v: Tensor
    kernels: Tensor
    traces: tuple[float, float, float]

    def candidate(self, C: float, a: float) -> tuple[Tensor, float]:
        """Return VᵀKV of K = C·k_ψ + (a + p)·k_γ, and its trace; both over C + a + 1, which changes no classifier."""
        shares = [C / (C + a + 1), a / (C + a + 1), 1 / (C + a + 1)]
        kernel = sum(share * k for share, k in zip(shares, self.kernels, strict=True))
        assert isinstance(kernel, Tensor)
        return kernel, sum(share * trace for share, trace in zip(shares, self.traces, strict=True))


def compress(terms: Terms, count: int, seed: int) -> Compressed:
    """Return the kernels in the min(n, count) leading directions of their mean, each at mean diagonal 1.

    Directions by two steps of subspace iteration from a random start (Halko, Martinsson and Tropp 2011).

    Raises:
        DataError: a kernel is zero or not finite.
    """
    n = len(terms.cross)
    scales = [float(k.diagonal().double().mean()) for k in terms]
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise DataError("C=cv: a kernel is zero or not finite over the training samples; give C as a number")
    whole = n <= count
    cross, expert, within = (
        (k.double() if whole else k.float()) / scale for k, scale in zip(terms, scales, strict=True)
    )
    units = [cross, expert, within * expert]
    if whole:
        v = torch.eye(n, dtype=torch.float64, device=cross.device)
    else:
        mean = torch.stack([k / _variance(k) for k in units]).sum(0)
        v = torch.randn(n, count, generator=torch.Generator().manual_seed(seed)).to(mean)
        for _ in range(2):
            v = torch.linalg.qr(mean @ v)[0]
    factors = [scales[0], scales[1], scales[1] * scales[2]]
    small = [k if whole else (v.T @ (k @ v)).double() for k in units]
    kernels = torch.stack([factor * (k + k.T) / 2 for factor, k in zip(factors, small, strict=True)])
    traces = [factor * float(k.diagonal().double().sum()) for factor, k in zip(factors, units, strict=True)]
    return Compressed(v, kernels, (traces[0], traces[1], traces[2]))


def _variance(kernel: Tensor) -> float:
    """Return the total variance of a kernel of mean diagonal 1, that is without the direction that all share; 1 if 0.

    Weighed by the trace, a kernel whose samples lie in a narrow cone would have little say in the basis.
    """
    variance = 1 - float(kernel.mean())
    return variance if variance > 1e-6 else 1.0


@dataclass(frozen=True)
class _Score:
    loss: float
    accuracy: float
    ridge: float


class _LeftOut:
    """The samples' classes, each predicted from the others."""

    def __init__(self, v: Tensor, targets: Tensor) -> None:
        y = torch.nn.functional.one_hot(targets).to(v)
        self.v, self.targets, self.y = v, targets, y - y.mean(0)
        self.vty = (v.T @ self.y).double()

    def best(self, kernel: Tensor, trace: float, ridges: Sequence[float]) -> _Score:
        """Return the least loss of one candidate over the penalties, with the accuracy there."""
        n, q = self.v.shape
        values, vectors = torch.linalg.eigh(kernel)
        outside = max(trace - float(values.clamp_min(0).sum()), 0.0) / (n - q) if q < n else 0.0
        inside = (values - outside).clamp_min(0)
        noise = outside + torch.tensor(ridges, dtype=torch.float64, device=inside.device) * trace / n
        shrink = inside / (inside + noise[:, None])  # (penalties, q)
        directions = self.v @ vectors.to(self.v)
        coefficients = (shrink.T[:, :, None] * (vectors.T @ self.vty)[:, None]).to(self.v)
        fitted = (directions @ coefficients.flatten(1)).view(n, len(ridges), -1)
        own = directions.square() @ shrink.T.to(self.v)  # (n, penalties): how much of a sample's fit is its own target
        own = own[:, :, None].clamp_max(1 - 1e-6)
        predicted = fitted.addcmul_(own, self.y[:, None], value=-1).div_(1 - own)
        losses = log_losses(predicted, self.targets)
        best = int(losses.argmin())
        accuracy = float((predicted[:, best].argmax(1) == self.targets).double().mean())
        return _Score(float(losses[best]), accuracy, ridges[best])

    def best_of_whole(self, kernel: Tensor, ridges: Sequence[float]) -> _Score:
        """Return the same of a whole (n, n) kernel, descending from the middle penalty; no eigendecomposition."""
        y, ordered = self.y.double(), sorted(ridges)
        mean = float(kernel.diagonal().mean())
        found: dict[int, _Score] = {}

        def score(at: int) -> float:
            if at not in found:
                noisy = kernel.clone()
                noisy.diagonal().add_(ordered[at] * mean)
                inverse = torch.cholesky_inverse(torch.linalg.cholesky(noisy))
                predicted = (y - inverse @ y / inverse.diagonal()[:, None]).to(self.y)
                accuracy = float((predicted.argmax(1) == self.targets).double().mean())
                found[at] = _Score(float(log_losses(predicted[:, None], self.targets)), accuracy, ordered[at])
            return found[at].loss

        best = len(ordered) // 2
        while (near := min(range(max(best - 1, 0), min(best + 2, len(ordered))), key=score)) != best:
            best = near
        return found[best]


def log_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Return, of (n, m, K) scores, the (m,) mean log-losses at the best of a few temperatures each.

    A sample's scores have mean 0; they are taken in units of their spread, the mean over samples of the standard
    deviation of a sample's scores.
    """
    n, m, classes = scores.shape
    unit = scores.norm(dim=2).mean(0) / classes**0.5
    true = scores.gather(2, targets[:, None, None].expand(n, m, 1))
    powers = (scores - true).div_(unit.clamp_min(torch.finfo(scores.dtype).tiny)[:, None])
    powers.clamp_min_(LEAST).exp_()
    losses = [powers.sum(2).log_().mean(0)]
    for _ in range(1, SHARPENINGS):
        powers.mul_(powers)
        losses.append(powers.sum(2).log_().mean(0))
    return torch.stack(losses).amin(0).double()
