"""What the logistic solvers are given and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


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
        rounding: (..., n_C) bool, the precision ended it: the gradient is rounding and no step gains anything, as
            where features hardly vary beside their mean.
        passes: evaluations of objective and gradient, in which label sets share.
    """

    weights: Tensor
    intercepts: Tensor
    objective: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    rounding: Tensor
    passes: int

    def ended(self) -> list[str]:
        """Say of each C of an unbatched fit what ended it: ``tolerance``, ``rounding`` or ``max_iter``."""
        both = zip(self.converged.tolist(), self.rounding.tolist(), strict=True)
        return ["tolerance" if c else "rounding" if r else "max_iter" for c, r in both]

    def at(self, index: int) -> LogisticFit:
        """Return the solution of the ``index``-th C of an unbatched fit, without the axis of C."""
        one = {name: getattr(self, name)[index] for name in list(self.__dataclass_fields__)[:-1]}
        return LogisticFit(**one, passes=self.passes)


def unbatched(fit: LogisticFit, device: torch.device) -> LogisticFit:
    """Return the first problem of a batch, on ``device``."""
    one = {name: getattr(fit, name)[0].to(device) for name in list(fit.__dataclass_fields__)[:-1]}
    return LogisticFit(**one, passes=fit.passes)
