"""The preconditioner: the Hessian of a class is about its curvature times the covariance of the features, plus λ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from krossfuse.probes.solvers.rows import Rows

SKETCH_RANK = 512
SKETCH_ROWS = 5120
_ROUNDING = 16


@dataclass(frozen=True)
class Spectrum:
    """Covariance of the rows: ``basis·diag(values)·basisᵀ + tail·(the rest)``; without basis the axes are its own.

    Attributes:
        values: (batch, r) float32 or float64.
        basis: (d, r) or None.
        tail: mean variance in the directions that the basis leaves out.
    """

    values: Tensor
    basis: Tensor | None = None
    tail: float = 0.0

    def preconditioner(self, curvature: Tensor, strength: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what solves with the Hessian's blocks of a class each, ``curvature·covariance + λ``.

        It takes and returns (batch, n_C, columns, d + 1).

        Args:
            curvature: (batch, n_C, columns).
            strength: (batch, n_C), λ.
        """
        curvature = curvature.to(self.values.dtype)[..., None]
        lam = strength.to(self.values.dtype)[:, :, None, None]
        inverse = 1 / torch.addcmul(lam, curvature, self.values[:, None, None])
        basis, rest = self.basis, inverse
        if basis is not None:
            rest = 1 / (curvature * self.tail + lam)
            inverse -= rest

        def precondition(v: Tensor) -> Tensor:
            out, w = torch.empty_like(v), v[..., :-1]
            if basis is None:
                torch.mul(w, inverse, out=out[..., :-1])
            else:
                torch.addcmul(((w @ basis) * inverse) @ basis.T, w, rest, out=out[..., :-1])
            torch.div(v[..., -1], curvature[..., 0], out=out[..., -1])
            return out

        return precondition


def nystrom(rows: Rows, *, centred: bool) -> Spectrum:
    """Sketch the covariance of an unbatched set of rows from an even sample of them."""
    count = min(rows.n, SKETCH_ROWS)
    sample = rows.sample(count)[0]
    size = float(torch.linalg.vector_norm(sample))
    if centred:
        sample = sample - sample.mean(0)
    if float(torch.linalg.vector_norm(sample)) <= _ROUNDING * torch.finfo(rows.dtype).eps * size:
        # The features are constant: there is no covariance, and λ alone is the Hessian.
        return Spectrum(sample.new_zeros(1, rows.d))
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
    return Spectrum(values.to(rows.dtype)[None], basis.T.to(rows.dtype).contiguous(), tail)
