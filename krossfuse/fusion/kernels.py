"""Kernels: each is a feature map φ with its exact kernel function k(x, y) beside it.

A :class:`Kernel` maps one parent's features (n, in_dim) to (n, out_dim) so that ⟨φ(x), φ(y)⟩ is k(x, y), exactly or
in the mean over the random features' draw. Sections 1 and 5 of docs/mathematics.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_positive
from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.draws import orthogonal_rows
from krossfuse.fusion.sketches import TensorSketch

MEDIAN_ROWS = 1000
"""Rows whose pairwise distances the median heuristic looks at."""


class Kernel(nn.Module, ABC):
    """A kernel of one parent: feature map by :meth:`forward`, exact value by :meth:`kernel`.

    Attributes:
        name: as in the configuration and in results.
        in_dim: dimension of the parent's features.
        out_dim: dimension of the feature map.
        deterministic: no seed changes it. Every kernel takes a ``seed``; those that draw nothing have no use for it.
    """

    name: ClassVar[str]
    in_dim: int
    out_dim: int
    deterministic: bool = True

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        check_positive("in_dim", in_dim, integer=True)
        self.in_dim = in_dim

    @property
    def needs_fit(self) -> bool:
        """Whether :meth:`fit` must run before anything else."""
        return False

    def fit(self, x: Tensor) -> Self:
        """Fit on (n, in_dim) features, without labels; nothing to do for most kernels."""
        return self

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return φ(x): (n, in_dim) to (n, out_dim).

        Raises:
            DataError: NaN or infinite features, a wrong dimension, or a zero vector where direction matters.
            NotFittedError: the bandwidth has not been fitted.
        """

    @abstractmethod
    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the exact kernel (n, m) of (n, in_dim) and (m, in_dim); raises as :meth:`forward`."""

    def describe(self) -> dict[str, Any]:
        """Return the kernel's configuration, flat and JSON-able."""
        return {"kernel": self.name}

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise DataError(f"expected features of shape (n, {self.in_dim}), got {tuple(x.shape)}")
        # One cheap pass: a finite sum has finite terms only (a sum that overflows is looked at again).
        if not bool(torch.isfinite(x.detach().sum())) and not bool(torch.isfinite(x).all()):
            raise DataError(f"NaN or infinite features in {_count(~torch.isfinite(x).all(1))}")
        return x


def _count(bad: Tensor) -> str:
    rows = bad.nonzero().flatten()
    return f"{len(rows)} of {len(bad)} rows, the first at row {int(rows[0])} of the batch"


class LinearKernel(Kernel):
    """k(x, y) = ⟨x, y⟩, φ(x) = x.

    Example:
        >>> LinearKernel(2)(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """

    name = "linear"

    def __init__(self, in_dim: int, *, seed: int = 0) -> None:
        super().__init__(in_dim)
        self.out_dim = in_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return x itself, checked."""
        return self._check(x)

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ⟨x, y⟩."""
        return self._check(x) @ self._check(y).T


class CosineKernel(Kernel):
    """k(x, y) = ⟨x, y⟩ / (‖x‖ ‖y‖), φ(x) = x / ‖x‖. A zero vector has no direction and is refused.

    Example:
        >>> CosineKernel(2)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    name = "cosine"

    def __init__(self, in_dim: int, *, seed: int = 0) -> None:
        super().__init__(in_dim)
        self.out_dim = in_dim

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise DataError(f"expected features of shape (n, {self.in_dim}), got {tuple(x.shape)}")
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return x / ‖x‖."""
        return _unit(self._check(x))

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cosine of the angle."""
        cosine: Tensor = self(x) @ self(y).T
        return cosine


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    low, high = norm.detach().aminmax() if len(x) else (torch.ones(()), torch.ones(()))
    # aminmax propagates NaN, so both comparisons fail on it.
    if not (bool(low > 0) and bool(high < math.inf)):
        finite = torch.isfinite(norm.flatten())
        if not bool(finite.all()):
            raise DataError(f"NaN or infinite features in {_count(~finite)}")
        raise DataError(f"zero vectors, which have no direction, in {_count(norm.flatten() == 0)}")
    unit: Tensor = x / norm
    return unit


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
            check_positive("bandwidth", bandwidth)
        check_positive("features", features, integer=True)
        if features % 2:
            raise ConfigError(f"features={features} must be even: a cosine and a sine for each frequency")
        if orthogonal and not self.rotation_invariant:
            raise ConfigError(f"orthogonal=True needs a rotation-invariant kernel; {self.name} is not, use false")
        self.out_dim, self.orthogonal, self.normalize = features, orthogonal, normalize
        self.configured_bandwidth = bandwidth
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

    def fit(self, x: Tensor) -> Self:
        """Set the bandwidth to the median distance of at most 1000 rows, evenly spaced in x, if so configured.

        Raises:
            DataError: fewer than two rows, or a median distance of zero.
        """
        if not self.needs_fit:
            return self
        if len(x) < 2:
            raise DataError(f"the median heuristic needs two rows of features at least, got {len(x)}")
        count = min(len(x), MEDIAN_ROWS)
        rows = self._prepare(x[torch.arange(count, device=x.device) * len(x) // count].to(self.directions))
        upper = torch.triu_indices(count, count, 1, device=rows.device)
        median = self._distance(rows, rows)[upper[0], upper[1]].median()
        if not bool(median > 0):
            raise DataError("the median distance of the features is zero: most rows are equal; give a bandwidth")
        self.bandwidth.copy_(median)
        return self

    def _prepare(self, x: Tensor) -> Tensor:
        return _unit(self._check(x)) if self.normalize else self._check(x)

    def _sigma(self) -> Tensor:
        if bool(torch.isnan(self.bandwidth)):
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
            "features": self.out_dim,
            "orthogonal": self.orthogonal,
            "normalize": self.normalize,
        }


class GaussianKernel(ShiftInvariantKernel):
    """k(x, y) = exp(−‖x − y‖² / 2σ²); frequencies N(0, I). Arguments: :class:`ShiftInvariantKernel`.

    A product of Gaussian kernels is one Gaussian kernel on the scaled concatenation [x_1/σ_1 ; x_2/σ_2].

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> GaussianKernel(2, bandwidth=5.0).kernel(x, x)[0, 1]  # exp(-1/2)
        tensor(0.6065)
    """

    name = "gaussian"

    def _of_distance(self, distance: Tensor) -> Tensor:
        return torch.exp(distance.square() / -2)


class LaplaceKernel(ShiftInvariantKernel):
    """k(x, y) = exp(−‖x − y‖₁ / η); frequencies are independent standard Cauchy coordinates.

    Arguments: :class:`ShiftInvariantKernel`, bandwidth η.
    """

    name = "laplace"
    rotation_invariant = False

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(rows, self.in_dim, generator=generator, dtype=torch.float64)
        return torch.tan(math.pi * (uniform - 0.5))

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y, p=1)

    def _of_distance(self, distance: Tensor) -> Tensor:
        return torch.exp(-distance)


class CauchyKernel(ShiftInvariantKernel):
    """k(x, y) = 1 / (1 + ‖x − y‖² / σ²); frequencies √(2e)·N(0, I) with e standard exponential.

    For ∫ exp(−e)·exp(−e‖δ‖²) de = 1/(1 + ‖δ‖²): a scale mixture of Gaussians (the rational quadratic kernel with
    α = 1 and length scale σ/√2). Arguments: :class:`ShiftInvariantKernel`.
    """

    name = "cauchy"

    def _radius(self, rows: int, generator: torch.Generator) -> Tensor:
        exponential = torch.empty(rows, 1, dtype=torch.float64).exponential_(generator=generator)
        return torch.sqrt(2 * exponential)

    def _of_distance(self, distance: Tensor) -> Tensor:
        return 1 / (1 + distance.square())


class MaternKernel(ShiftInvariantKernel):
    """Matérn kernel of smoothness ν = 1/2, 3/2 or 5/2; frequencies are multivariate t with 2ν degrees of freedom.

    With s = √(2ν)·‖x − y‖/σ: exp(−s), (1 + s)·exp(−s) and (1 + s + s²/3)·exp(−s). A t vector is N(0, I)·√(2ν/c) with
    c ~ χ² of 2ν degrees (Rasmussen and Williams 2006, section 4.2.1).

    Args:
        in_dim: dimension of the parent's features.
        nu: ν.
        options: those of :class:`ShiftInvariantKernel`.

    Raises:
        ConfigError: ν has no closed form here, or as :class:`ShiftInvariantKernel`.
    """

    name = "matern"
    nu: float

    def __init__(self, in_dim: int, *, nu: float = 1.5, **options: Any) -> None:
        if nu not in (0.5, 1.5, 2.5):
            raise ConfigError(f"nu={nu!r} must be 0.5, 1.5 or 2.5; for nu towards infinity use the gaussian kernel")
        self.nu = float(nu)  # before the draw, which needs it
        super().__init__(in_dim, **options)

    def _radius(self, rows: int, generator: torch.Generator) -> Tensor:
        degrees = round(2 * self.nu)
        chi2 = torch.randn(rows, degrees, generator=generator, dtype=torch.float64).square().sum(1, keepdim=True)
        return torch.sqrt(degrees / chi2)

    def _of_distance(self, distance: Tensor) -> Tensor:
        s = math.sqrt(2 * self.nu) * distance
        polynomial = {0.5: torch.ones_like(s), 1.5: 1 + s, 2.5: 1 + s + s.square() / 3}[self.nu]
        return polynomial * torch.exp(-s)

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().describe(), "nu": self.nu}


class PolynomialKernel(Kernel):
    """k(x, y) = (γ⟨x, y⟩ + c)^p; φ(x) is the p-fold Kronecker power of [√γ·x, √c], or a TensorSketch of it.

    Args:
        in_dim: dimension d of the parent's features.
        degree: p, 1 or more.
        gamma: γ > 0.
        coef0: c ≥ 0.
        features: dimension of the TensorSketch (Pham and Pagh 2013), or None for the exact map of (d + 1)^p dims.
        normalize: map x / ‖x‖ rather than x.
        seed: of the sketch.

    Raises:
        ConfigError: a value is impossible.
        DimensionError: the exact map has more than ``MAX_EXACT`` dimensions.

    Example:
        >>> kernel, x = PolynomialKernel(2, degree=2), torch.tensor([[1.0, 2.0]])
        >>> kernel.kernel(x, x), kernel(x) @ kernel(x).T  # (5 + 1)²
        (tensor([[36.]]), tensor([[36.]]))
    """

    name = "polynomial"
    MAX_EXACT = 20_000

    def __init__(
        self,
        in_dim: int,
        *,
        degree: int = 2,
        gamma: float = 1.0,
        coef0: float = 1.0,
        features: int | None = None,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(in_dim)
        check_positive("degree", degree, integer=True)
        check_positive("gamma", gamma)
        if isinstance(coef0, bool) or not isinstance(coef0, int | float) or not 0 <= coef0 < math.inf:
            raise ConfigError(f"coef0={coef0!r} must be zero or a positive, finite number")
        self.degree, self.gamma, self.coef0, self.normalize = degree, float(gamma), float(coef0), normalize
        width = in_dim + (coef0 > 0)
        self.sketch: TensorSketch | None = None
        if features is not None:
            check_positive("features", features, integer=True)
            self.out_dim = features
            if degree > 1:
                self.deterministic = False
                self.sketch = TensorSketch([width] * degree, features, seed=seed)
            elif features != width:
                raise ConfigError(f"features={features} has no use for degree 1, whose map is exact; use null")
        elif width**degree > self.MAX_EXACT:
            raise DimensionError(f"the exact map of degree {degree} has {width}^{degree} = {width**degree} dimensions, "
                                 f"more than {self.MAX_EXACT}; set features for a TensorSketch of it")  # fmt: skip
        else:
            self.out_dim = width**degree

    def _prepare(self, x: Tensor) -> Tensor:
        return _unit(self._check(x)) if self.normalize else self._check(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the Kronecker power, or its sketch."""
        base = self._prepare(x) * math.sqrt(self.gamma)
        if self.coef0 > 0:
            base = torch.cat([base, base.new_full((len(base), 1), math.sqrt(self.coef0))], 1)
        if self.sketch is not None:
            sketched: Tensor = self.sketch([base] * self.degree)
            return sketched
        power = base
        for _ in range(self.degree - 1):
            power = (power.unsqueeze(2) * base.unsqueeze(1)).flatten(1)
        return power

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (γ⟨x, y⟩ + c)^p."""
        value: Tensor = (self.gamma * self._prepare(x) @ self._prepare(y).T + self.coef0) ** self.degree
        return value

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {
            "kernel": self.name,
            "degree": self.degree,
            "gamma": self.gamma,
            "coef0": self.coef0,
            "features": self.out_dim,
            "normalize": self.normalize,
        }


def paired_kernels(image: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Return the joint kernels of paired data, where item i is an image and a text: K_I, K_T, their sum and product.

    Two items are similar under the sum if either part says so, under the product only if both do: of groups that
    cross (2 genders × 3 professions), the product alone separates all.

    Args:
        image: kernel matrix (n, m) of the images.
        text: kernel matrix (n, m) of the texts.

    Raises:
        DataError: the matrices differ in shape.

    Example:
        >>> image = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
        >>> paired_kernels(image, torch.eye(2))["product"]
        tensor([[1., 0.],
                [0., 1.]])
    """
    if image.shape != text.shape:
        raise DataError(f"paired kernels are of the same items, got {tuple(image.shape)} and {tuple(text.shape)}")
    return {"image": image, "text": text, "sum": image + text, "product": image * text}
