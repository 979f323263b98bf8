"""The choice of the constants on training data: by cross-validation, or by a rule that needs no labels.

All look at the exact kernel C·k_ψ + (a + p)·k_γ, p that of ψ within the product, of at most :data:`MAX_ROWS` training
samples, not at any sketch of it, so the choice does not depend on the sketch, its dimension or its draw.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_range, did_you_mean
from krossfuse.fusion.choice import Choice, Grams, Terms
from krossfuse.fusion.cross_validation import WEIGHTS, cross_validate

RULES = ("cv", "auto", "variance")
C_BOUNDS = (1e-9, 1e9)
"""(1e9)² = C_X·C_T, whose square is 1e36: the largest power of a thousand that float32 holds."""

MAX_ROWS = 2000
MIN_ROWS = 10


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
    if rows < MIN_ROWS:
        raise DataError(f"C={rule} needs {MIN_ROWS} training samples or more, got {rows}; give C as a number")


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
        seed: of that draw and of the search for a basis.

    Raises:
        DataError: ``cv`` without labels, or with too few samples.
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
