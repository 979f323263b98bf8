"""Sketches that project each factor linearly and multiply the projections."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from krossfuse.fusion.sketches.base import Sketch
from krossfuse.fusion.sketches.products import multiply


class RandomSketch(Sketch):
    """A sketch that projects each factor linearly and multiplies the projections: S(φ_1 ⊗ φ_2) = U_1φ_1 ⊙ U_2φ_2.

    What a subclass gives: :meth:`_project`, a linear map of one factor with mean-zero entries into its own space of
    projections; :meth:`multiply`, the product in that space; :meth:`finish`, from there to l real coordinates. The
    published symmetrisation and the constant offset then are an ``offset`` added to an expert's projection.
    """

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        self._mirrored: set[int] = set()

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the sketch (n, l) of the product of factors (n, d_i)."""
        return self.finish(self.multiply([self.project(i, x) for i, x in enumerate(factors)]))

    def project(self, factor: int, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return the projection of factor number ``factor``, plus ``offset`` if given."""
        projection = self._project(factor, x)
        return projection if offset is None else projection + offset

    @abstractmethod
    def _project(self, factor: int, x: Tensor) -> Tensor: ...

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the product of projections; one of a single row goes with every row of the others.

        The first one's memory may be used for the result.
        """
        return multiply(projections)

    def finish(self, product: Tensor) -> Tensor:
        """Return the sketch (n, l) of the product of projections of all factors."""
        return product

    @abstractmethod
    def unit(self, factor: int) -> Tensor:
        """Return the constant projection which, in an expert's place, leaves an unbiased sketch of the others."""

    def mirror(self, factor: int) -> Tensor:
        """Fold the symmetrisation of an expert φ of d = dims[factor] / 2 dimensions into its projection.

        From then on ``project(factor, φ)`` takes (n, d) and gives U[φ ; −φ]/√2 = Wφ, W = (A − B)/√2 for U = [A B].

        Returns:
            U·1: times √(C/2d) it is the constant c with Uφ̃_X = c + Wφ and Uφ̃_T = c.
        """
        ones = torch.ones(1, self.dims[factor], dtype=torch.get_default_dtype())
        constant = self._project(factor, ones)
        self.dims = (*self.dims[:factor], self.dims[factor] // 2, *self.dims[factor + 1 :])
        self._fold(factor)
        return constant

    def _fold(self, factor: int) -> None:
        self._mirrored.add(factor)

    def _unfolded(self, factor: int, x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1) / math.sqrt(2) if factor in self._mirrored else x
