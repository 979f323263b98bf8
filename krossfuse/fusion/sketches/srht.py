"""Subsampled randomised Hadamard transforms, real and complex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.draws import hadamard, quarter_turns, rademacher
from krossfuse.fusion.sketches.products import multiply_complex
from krossfuse.fusion.sketches.random import RandomSketch


class SRHTSketch(RandomSketch):
    """Subsampled randomised Hadamard transform: rows of H·D of unit entries, by small matrix products.

    The d entries of a factor are laid out as A × b, A = 8. Signs D, then a Hadamard matrix over A, then for each of its
    A outputs further signs and rows of a b-order Hadamard matrix, sampled without replacement. Every row of U_i has
    entries ±1, which the signs D alone make unbiased, and rows of one set of signs are orthogonal but for the padding.
    Rows that share an output of the first stage are positively correlated, which adds about A·l/(T·Π d_i) of the i.i.d.
    variance with T independent sets of signs. T makes that 5%, or is l/A, where no two rows share an output.
    O(l·d/A + T·A·d) a sample in place of the dense O(l·d).

    Source: Ailon and Chazelle 2009; for products, Hamid et al. 2014.

    Example:
        >>> z = SRHTSketch([2, 2], 8, seed=1)([torch.eye(2), torch.eye(2)])
        >>> torch.allclose(z.square().sum(1), torch.ones(2))  # basis vectors have their length without error
        True
    """

    name = "srht"
    GROUPS: ClassVar[int] = 8
    INFLATION: ClassVar[float] = 0.05
    scale: ClassVar[float] = 1.0
    parts: ClassVar[int] = 1
    """Real numbers a projection consists of."""
    mix: Tensor

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        rows = -(-out_dim // self.parts)
        wanted = math.ceil(self.GROUPS * out_dim / (self.INFLATION * math.prod(dims)))
        self._sets = min(wanted, -(-rows // self.GROUPS))
        self._columns = -(-rows // (self._sets * self.GROUPS)) * self.parts
        self.register_buffer("mix", hadamard(self.GROUPS))
        for i, dim in enumerate(dims):
            generator = derived_generator(seed, self.name, "factor", i)
            width = -(-dim // self.GROUPS)
            signs = rademacher(self._sets, self.GROUPS, 1, width, generator=generator)
            second = self._rows(width, generator)
            if i == 0:
                second = second * (self.scale / math.sqrt(out_dim))
            self.register_buffer(f"signs_{i}", signs.to(torch.get_default_dtype()))
            self.register_buffer(f"rows_{i}", second.to(torch.get_default_dtype()).contiguous())

    def numbers(self) -> int:
        """Return those of the second stage."""
        return self.out_dim * sum(-(-dim // self.GROUPS) for dim in self.dims)

    def _rows(self, width: int, generator: torch.Generator) -> Tensor:
        """Draw the second stage, (T·A, width, columns): signed Hadamard rows as columns."""
        order = 1 << (width - 1).bit_length()
        full, needed, batches = hadamard(order)[:, :width], self._columns // self.parts, []
        groups = self._sets * self.GROUPS
        for _ in range(-(-needed // order)):
            chosen = torch.rand(groups, order, generator=generator).argsort(1)[:, :needed]
            batches.append(self._signed(full[chosen].transpose(1, 2), generator))
        return torch.cat(batches, 2)[:, :, : self._columns]

    def _signed(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return rows * rademacher(*rows.shape[:2], 1, generator=generator)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        signs, rows = self.get_buffer(f"signs_{factor}"), self.get_buffer(f"rows_{factor}")
        sets, groups, _, width = signs.shape
        x = self._unfolded(factor, x)
        x = F.pad(x, (0, groups * width - x.shape[1])) if x.shape[1] < groups * width else x
        flipped = x.reshape(x.shape[0], groups, width).transpose(0, 1) * signs  # (T, A, n, width)
        mixed = self.mix @ flipped.reshape(sets, groups, x.shape[0] * width)
        return torch.bmm(mixed.view(sets * groups, x.shape[0], width), rows)  # (T·A, n, columns)

    def finish(self, product: Tensor) -> Tensor:
        """Return the groups side by side, (n, l)."""
        return product.transpose(0, 1).flatten(1)[:, : self.out_dim]

    def unit(self, factor: int) -> Tensor:
        """Return ones, (T·A, 1, columns)."""
        return torch.ones(self._sets * self.GROUPS, 1, self._columns)


class ComplexToRealSRHTSketch(SRHTSketch):
    """SRHT whose second signs are fourth roots of unity; real and imaginary parts stacked.

    Unbiased as :class:`ComplexToRealSketch`, at the cost of :class:`SRHTSketch` (Wacker et al. 2022). The d/8 groups'
    phases are one for all 8 entries, so the gain over real signs needs factors of more than a few dozen dimensions.
    """

    name = "complex_to_real_srht"
    scale = math.sqrt(2)
    parts = 2

    def _signed(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        turns = quarter_turns(*rows.shape[:2], generator=generator)
        return (rows.unsqueeze(-1) * turns.unsqueeze(2)).flatten(2)

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the complex product."""
        return multiply_complex(projections)

    def unit(self, factor: int) -> Tensor:
        """Return complex ones, (T·A, 1, columns)."""
        return torch.tensor([1.0, 0.0]).repeat(self._sets * self.GROUPS, 1, self._columns // 2)
