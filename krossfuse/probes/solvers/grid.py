"""Every target at every C of its grid: the search of each, and the path from one C to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.probes.solvers.lbfgs import Lbfgs
from krossfuse.probes.solvers.objective import Prepared, evaluate
from krossfuse.probes.solvers.preconditioner import Spectrum
from krossfuse.probes.solvers.rows import Rows
from krossfuse.probes.solvers.targets import LogisticFit

_GAIN = 1e-2  # of tol: the gain, relative to the objective, that a last step may still expect


class _Problem:
    """One target at one or more values of C, under way."""

    def __init__(
        self,
        target: Prepared,
        spectrum: Spectrum,
        strength: Tensor,
        start: Tensor,
        tol: float,
        bound: Tensor,
        max_iter: int,
        columns: Sequence[int],
    ) -> None:
        self.target, self.spectrum, self.strength, self.columns = target, spectrum, strength, list(columns)
        self.shape = start.shape[2:]
        self.least = target.rounding()[1].to(start.dtype)[:, None, None]
        self.null = (target.prior * (1 - target.prior))[:, None]
        self._take_curvature(self.null.expand(*strength.shape, -1))
        bounds = np.repeat(bound.cpu().numpy(), strength.shape[1])
        self.search = Lbfgs(start.flatten(0, 1).flatten(1), self._precondition, bounds, _GAIN * tol, max_iter)

    def _take_curvature(self, curvature: Tensor) -> None:
        self.curvature, self.preconditioner = curvature, self.spectrum.preconditioner(curvature, self.strength)

    def _precondition(self, v: Tensor) -> Tensor:
        return self.preconditioner(v.view(*self.strength.shape, *self.shape)).view_as(v)

    def _norm(self, g: Tensor) -> Tensor:
        """Return the (batch, n_C) float64 largest entry of a gradient; one of an intercept that is rounding is none."""
        entries = g.abs()
        intercepts = entries[..., -1]
        intercepts.masked_fill_(intercepts <= self.least, 0)
        return entries.flatten(2).amax(2).double()

    @property
    def trial(self) -> Tensor:
        """The (batch, n_C, columns, d + 1) point to be evaluated."""
        return self.search.trial.view(*self.strength.shape, *self.shape)

    def update(self, f: Tensor, g: Tensor, curvature: Tensor | None) -> None:
        """Take objective, gradient and curvature, if known, at the trial."""
        if curvature is not None:
            self._take_curvature(torch.clamp(curvature, 1e-3 * self.null, self.null))
        self.search.update(f.flatten(), g.flatten(0, 1).flatten(1), self._norm(g).flatten())

    def intercept_bound(self) -> Tensor:
        """Return the (batch, n_C) gradient to which intercepts are fitted: well below the rest of it."""
        known = np.where(np.isfinite(self.search.norm), 0.1 * self.search.norm, 0)
        wanted = np.maximum(0.5 * self.search.bound, known)
        return torch.from_numpy(wanted).to(self.strength.device).view(self.strength.shape)

    def going(self) -> list[bool]:
        """Return of each value of C whether a problem of the batch is still being searched there."""
        return [bool(of.any()) for of in self.search.active.reshape(tuple(self.strength.shape)).T]

    def drop(self, keep: list[int]) -> None:
        """Keep only the values of C at these positions."""
        batch, count = self.strength.shape
        index = torch.tensor(keep, device=self.strength.device)
        self.search.select([problem * count + k for problem in range(batch) for k in keep])
        self.strength = self.strength[:, index]
        self._take_curvature(self.curvature[:, index])
        self.columns = [self.columns[k] for k in keep]


@dataclass
class _Solution:
    """What a target's solutions are gathered in, by the position of C."""

    w: list[Tensor | None]
    f: NDArray[np.float64]
    norm: NDArray[np.float64]
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]

    @staticmethod
    def empty(batch: int, count: int) -> _Solution:
        shape = (batch, count)
        f, iterations, converged = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        return _Solution([None] * count, f, f.copy(), iterations, converged)

    def take(self, problem: _Problem, position: int) -> None:
        shape = tuple(problem.strength.shape)
        column, search = problem.columns[position], problem.search
        self.w[column] = search.w.view(*shape, *problem.shape)[:, position].clone()
        self.f[:, column] = search.f.reshape(shape)[:, position]
        self.norm[:, column] = search.norm.reshape(shape)[:, position]
        self.iterations[:, column] = search.iterations.reshape(shape)[:, position]
        self.converged[:, column] = search.converged.reshape(shape)[:, position]


def solve_grid(
    rows: Rows,
    targets: Sequence[Prepared],
    spectrum: Spectrum,
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
    solutions = [_Solution.empty(rows.batch, count) for _ in targets]
    # The null model, from which C makes no difference, gives the scale of the tolerance and starts whatever is cold.
    null = [target.start()[:, None] for target in targets]
    at_null = evaluate(rows, targets, null, [s[:, :1] for s in strengths])
    scales = [g.abs().flatten(1).amax(1).double() for _, g, _ in at_null]
    # No search gets below the rounding of the gradient, however long: features that are constant would never end.
    bounds = [torch.maximum(tol * scale, target.rounding()[0]) for scale, target in zip(scales, targets, strict=True)]
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
            problem = _Problem(target, spectrum, strength, start.clone(), tol, bounds[i], max_iter, now)
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
                active = problem.going()
                for k, going in enumerate(active):
                    if not going:
                        solutions[i].take(problem, k)
                if not any(active):
                    del live[i]
                elif not all(active):
                    problem.drop([k for k, going in enumerate(active) if going])
            if live:
                using = list(live.values())
                values = evaluate(
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
        _finish(t, s, strength, scale, tol, max_iter, passes)
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


def _finish(
    target: Prepared,
    solution: _Solution,
    strength: Tensor,
    scale: Tensor,
    tol: float,
    max_iter: int,
    passes: int,
) -> LogisticFit:
    w = torch.stack([v for v in solution.w if v is not None], 1)
    weights, intercepts = w[..., :-1], w[..., -1] - (w[..., :-1] @ target.mean[:, None, :, None])[..., 0]
    if target.pair:
        weights = torch.cat([-weights / 2, weights / 2], 2)
        intercepts = torch.cat([-intercepts / 2, intercepts / 2], 2)
    elif target.kind == "softmax":  # equal changes of all change no probability: they sum to zero, as W's rows do
        intercepts = intercepts - intercepts.mean(2, keepdim=True)
    f, norm, iterations, converged = (
        torch.from_numpy(of).to(w.device) for of in (solution.f, solution.norm, solution.iterations, solution.converged)
    )
    converged = converged & (norm <= tol * scale[:, None])
    return LogisticFit(
        weights.contiguous(),
        intercepts,
        f / strength,
        norm / scale[:, None].clamp_min(1e-300),
        iterations,
        converged,
        ~converged & (iterations < max_iter),
        passes,
    )
