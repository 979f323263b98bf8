"""L-BFGS on many independent convex problems in step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
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
        bound: NDArray[np.float64],
        least_gain: float,
        max_iter: int,
    ) -> None:
        self.trial = self.w = start
        self.precondition, self.bound, self.least_gain, self.max_iter = precondition, bound, least_gain, max_iter
        self.g = self.direction = torch.zeros_like(start)
        # What is one number a problem lies in this machine's memory: few numbers are no work for tensors.
        self.f = self.norm = self.gain = self.lowest = self.least_norm = np.full_like(bound, np.inf)
        self.step = self.slope = np.zeros_like(bound)
        self.scale = np.ones_like(bound)
        self.converged, self.active = np.zeros(len(bound), bool), np.ones(len(bound), bool)
        self.iterations = self.stale = np.zeros(len(bound), np.int64)
        self.history: list[tuple[Tensor, Tensor, NDArray[np.float64]]] = []

    @np.errstate(all="ignore")
    def update(self, f: Tensor, g: Tensor, norm: Tensor) -> None:
        """Take objective and norm (P,) float64 and gradient (P, D) at ``trial`` and choose the next one."""
        new_f, new_norm, slope = torch.stack((f, norm, _dot(g, self.direction))).cpu().numpy()
        first = np.isinf(self.f)
        # Armijo's rule; where differences of f drown in rounding, a slope that fell while f hardly rose.
        enough = new_f <= self.f + 1e-4 * self.step * self.slope
        flat = (new_f <= self.f + 1e-6 * np.abs(self.f)) & (np.abs(slope) <= 0.9 * np.abs(self.slope))
        accept = self.active & np.isfinite(new_f) & (first | enough | flat)
        moved = accept & ~first
        if moved.any():
            self._remember(moved, g)
        self.iterations = self.iterations + moved
        # A rejected step goes to the bottom of the parabola through both values and the slope.
        bottom = -self.slope * self.step / (2 * (new_f - self.f - self.step * self.slope))
        shorter = self.step * np.where(np.isnan(bottom), 0.1, bottom).clip(0.1, 0.5)
        self.w, self.g = self._where(accept, self.trial, self.w), self._where(accept, g, self.g)
        self.f, self.norm = np.where(accept, new_f, self.f), np.where(accept, new_norm, self.norm)
        if accept.any():
            self.direction = self._where(accept, -self._inverse_hessian(self.g), self.direction)
            self.slope = np.where(accept, _dot(self.g, self.direction).cpu().numpy(), self.slope)
        # A step along the direction is expected to gain half the slope.
        self.gain = np.where(accept, -self.slope / (2 * np.abs(self.f).clip(1e-300)), self.gain)
        # Where accepted steps gain nothing for long, all that is left is rounding.
        better = (self.f < self.lowest - _NOTHING * np.abs(self.lowest)) | (self.norm < self.least_norm)
        self.stale = np.where(accept, np.where(better, 0, self.stale + 1), self.stale)
        self.lowest, self.least_norm = np.fmin(self.lowest, self.f), np.fmin(self.least_norm, self.norm)
        self.converged = (self.norm <= self.bound) & (self.gain <= self.least_gain)
        going = ~self.converged & (self.iterations < self.max_iter) & (accept | (shorter > 1e-4))
        self.active = self.active & going & (self.stale < _PATIENCE)
        self.step = np.where(accept, 1.0, shorter) * self.active
        self.trial = self.w + self._column(self.step) * self.direction

    def _column(self, values: NDArray[np.float64]) -> Tensor | float:
        """Return a number a problem as what multiplies its vector."""
        if len(values) == 1:
            return float(values[0])
        return torch.from_numpy(values).to(self.trial)[:, None]

    def _where(self, chosen: NDArray[np.bool_], new: Tensor, old: Tensor | int) -> Tensor:
        if chosen.all():  # as mostly with a single problem
            return new
        return torch.where(torch.from_numpy(chosen).to(new.device)[:, None], new, old)

    def _remember(self, moved: NDArray[np.bool_], g: Tensor) -> None:
        s, y = self.trial - self.w, g - self.g
        s, y = self._where(moved, s, 0), self._where(moved, y, 0)
        sy, yhy = torch.stack((_dot(s, y), _dot(y, self.precondition(y)))).cpu().numpy()
        keep = sy > 0
        self.scale = np.where(keep & (yhy > 0), sy / yhy, self.scale)
        self.history = [*self.history[1 - _HISTORY :], (s, y, np.where(keep, 1 / sy, 0))]

    def _inverse_hessian(self, q: Tensor) -> Tensor:
        if len(q) == 1:
            return self._inverse_hessian_of_one(q)
        q, alphas = q.clone(), []
        for s, y, rho in reversed(self.history):
            alphas.append(_multiples(rho, s, q))
            q.addcmul_(alphas[-1], y, value=-1)
        q = self.precondition(q) * self._column(self.scale)
        for (s, y, rho), alpha in zip(self.history, reversed(alphas), strict=True):
            q.addcmul_(alpha - _multiples(rho, y, q), s)
        return q

    def _inverse_hessian_of_one(self, g: Tensor) -> Tensor:
        """Do the same for a single problem, by vectors and plain numbers: here a call takes as long as what it does."""
        pairs = [(s[0], y[0], float(rho[0])) for s, y, rho in self.history]
        q, alphas = g[0].clone(), []
        for s, y, rho in reversed(pairs):
            alphas.append(rho * torch.dot(s, q).item())
            q.add_(y, alpha=-alphas[-1])
        q = self.precondition(q[None])[0] * float(self.scale[0])
        for s, y, rho in pairs:
            q.add_(s, alpha=alphas.pop() - rho * torch.dot(y, q).item())
        return q[None]

    def select(self, keep: list[int]) -> None:
        """Drop all problems but ``keep``."""
        index = torch.tensor(keep, device=self.w.device)
        for name in ("w", "trial", "g", "direction"):
            setattr(self, name, getattr(self, name)[index])
        for name in (
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
        self.history = [(s[index], y[index], rho[keep]) for s, y, rho in self.history]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the (P,) float64 inner products of the rows."""
    if len(a) == 1:
        return torch.dot(a[0], b[0]).double()[None]
    return (a[:, None] @ b[:, :, None])[:, 0, 0].double()


def _multiples(rho: NDArray[np.float64], a: Tensor, b: Tensor) -> Tensor:
    """Return rho times the inner products of the rows, as a column."""
    return (torch.from_numpy(rho).to(a.device) * _dot(a, b)).to(a.dtype)[:, None]
