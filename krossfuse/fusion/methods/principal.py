"""Principal axes of rows that come in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from krossfuse.core.errors import DataError


def check_samples(n: int, k: int, *, centre: bool) -> None:
    """Check that ``n`` samples have ``k`` principal components.

    Raises:
        DataError: they do not.
    """
    if k > n - centre:
        raise DataError(
            f"{k} principal components need {k + centre} fit samples or more, got {n}; give more samples or fewer "
            f"components"
        )


def principal_axes(blocks: Callable[[], Iterable[Tensor]], *, n: int, k: int, centre: bool) -> tuple[Tensor, Tensor]:
    """Return the mean and the first principal axes of rows that come in blocks.

    Works on the smaller side: the (d, d) second moment, added up block by block, or the (n, n) Gram matrix; in
    float64. Each axis has its largest component positive, so the result does not depend on the solver's signs.

    Args:
        blocks: gives the rows again at each call, in blocks (rows, d).
        n: number of rows.
        k: number of axes.
        centre: whether the mean is subtracted; otherwise the returned mean is zero.

    Returns:
        mean (d,) and axes (d, k), in the rows' dtype and on their device; an axis beyond the rank is zero.

    Raises:
        DataError: ``k`` is larger than the number of rows (less one, when centred).

    Examples:
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0]])
        >>> principal_axes(lambda: [x], n=3, k=1, centre=False)[1].flatten().tolist()
        [1.0, 0.0]
    """
    check_samples(n, k, centre=centre)
    first = next(iter(blocks()))
    d = first.shape[1]
    total = torch.zeros(d, dtype=torch.float64, device=first.device)
    if d <= n:
        second = torch.zeros(d, d, dtype=torch.float64, device=first.device)
        for block in blocks():
            x = block.double()
            total += x.sum(0)
            second += x.T @ x
        mean = total / n if centre else torch.zeros_like(total)
        axes = torch.linalg.eigh(second / n - torch.outer(mean, mean))[1].flip(1)[:, :k]
    else:
        x = torch.cat([block.double() for block in blocks()])
        mean = x.mean(0) if centre else total
        x = x - mean
        values, vectors = torch.linalg.eigh(x @ x.T)
        values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
        inside = values > values[0] * n * torch.finfo(torch.float64).eps
        axes = x.T @ (vectors * torch.where(inside, values.clamp_min(1e-300).rsqrt(), 0.0))
    signs = torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
    # Contiguous, as a state that was saved and loaded is: other strides can mean other last bits.
    return mean.to(first), (axes * torch.where(signs == 0, 1.0, signs)).to(first).contiguous()
