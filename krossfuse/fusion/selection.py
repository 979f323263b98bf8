"""The choice of C on training data: by cross-validation, or by a rule that needs no labels.

Both look at the exact kernel C·k_ψ + k, k that of the product which is sketched, of at most :data:`MAX_ROWS` training
samples, not at any sketch of it, so the choice does not depend on the sketch, its dimension or its draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_range, did_you_mean

GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
"""The paper's grid of C (arXiv 2506.08645, section 5)."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties, as shares of the kernel's mean diagonal, of which each C gets its best."""

RULES = ("cv", "auto")
C_BOUNDS = (1e-9, 1e9)
"""(1e9)² = C_X·C_T, whose square is 1e36: the largest power of a thousand that float32 holds."""

MAX_ROWS = 2000
FOLDS = 5

Grams = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``grams(rows)``: (n, n) matrices over the chosen training rows of the cross-modal kernel and of the product's."""


@dataclass(frozen=True)
class Choice:
    """A chosen C, with what it was chosen by."""

    C: float
    rule: str
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


def choose_C(rule: str, grams: Grams, rows: int, labels: Tensor | None, *, seed: int) -> Choice:
    """Choose C by a rule.

    Args:
        rule: ``cv`` or ``auto``.
        grams: kernel matrices of chosen rows.
        rows: how many training samples there are; a random ``MAX_ROWS`` of them are used.
        labels: (rows,) int64, -1 = none; for ``cv``.
        seed: of that draw and of the folds.

    Raises:
        DataError: ``cv`` without labels, or with too few samples for its folds.
    """
    generator = torch.Generator().manual_seed(seed)
    usable = torch.arange(rows)
    if rule == "cv":
        if labels is None:
            raise DataError("C=cv needs labels: name a label set for the fit, or use C=auto or a number")
        usable = usable[labels.cpu() >= 0]
    chosen = usable[torch.randperm(len(usable), generator=generator)[:MAX_ROWS].sort().values]
    check_C_rows(rule, len(chosen))
    k_cross, k_product = grams(chosen)
    if rule == "cv":
        assert labels is not None
        return cross_validate(k_cross, k_product, labels.cpu()[chosen], seed=seed)
    return Choice(balance(k_cross, k_product), "auto", {"C_rows": len(chosen)})


def balance(k_cross: Tensor, k_product: Tensor) -> float:
    """Return the C at which both terms of C·k_ψ + k_ψ·k_γ vary equally between samples; needs no labels.

    C = sd(k_ψ·k_γ) / sd(k_ψ) over pairs of different samples: with less, the expert decides alone which samples are
    alike; with more, the cross-modal encoder does.

    Args:
        k_cross: (n, n) kernel matrix of the cross-modal encoder.
        k_product: (n, n) matrix of the product kernel k_ψ·k_γ, or (a + k_ψ)·k_γ.

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
    k_cross: Tensor,
    k_product: Tensor,
    labels: Tensor,
    *,
    grid: Sequence[float] = GRID,
    ridges: Sequence[float] = RIDGES,
    folds: int = FOLDS,
    seed: int = 0,
) -> Choice:
    """Choose C by the k-fold accuracy of a ridge classifier on the exact kernel C·k_ψ + k_ψ·k_γ.

    One eigendecomposition for each C serves all folds and penalties: with G = K + λI over all samples, the residual
    of a held-out fold B is ((G⁻¹)_BB)⁻¹·(G⁻¹Y)_B, exactly that of refitting without B. The penalty is chosen with C;
    of equal accuracies the lower squared error wins.

    Args:
        k_cross: (n, n) kernel matrix of the cross-modal encoder.
        k_product: (n, n) matrix of the product kernel k_ψ·k_γ, or (a + k_ψ)·k_γ.
        labels: (n,) int64.
        grid: values of C.
        ridges: penalties, as shares of the mean diagonal.
        folds: number of folds, drawn class by class.
        seed: of the folds.

    Returns:
        The choice, with the accuracy of every C at its best penalty.

    Raises:
        DataError: one class only.
    """
    classes, targets = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"C=cv needs training samples of two classes or more, got {len(classes)}")
    device = k_cross.device
    fold_of, targets = assign_folds(targets, folds, seed=seed).to(device), targets.to(device)
    y = torch.nn.functional.one_hot(targets, len(classes)).double()
    y = y - y.mean(0)
    cross, product = k_cross.double(), k_product.double()
    results: dict[float, tuple[float, float, float]] = {}
    for C in grid:
        values, vectors = torch.linalg.eigh((C * cross + product) / (C + 1))
        rotated, scale = vectors.T @ y, float(values.mean())
        for ridge in ridges:
            weights = 1 / (values.clamp_min(0) + ridge * scale).unsqueeze(1)
            solved = vectors @ (weights * rotated)
            error = torch.empty_like(y)
            for fold in range(folds):
                held = torch.nonzero(fold_of == fold).flatten()
                block = vectors[held] @ (weights * vectors[held].T)
                error[held] = torch.linalg.solve(block, solved[held])
            accuracy = float(((y - error).argmax(1) == targets).double().mean())
            score = (accuracy, -float(error.square().mean()), ridge)
            results[C] = max(results.get(C, (-1.0, 0.0, 0.0)), score)
    best = max(results, key=lambda C: results[C][:2])
    record = {
        "C_folds": folds,
        "C_rows": len(labels),
        "C_ridge": results[best][2],
        "C_accuracy": {f"{C:g}": round(result[0], 6) for C, result in results.items()},
    }
    return Choice(best, "cv", record)


def assign_folds(targets: Tensor, folds: int, *, seed: int) -> Tensor:
    """Return the fold of each sample, (n,) int64: each class is spread over the folds as evenly as can be."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(targets), generator=generator)
    by_class = shuffled[targets.cpu()[shuffled].sort(stable=True).indices]
    fold_of = torch.empty_like(shuffled)
    fold_of[by_class] = torch.arange(len(targets)) % folds
    return fold_of
