"""L-BFGS on many independent convex problems in step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_HISTORY = 20
_PATIENCE = 50  # accepted steps without a gain
_NOTHING = 1e-9  # of the objective: no gain


class Lbfgs:
    """L-BFGS on P independent convex problems in step, as ask (``trial``) and tell (``update``).

    Every round evaluates each problem at its own trial point, so that one that rejects its step holds up no other.
    Vectors are (P, D); ``precondition`` is the initial inverse Hessian. A problem has converged when the gradient's
    entries are at most its ``bound`` and the next step is expected to gain at most ``least_gain`` of the objective:
    where regularisation is weak, a small gradient alone says little. It has given up when fifty steps in a row lowered
    neither the objective nor the gradient.
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
        self.lowest = self.least_norm = torch.full_like(bound, math.inf)
        self.stale = torch.zeros_like(bound, dtype=torch.int64)
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, f: Tensor, g: Tensor, norm: Tensor) -> None:
        """Take objective and norm (P,) float64 and gradient (P, D) at ``trial`` and choose the next one."""
        first = torch.isinf(self.f)
        slope = _dot(g, self.direction)
        # Armijo's rule; where differences of f drown in rounding, a slope that fell while f hardly rose.
        enough = f <= self.f + 1e-4 * self.step * self.slope
        flat = (f <= self.f + 1e-6 * self.f.abs()) & (slope.abs() <= 0.9 * self.slope.abs())
        accept = self.active & torch.isfinite(f) & (first | enough | flat)
        every = bool(accept.all())  # as with a single problem: then nothing is to be chosen between old and new
        if bool((accept & ~first).any()):
            self._remember(accept & ~first, g)
        self.iterations = self.iterations + (accept & ~first)
        # A rejected step goes to the bottom of the parabola through both values and the slope.
        bend = 2 * (f - self.f - self.step * self.slope)
        shorter = self.step * (-self.slope * self.step / bend).nan_to_num(0.1).clamp(0.1, 0.5)
        self.w = self.trial if every else torch.where(accept[:, None], self.trial, self.w)
        self.g = g if every else torch.where(accept[:, None], g, self.g)
        self.f = torch.where(accept, f, self.f)
        self.norm = torch.where(accept, norm, self.norm)
        if bool(accept.any()):
            direction = -self._inverse_hessian(self.g)
            self.direction = direction if every else torch.where(accept[:, None], direction, self.direction)
            self.slope = torch.where(accept, _dot(self.g, self.direction), self.slope)
        # A step along the direction is expected to gain half the slope.
        self.gain = torch.where(accept, -self.slope / (2 * self.f.abs().clamp_min(1e-300)), self.gain)
        # Where accepted steps gain nothing for long, all that is left is rounding.
        better = (self.f < self.lowest - _NOTHING * self.lowest.abs()) | (self.norm < self.least_norm)
        self.stale = torch.where(accept, torch.where(better, 0, self.stale + 1), self.stale)
        self.lowest, self.least_norm = torch.minimum(self.lowest, self.f), torch.minimum(self.least_norm, self.norm)
        self.converged = (self.norm <= self.bound) & (self.gain <= self.least_gain)
        self.active = self.active & ~self.converged & (self.iterations < self.max_iter) & (accept | (shorter > 1e-4))
        self.active = self.active & (self.stale < _PATIENCE)
        self.step = torch.where(accept, 1.0, shorter) * self.active
        self.trial = self.w + self.step[:, None].to(self.w.dtype) * self.direction

    def _remember(self, moved: Tensor, g: Tensor) -> None:
        s, y = self.trial - self.w, g - self.g
        if not bool(moved.all()):
            s, y = torch.where(moved[:, None], s, 0), torch.where(moved[:, None], y, 0)
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
            "lowest",
            "least_norm",
            "stale",
        ):
            setattr(self, name, getattr(self, name)[keep])
        self.history = [(s[keep], y[keep], rho[keep]) for s, y, rho in self.history]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the (P,) float64 inner products of the rows."""
    if len(a) == 1:
        return torch.dot(a[0], b[0]).double()[None]
    return (a[:, None] @ b[:, :, None])[:, 0, 0].double()
