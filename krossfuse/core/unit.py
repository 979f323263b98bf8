"""Rows scaled to Euclidean norm 1, whatever their size."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_NORM = 1e-12
"""Below it a norm is too small to divide by as it is."""


def normalised(x: Tensor) -> Tensor:
    """Return (..., dim) rows scaled to Euclidean norm 1, also where their squares leave the range of the dtype.

    Rows of zeros stay zero. Equal to ``torch.nn.functional.normalize`` for norms of 1e-12 ... 1e19.

    >>> [[round(v, 3) for v in row] for row in normalised(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])).tolist()]
    [[0.6, 0.8], [0.6, 0.8]]
    """
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit = x / norms.clamp_min(LEAST_NORM)
    extreme = ((norms < LEAST_NORM) | torch.isinf(norms)).squeeze(-1)
    if bool(extreme.any()):
        scaled = x[extreme] / x[extreme].abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        unit[extreme] = torch.nn.functional.normalize(scaled, dim=-1)
    return unit
