"""The random and fixed matrices that kernels and sketches are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rademacher(*shape: int, generator: torch.Generator) -> Tensor:
    """Return independent signs, float32."""
    return torch.randint(0, 2, shape, generator=generator).float().mul_(2).sub_(1)


def quarter_turns(*shape: int, generator: torch.Generator) -> Tensor:
    """Return independent fourth roots of unity {1, i, −1, −i} as real pairs, float32, (*shape, 2)."""
    roots = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    return roots[torch.randint(0, 4, shape, generator=generator)]


def orthogonal_rows(rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return (rows, dim) unit rows, float64, Haar-distributed and orthogonal within each block of ``dim`` rows."""
    blocks = []
    for start in range(0, rows, dim):
        q, r = torch.linalg.qr(torch.randn(dim, min(dim, rows - start), generator=generator, dtype=torch.float64))
        blocks.append((q * torch.sign(r.diagonal())).T)  # the signs make the distribution Haar's
    return torch.cat(blocks)


def hadamard(order: int) -> Tensor:
    """Return the Hadamard matrix of Sylvester's construction, ``order`` a power of two, float32.

    Example:
        >>> hadamard(2)
        tensor([[ 1.,  1.],
                [ 1., -1.]])
    """
    matrix = torch.ones(1, 1)
    for _ in range(round(math.log2(order))):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix
