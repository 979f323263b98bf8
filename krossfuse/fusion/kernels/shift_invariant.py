"""Kernels of x − y by random Fourier features."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_positive, check_range
from krossfuse.core.memory import check_memory
from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.draws import orthogonal_rows
from krossfuse.fusion.kernels.base import Kernel, unit_rows
from krossfuse.fusion.rows import can_look, holds

MEDIAN_ROWS = 1000
"""Rows whose pairwise distances the median heuristic looks at."""


class ShiftInvariantKernel(Kernel):
    """A kernel of x − y by random Fourier features, sine and cosine (Rahimi and Recht 2007).

    With frequencies ω_1 ... ω_r from the kernel's spectral density, and bandwidth σ,

        φ(x) = (1/√r)·[cos(ω_iᵀx/σ) ..., sin(ω_iᵀx/σ) ...]      2r dims, ‖φ(x)‖ = 1,  E⟨φ(x), φ(y)⟩ = k(x, y).

    The variance of ⟨φ(x), φ(y)⟩ is (1 + k(2δ) − 2k(δ)²)/(2r) with δ = x − y for i.i.d. frequencies
    (Sutherland and Schneider 2015).

    Args:
        in_dim: dimension d of the parent's features.
        bandwidth: σ > 0, or "median": the median distance between the rows that :meth:`fit` sees, in the kernel's
            own distance.
        features: 2r, even.
        orthogonal: rows orthogonal within blocks of d, with the norms that independent rows would have (χ_d for the
            Gaussian; Yu et al. 2016), so each row keeps its distribution; rotation-invariant kernels only.
        normalize: map x / ‖x‖ rather than x.
        seed: of the frequencies.

    Raises:
        ConfigError: a value is impossible.
    """

    rotation_invariant: ClassVar[bool] = True
    deterministic = False
    directions: Tensor
    bandwidth: Tensor

    def __init__(
        self,
        in_dim: int,
        *,
        bandwidth: float | str = "median",
        features: int = 1024,
        orthogonal: bool = False,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(in_dim)
        if bandwidth != "median":
            if isinstance(bandwidth, str):
                raise ConfigError(f"bandwidth={bandwidth!r} must be a positive number or 'median'")
            check_range("bandwidth", bandwidth, 1e-30, 1e30, "float32 holds no more")
        check_positive("features", features, integer=True)
        if features % 2:
            raise ConfigError(f"features={features} must be even: a cosine and a sine for each frequency")
        if orthogonal and not self.rotation_invariant:
            raise ConfigError(f"orthogonal=True needs a rotation-invariant kernel; {self.name} is not, use false")
        self.out_dim, self.orthogonal, self.normalize = features, orthogonal, normalize
        self.configured_bandwidth = bandwidth
        check_memory(f"512 rows of {features} random features", 512 * 4 * features, "lower features")
        check_memory(
            f"{features // 2} frequencies of {in_dim} dimensions",
            (8 + 4) * (features // 2) * in_dim,
            "lower features",
            error=DimensionError,
        )
        generator = derived_generator(seed, "fourier", self.name)
        rows = features // 2
        if orthogonal:
            gaussian = torch.randn(rows, in_dim, generator=generator, dtype=torch.float64)
            norms = torch.linalg.vector_norm(gaussian, dim=1, keepdim=True)
            directions = norms * orthogonal_rows(rows, in_dim, generator) * self._radius(rows, generator)
        else:
            directions = self._draw(rows, generator)
        self.register_buffer("directions", directions.to(torch.get_default_dtype()))
        value = math.nan if bandwidth == "median" else bandwidth
        self.register_buffer("bandwidth", torch.tensor(value, dtype=torch.get_default_dtype()))

    def _radius(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return the factor (rows, 1) by which this kernel's frequencies are those of the Gaussian's scaled."""
        return torch.ones(rows, 1, dtype=torch.float64)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return i.i.d. frequencies (rows, in_dim) of bandwidth 1, float64."""
        gaussian = torch.randn(rows, self.in_dim, generator=generator, dtype=torch.float64)
        return gaussian * self._radius(rows, generator)

    @property
    def needs_fit(self) -> bool:
        """Whether the bandwidth awaits the median heuristic."""
        return self.configured_bandwidth == "median"

    def check_rows(self, rows: int) -> None:
        """Check that there are two rows, whose distance the median heuristic can take."""
        if self.needs_fit and rows < 2:
            raise DataError(f"the median heuristic needs two rows of features at least, got {rows}")

    def fit(self, x: Tensor) -> Self:
        """Set the bandwidth to the median distance of at most 1000 rows, evenly spaced in x, if so configured.

        Raises:
            DataError: fewer than two rows, or a median distance of zero.
        """
        if not self.needs_fit:
            return self
        self.check_rows(len(x))
        count = min(len(x), MEDIAN_ROWS)
        rows = self._prepare(x[torch.arange(count, device=x.device) * len(x) // count].to(self.directions))
        upper = torch.triu_indices(count, count, 1, device=rows.device)
        median = self._distance(rows, rows)[upper[0], upper[1]].median()
        if not bool(torch.isfinite(median)):
            raise DataError(
                f"the median distance of the features is beyond the range of {median.dtype}: they are as large as "
                f"{float(rows.abs().max()):g}; scale them, or set normalize=true"
            )
        if not bool(median > 0) and bool((rows != rows[0]).any(1).sum() * 2 > count):
            raise DataError(
                f"the median distance of the features is too small for {median.dtype}: they differ by "
                f"{float((rows - rows[0]).abs().max()):g} at most; scale them, or give a bandwidth"
            )
        if not bool(median > 0):
            raise DataError("the median distance of the features is zero: most rows are equal; give a bandwidth")
        self.bandwidth.copy_(median)
        return self

    def _prepare(self, x: Tensor) -> Tensor:
        return unit_rows(self._check(x)) if self.normalize else self._check(x)

    def _sigma(self) -> Tensor:
        if can_look() and not holds(~torch.isnan(self.bandwidth)):
            raise NotFittedError(f"the {self.name} kernel's bandwidth is 'median': fit it first, or give a number")
        return self.bandwidth

    def forward(self, x: Tensor) -> Tensor:
        """Return the random Fourier features, (n, features), of unit norm."""
        phase = self._prepare(x) @ (self.directions.T / self._sigma())
        return torch.cat([phase.cos(), phase.sin()], 1) / math.sqrt(len(self.directions))

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the exact kernel, in terms of the distance over the bandwidth."""
        return self._of_distance(self._distance(self._prepare(x), self._prepare(y)) / self._sigma())

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y)

    @abstractmethod
    def _of_distance(self, distance: Tensor) -> Tensor: ...

    def describe(self) -> dict[str, Any]:
        """Return the configuration, with the bandwidth in use (None before the fit)."""
        sigma = float(self.bandwidth)
        return {
            "kernel": self.name,
            "bandwidth": None if math.isnan(sigma) else sigma,
            **({"bandwidth_rule": "median"} if self.needs_fit else {}),
            "features": self.out_dim,
            "orthogonal": self.orthogonal,
            "normalize": self.normalize,
        }
