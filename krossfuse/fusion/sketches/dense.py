"""Dense random matrices with independent entries: uniform (the paper's), Gaussian, Rademacher."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.draws import rademacher
from krossfuse.fusion.sketches.random import RandomSketch


class DenseSketch(RandomSketch):
    """(1/√l)·(U_1φ_1) ⊙ ... ⊙ (U_mφ_m) with dense U_i of mean 0, variance 1 and independent of one another.

    Unbiased: E⟨S(x), S(y)⟩ = Π k_i. With i.i.d. entries of fourth moment κ the variance for unit vectors is
    (Π E_i − Π k_i²)/l, E_i = 1 + 2k_i² + (κ − 3)·Σ_j x_j²y_j². O(l·Σd_i) a sample.
    """

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        for i, dim in enumerate(dims):
            matrix = self._matrix(dim, derived_generator(seed, self.name, "factor", i))
            if i == 0:
                matrix /= math.sqrt(out_dim)
            self.register_buffer(f"matrix_{i}", matrix.to(torch.get_default_dtype()).contiguous())

    def numbers(self) -> int:
        """Return l·Σd_i."""
        return self.out_dim * sum(self.dims)

    @abstractmethod
    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        """Draw U transposed, (dim, l), of variance 1."""

    def project(self, factor: int, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return U_i x + offset, (n, l)."""
        matrix = self.get_buffer(f"matrix_{factor}")
        return x @ matrix if offset is None else torch.addmm(offset, x, matrix)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        return x @ self.get_buffer(f"matrix_{factor}")

    def unit(self, factor: int) -> Tensor:
        """Return ones, (1, l)."""
        return torch.ones(1, self.out_dim)

    def _fold(self, factor: int) -> None:
        above, below = self.get_buffer(f"matrix_{factor}").chunk(2)
        setattr(self, f"matrix_{factor}", (above - below) / math.sqrt(2))


class UniformSketch(DenseSketch):
    """Entries uniform on [−√3, √3], the paper's choice (arXiv 2506.08645, section 4): κ = 1.8.

    Example:
        >>> sketch = UniformSketch([3, 4], 5, seed=1)
        >>> sketch([torch.ones(2, 3), torch.ones(2, 4)]).shape
        torch.Size([2, 5])
    """

    name = "uniform"

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        return torch.rand(dim, self.out_dim, generator=generator).mul_(2).sub_(1).mul_(math.sqrt(3))


class GaussianSketch(DenseSketch):
    """Entries N(0, 1): κ = 3, variance (Π(1 + 2k_i²) − Π k_i²)/l, which does not depend on the basis.

    Example:
        >>> x = [torch.eye(2), torch.eye(2)]
        >>> z = GaussianSketch([2, 2], 100_000, seed=1)(x)
        >>> torch.allclose(z @ z.T, torch.eye(2), atol=0.05)
        True
    """

    name = "gaussian"

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        return torch.randn(dim, self.out_dim, generator=generator)


class RademacherSketch(DenseSketch):
    """Entries ±1: κ = 1, the lowest variance that i.i.d. entries can have.

    Example:
        >>> z = RademacherSketch([2, 2], 8, seed=1)([torch.eye(2), torch.eye(2)])
        >>> torch.allclose(z.square().sum(1), torch.ones(2))  # basis vectors have their length without error
        True
    """

    name = "rademacher"

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        return rademacher(dim, self.out_dim, generator=generator)
