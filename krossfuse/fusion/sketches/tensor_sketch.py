"""TensorSketch: count sketches, convolved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.draws import rademacher
from krossfuse.fusion.rows import can_look
from krossfuse.fusion.sketches.products import multiply
from krossfuse.fusion.sketches.random import RandomSketch


class TensorSketch(RandomSketch):
    """Convolution of count sketches by FFT (Pham and Pagh 2013): each coordinate of φ_i is added with a sign to one of
    l buckets, and the buckets of the Kronecker product are the circular convolution. O(Σd_i + m·l·log l) a sample.

    A projection is a count sketch, (n, l). Its variance is (2 + 3^m)/l at most (Avron, Nguyen and Woodruff 2014).

    Example:
        >>> z = TensorSketch([2, 2], 8, seed=1)([torch.eye(2), torch.eye(2)])
        >>> torch.allclose(z.square().sum(1), torch.ones(2))  # one coordinate, ±1
        True
    """

    name = "tensor_sketch"

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        for i, dim in enumerate(dims):
            generator = derived_generator(seed, self.name, "factor", i)
            self.register_buffer(f"buckets_{i}", torch.randint(0, out_dim, (dim,), generator=generator))
            signs = rademacher(dim, 1, generator=generator).to(torch.get_default_dtype())
            self.register_buffer(f"signs_{i}", signs)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        x = self._unfolded(factor, x)
        buckets, signs = self.get_buffer(f"buckets_{factor}"), self.get_buffer(f"signs_{factor}")
        if not can_look():
            # A compiler writes the loop itself, and row by row is the layout that the transform is fast on.
            return x.new_zeros(x.shape[0], self.out_dim).index_add(1, buckets, x * signs.T)
        # Columns become rows, which are added in one go each.
        signed = x.T * signs
        return signed.new_zeros(self.out_dim, len(x)).index_add(0, buckets, signed).T.contiguous()

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the circular convolution."""
        if can_look() and not all(len(p) for p in projections):
            return multiply(projections)  # MKL transforms no empty batch before torch 2.14 (pytorch issue 174984)
        product: Tensor = torch.fft.irfft(multiply([torch.fft.rfft(p) for p in projections]), n=self.out_dim)
        return product

    def unit(self, factor: int) -> Tensor:
        """Return the unit of convolution, (1, l)."""
        return F.one_hot(torch.zeros(1, dtype=torch.int64), self.out_dim).to(torch.get_default_dtype())
