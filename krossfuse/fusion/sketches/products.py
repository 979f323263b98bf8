"""Products of rows: elementwise, complex, Kronecker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def multiply(projections: Sequence[Tensor]) -> Tensor:
    """Return the elementwise product; in the first one's memory where no gradient needs it."""
    first, *others = projections
    if torch.is_grad_enabled() and any(p.requires_grad for p in projections):
        for other in others:
            first = first * other
    else:
        for other in others:
            first.mul_(other)
    return first


def multiply_complex(projections: Sequence[Tensor]) -> Tensor:
    """Return the elementwise product of complex numbers that lie as pairs in the last axis."""
    pairs = [torch.view_as_complex(p.view(*p.shape[:-1], p.shape[-1] // 2, 2)) for p in projections]
    return torch.view_as_real(multiply(pairs)).flatten(-2)


def kronecker(factors: Sequence[Tensor]) -> Tensor:
    """Return the Kronecker product of rows; a factor of one row goes with every row of the others."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)
    return product
