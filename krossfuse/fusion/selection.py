"""The choice of the constants on training data: by cross-validation, or by a rule that needs no labels.

All look at the exact kernel C·k_ψ + (a + p)·k_γ, p that of ψ within the product, of at most :data:`MAX_ROWS` training
samples, not at any sketch of it, so the choice does not depend on the sketch, its dimension or its draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_range, did_you_mean

GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
"""The paper's grid of C (arXiv 2506.08645, section 5)."""

WEIGHTS = (0.5, 2.0, 8.0)
"""Values of a that are tried with every C."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties, as shares of the kernel's mean diagonal, of which each candidate gets its best."""

RULES = ("cv", "auto", "variance")
C_BOUNDS = (1e-9, 1e9)
"""(1e9)² = C_X·C_T, whose square is 1e36: the largest power of a thousand that float32 holds."""

MAX_ROWS = 2000
FOLDS = 5

BASIS = 256
"""Directions in which cross-validation compares the candidates; all of them where there are no more samples."""


class Terms(NamedTuple):
    """Exact kernels between the chosen training samples, (n, n) each.

    Attributes:
        cross: k_ψ.
        expert: k_γ, the product of a side's experts.
        within: p, the kernel of the cross-modal features within the product.
    """

    cross: Tensor
    expert: Tensor
    within: Tensor


Grams = Callable[[Tensor], Terms]
"""``grams(rows)``: the terms over the chosen training rows."""


@dataclass(frozen=True)
class Choice:
    """Chosen constants, with what they were chosen by."""

    C: float
    rule: str
    expert_weight: float
    record: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the flat record for the results."""
        return {"C": self.C, "C_rule": self.rule, **self.record}


def check_C(name: str, value: object) -> None:
    """Check that C is a positive number or the name of a rule.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, str):
        if value not in RULES:
            raise ConfigError(f"{name}={value!r} must be a positive number or one of {list(RULES)}"
                              f"{did_you_mean(value, RULES)}")  # fmt: skip
    else:
        check_number(name, value)


def check_number(name: str, value: object) -> None:
    """Check that a constant is a number whose kernels float32 holds.

    Raises:
        ConfigError: it is not.
    """
    check_range(name, value, *C_BOUNDS, "float32 holds the kernels of no other, nor the squares of their values")


def check_C_rows(rule: str, rows: int) -> None:
    """Check that there are enough training samples for a rule.

    Raises:
        DataError: there are not.
    """
    if rows < 2 * FOLDS:
        raise DataError(f"C={rule} needs {2 * FOLDS} training samples or more, got {rows}; give C as a number")


def choose_C(
    rule: str, grams: Grams, rows: int, labels: Tensor | None, *, expert_weight: float | None, seed: int
) -> Choice:
    """Choose C by a rule, and with ``cv`` the experts' weight where it is not given.

    Args:
        rule: ``cv``, ``auto`` or ``variance``.
        grams: kernel matrices of chosen rows.
        rows: how many training samples there are; ``MAX_ROWS`` of them are used, for ``variance`` evenly spaced ones,
            for the others random ones.
        labels: (rows,) int64, -1 = none; for ``cv``.
        expert_weight: a; None, for ``cv`` alone: one of :data:`WEIGHTS`.
        seed: of that draw and of the folds.

    Raises:
        DataError: ``cv`` without labels, or with too few samples for its folds.
    """
    if rule == "variance":
        check_C_rows(rule, rows)
        count = min(rows, MAX_ROWS)
        assert expert_weight is not None
        terms = grams(torch.arange(count) * rows // count)
        return Choice(equal_variance(terms, expert_weight), rule, expert_weight, {"C_rows": count})
    generator = torch.Generator().manual_seed(seed)
    usable = torch.arange(rows)
    if rule == "cv":
        if labels is None:
            raise DataError("C=cv needs labels: name a label set for the fit, or use C=auto or a number")
        usable = usable[labels.cpu() >= 0]
    chosen = usable[torch.randperm(len(usable), generator=generator)[:MAX_ROWS].sort().values]
    check_C_rows(rule, len(chosen))
    terms = grams(chosen)
    if rule == "cv":
        assert labels is not None
        weights = WEIGHTS if expert_weight is None else (expert_weight,)
        return cross_validate(terms, labels.cpu()[chosen], weights=weights, seed=seed)
    assert expert_weight is not None
    product = (expert_weight + terms.within) * terms.expert
    return Choice(balance(terms.cross, product), "auto", expert_weight, {"C_rows": len(chosen)})


def equal_variance(terms: Terms, expert_weight: float) -> float:
    """Return the C at which C·k_ψ and a·k_γ have equal total variance over the samples; needs no labels.

    The total variance of a kernel's features is v(k) = mean k(x, x) − mean k(x, y) over different samples, which is
    what is left once the direction that all features share is taken out. C = a·v(k_γ)/v(k_ψ). Section 3 of
    docs/mathematics.md.

    Args:
        terms: exact kernels of the samples.
        expert_weight: a > 0.

    Raises:
        DataError: a kernel is constant.

    Example:
        >>> cross = torch.tensor([[1.0, 0.5], [0.5, 1.0]])  # of total variance 1/2
        >>> equal_variance(Terms(cross, torch.eye(2), cross), expert_weight=2.0)
        4.0
    """
    expert, cross = (_total_variance(k) for k in (terms.expert, terms.cross))
    if not (math.isfinite(expert / cross if cross else math.nan) and expert > 0 and cross > 0):
        raise DataError("C=variance: a kernel is constant over the training samples; give C as a number")
    return expert_weight * expert / cross


def _total_variance(kernel: Tensor) -> float:
    n, k = len(kernel), kernel.double()
    return float(k.diagonal().mean() - (k.sum() - k.diagonal().sum()) / (n * (n - 1)))


def balance(k_cross: Tensor, k_product: Tensor) -> float:
    """Return the C at which both terms of C·k_ψ + (a + p)·k_γ vary equally between samples; needs no labels.

    C = sd((a + p)·k_γ) / sd(k_ψ) over pairs of different samples: with less, the expert decides alone which samples are
    alike; with more, the cross-modal encoder does.

    Args:
        k_cross: (n, n) kernel matrix of the cross-modal encoder.
        k_product: (n, n) matrix of the kernel (a + p)·k_γ.

    Raises:
        DataError: a kernel is constant.
    """
    upper = torch.triu_indices(len(k_cross), len(k_cross), 1, device=k_cross.device)
    cross, product = (k[upper[0], upper[1]].double() for k in (k_cross, k_product))
    value = float(product.std() / cross.std())
    if not (math.isfinite(value) and value > 0):
        raise DataError("C=auto: a kernel is constant over the training samples; give C as a number")
    return value


def cross_validate(
    terms: Terms,
    labels: Tensor,
    *,
    grid: Sequence[float] = GRID,
    weights: Sequence[float] = (0.0,),
    ridges: Sequence[float] = RIDGES,
    folds: int = FOLDS,
    basis: int = BASIS,
    seed: int = 0,
) -> Choice:
    """Choose C and a by the k-fold accuracy of a ridge classifier on the exact kernel C·k_ψ + (a + p)·k_γ.

    One eigendecomposition for each candidate serves all folds and penalties: with G = K + λI over all samples, the
    residual of a held-out fold B is ((G⁻¹)_BB)⁻¹·(G⁻¹Y)_B, exactly that of refitting without B. The penalty is chosen
    with the candidate; of equal accuracies the lower squared error wins.

    All candidates are compared in one basis V, the leading directions of their terms' mean, in which each is a small
    matrix; what a candidate has outside of it is taken as equal in all directions, K ≈ V·VᵀKV·Vᵀ + ρ(I − VVᵀ), ρ the
    rest of the trace. With as many directions as samples nothing is left out.

    Args:
        terms: exact kernels of the n samples.
        labels: (n,) int64.
        grid: values of C.
        weights: values of a.
        ridges: penalties, as shares of the mean diagonal.
        folds: number of folds, drawn class by class.
        basis: most directions of V.
        seed: of the folds, and of the search for V.

    Returns:
        The choice, with the accuracy of every C at its best weight and penalty.

    Raises:
        DataError: one class only.
    """
    classes, targets = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"C=cv needs training samples of two classes or more, got {len(classes)}")
    with _one_thread():
        return _cross_validate(terms, targets, grid, weights, ridges, folds, basis, seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: many small decompositions spend their time in waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cross_validate(
    terms: Terms,
    targets: Tensor,
    grid: Sequence[float],
    weights: Sequence[float],
    ridges: Sequence[float],
    folds: int,
    basis: int,
    seed: int,
) -> Choice:
    n, device, classes = len(targets), terms.cross.device, int(targets.max()) + 1
    fold_of, targets = assign_folds(targets, folds, seed=seed).to(device), targets.to(device)
    y = torch.nn.functional.one_hot(targets, classes).double()
    y = y - y.mean(0)
    cross, expert, within = (k.double() for k in terms)
    product = within * expert
    v = _leading_directions([cross, expert, product], basis, seed)
    small, traces = zip(*((v.T @ k @ v, float(k.diagonal().sum())) for k in (cross, expert, product)), strict=True)
    vty, held_rows = v.T @ y, [torch.nonzero(fold_of == fold).flatten() for fold in range(folds)]
    results: dict[tuple[float, float], tuple[float, float, float]] = {}
    for C in grid:
        for a in weights:
            coefficients = torch.tensor([C, a, 1.0], dtype=torch.float64) / (C + a + 1)
            values, vectors = torch.linalg.eigh(sum(c * k for c, k in zip(coefficients.tolist(), small, strict=True)))
            values = values.clamp_min(0)
            trace = sum(c * t for c, t in zip(coefficients.tolist(), traces, strict=True))
            outside = max(trace - float(values.sum()), 0.0) / (n - len(values)) if len(values) < n else 0.0
            directions, rotated = v @ vectors, vectors.T @ vty
            for ridge in ridges:
                floor = 1 / (outside + ridge * trace / n)
                # G⁻¹ = V·diag(w)·Vᵀ + floor·I
                w = (1 / (values + ridge * trace / n) - (floor if len(values) < n else 0.0)).unsqueeze(1)
                solved = directions @ (w * rotated)
                if len(values) < n:
                    solved += floor * y
                error = torch.empty_like(y)
                for held in held_rows:
                    block = directions[held] @ (w * directions[held].T)
                    if len(values) < n:
                        block.diagonal().add_(floor)
                    error[held] = torch.linalg.solve(block, solved[held])
                accuracy = float(((y - error).argmax(1) == targets).double().mean())
                score = (accuracy, -float(error.square().mean()), ridge)
                results[C, a] = max(results.get((C, a), (-1.0, 0.0, 0.0)), score)
    best = max(results, key=lambda candidate: results[candidate][:2])
    accuracies = {C: max(results[C, a][0] for a in weights) for C in grid}
    record = {
        "C_folds": folds,
        "C_rows": n,
        "C_ridge": results[best][2],
        "C_accuracy": {f"{C:g}": round(accuracy, 6) for C, accuracy in accuracies.items()},
    }
    return Choice(best[0], "cv", best[1], record)


def _leading_directions(kernels: Sequence[Tensor], count: int, seed: int) -> Tensor:
    """Return an orthonormal basis (n, min(n, count)) of the leading directions of the kernels' normalised mean."""
    n = len(kernels[0])
    if n <= count:
        return torch.eye(n, dtype=torch.float64, device=kernels[0].device)
    mean = sum(k * (n / k.diagonal().sum()) for k in kernels) / len(kernels)
    assert isinstance(mean, Tensor)
    with torch.random.fork_rng(devices=[mean.device] if mean.is_cuda else []):
        torch.manual_seed(seed)
        basis: Tensor = torch.svd_lowrank(mean, q=count, niter=2)[0]
    return basis


def assign_folds(targets: Tensor, folds: int, *, seed: int) -> Tensor:
    """Return the fold of each sample, (n,) int64: each class is spread over the folds as evenly as can be."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(targets), generator=generator)
    by_class = shuffled[targets.cpu()[shuffled].sort(stable=True).indices]
    fold_of = torch.empty_like(shuffled)
    fold_of[by_class] = torch.arange(len(targets)) % folds
    return fold_of
