"""Label-free baselines: PCA of the concatenation, CCA, average of kernels, random features of the concatenation.

All of them see sums of the parents' kernels, or their common part, where KrossFuse multiplies them (method.md,
sections 2 and 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec, expert_modalities
from krossfuse.fusion.kernels import CosineKernel, GaussianKernel
from krossfuse.fusion.methods import Concatenation
from krossfuse.fusion.postprocess import principal_axes


class PCAConcatenation(FusionMethod):
    """PCA of the weighted concatenation.

    With ``missing="none"`` it is textbook PCA, centred, of the side with experts. With ``missing="zeros"`` it is
    uncentred, one projection for both sides, fitted on those that have experts: image-text similarities are kept as
    nearly as the rank allows.

    Args:
        inputs: dimensions of the parents.
        dim: components to keep.
        weights: by role, the weight of its kernel in the sum; 1 where not named.
        missing: ``none`` or ``zeros``: what stands for the expert that a modality lacks.

    Raises:
        ConfigError: a bad value; ``DimensionError`` where ``dim`` is larger than the concatenation.
    """

    deterministic = True
    fitted_buffers = ("mean", "axes")
    mean: Tensor
    axes: Tensor

    def __init__(
        self,
        *,
        inputs: InputSpec,
        dim: int,
        weights: Mapping[str, float] | None = None,
        missing: str = "none",
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.stack = Concatenation(inputs=inputs, weights=weights, missing=missing)
        check_positive("dim", dim, integer=True)
        if dim > self.stack.out_dim:
            raise DimensionError(f"dim={dim} is larger than the concatenation's {self.stack.out_dim}")
        self.dim = dim
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("axes", torch.empty(0, 0))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts; both with ``missing="zeros"`` and a cross-modal encoder."""
        return self.stack.modalities

    @property
    def out_dim(self) -> int:
        """``dim``."""
        return self.dim

    def fit(
        self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None
    ) -> PCAConcatenation:
        """Fit the principal axes on the sides that have experts.

        Raises:
            DataError: the features are missing, or fewer samples than ``dim``.
        """
        with torch.no_grad():
            blocks = [self.stack.encode(m, f) for m, f in fit_sides(self.inputs, image, text).items()]
        n = sum(len(block) for block in blocks)
        self.mean, self.axes = principal_axes(lambda: blocks, n=n, k=self.dim, centre=self.stack.missing == "none")
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the principal components, (batch, dim)."""
        stacked = self.stack.encode(modality, features)
        if not self.axes.numel():
            raise NotFittedError("PCAConcatenation has no principal axes yet; call fit() on training features first")
        return (stacked - self.mean) @ self.axes

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**self.stack.describe(), "method": "pca_concatenation", "dim": self.dim}


class AverageKernel(Concatenation):
    """The weighted average of the parents' kernels, k = Σ w_i k_i with Σ w_i = 1, as an explicit map.

    ⟨E(x), E(y)⟩ = Σ w_i ⟨φ_i(x), φ_i(y)⟩: the *sum* that KrossFuse's product is compared with. Two samples are
    similar when any parent says so. The arguments are :class:`Concatenation`'s; the weights are scaled to sum to 1.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        total = sum(self.weights.values())
        self.weights = {role: weight / total for role, weight in self.weights.items()}

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**super().describe(), "method": "average_kernel"}


class RFFConcatenation(FusionMethod):
    """Random Fourier features of the scaled concatenation: a Gaussian kernel on [√w_1 φ_1 ; √w_2 φ_2 ; ...].

    One Gaussian on the scaled concatenation is the product of Gaussians of the parents (method.md, section 5). With
    ``missing="zeros"`` the expert's factor between an image and a text is the constant exp(−w‖φ‖²/2σ²), so the order
    of image-text similarities is the cross-modal encoder's, in the mean over draws.

    Args:
        inputs: dimensions of the parents.
        dim: number of features, even.
        bandwidth: σ > 0, or ``median``.
        orthogonal: orthogonal random features.
        weights: by role, the weight of its squared distance; 1 where not named.
        missing: ``none`` or ``zeros``: what stands for the expert that a modality lacks.
        seed: of the frequencies.

    Raises:
        ConfigError: a bad value.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        dim: int = 3000,
        bandwidth: float | Literal["median"] = "median",
        orthogonal: bool = True,
        weights: Mapping[str, float] | None = None,
        missing: str = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive("dim", dim, integer=True)
        self.inputs, self.seed = inputs, seed
        self.stack = Concatenation(inputs=inputs, weights=weights, missing=missing)
        self.gaussian = GaussianKernel(
            self.stack.out_dim, bandwidth=bandwidth, features=dim, orthogonal=orthogonal, seed=seed
        )

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts; both with ``missing="zeros"`` and a cross-modal encoder."""
        return self.stack.modalities

    @property
    def out_dim(self) -> int:
        """``dim``."""
        return self.gaussian.out_dim

    def fit(
        self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None
    ) -> RFFConcatenation:
        """Fit the bandwidth by the median heuristic, where it is ``median``, on the sides that have experts."""
        if self.gaussian.needs_fit:
            given = fit_sides(self.inputs, image, text)
            self.gaussian.fit(torch.cat([self.stack.encode(modality, f) for modality, f in given.items()]))
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the random features, (batch, dim)."""
        fused: Tensor = self.gaussian(self.stack.encode(modality, features))
        return fused

    def kernel(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> Tensor:
        """Return the exact Gaussian kernel on the scaled concatenation."""
        return self.gaussian.kernel(self.stack.encode(modality_a, a), self.stack.encode(modality_b, b))

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        own = {"method": "rff_concatenation", "dim": self.out_dim, "seed": self.seed}
        return {**self.stack.describe(), **own, **self.gaussian.describe()}


class CCA(FusionMethod):
    """Canonical correlation analysis of the cross-modal encoder and its experts (Hotelling 1936).

    The two views are the first parent, and the others side by side; unit features, centred. With S₁₁, S₂₂ their
    covariances and S₁₂ between them, the canonical directions are S₁₁^(-1/2)·U and S₂₂^(-1/2)·V of the singular
    value decomposition S₁₁^(-1/2)·S₁₂·S₂₂^(-1/2) = U·diag(ρ)·Vᵀ. The embedding is the pairs of canonical variates,
    side by side or added (Sun et al., 2005). It encodes the side with experts only.

    Args:
        inputs: dimensions of the parents; two or more on one side.
        dim: total dimension; even, with ``combine="concat"``; None = all canonical variates.
        ridge: share of the mean variance added to every variance, so that S₁₁ and S₂₂ can be inverted.
        combine: ``concat`` (dim / 2 variates of each view) or ``sum`` (dim of each, added).

    Raises:
        ConfigError: a bad value; ``DimensionError`` where there are fewer variates than asked for.
    """

    deterministic = True
    fitted_buffers = ("mean", "directions", "correlations")
    mean: Tensor
    directions: Tensor

    def __init__(
        self, *, inputs: InputSpec, dim: int | None = None, ridge: float = 0.01, combine: str = "concat"
    ) -> None:
        super().__init__()
        check_positive("ridge", ridge)
        check_choice("combine", combine, ("concat", "sum"))
        self.inputs, self.ridge, self.combine = inputs, float(ridge), combine
        (self._modality,) = expert_modalities(inputs, "CCA", "none")
        roles = {**_cross(inputs), **inputs.experts(self._modality)}
        if len(roles) < 2:
            raise ConfigError(f"CCA needs two parents of one modality, got {roles}")
        self.roles = roles
        self.split = next(iter(roles.values()))
        most = min(self.split, sum(roles.values()) - self.split)
        self.dim = most * (2 if combine == "concat" else 1) if dim is None else dim
        check_positive("dim", self.dim, integer=True)
        if combine == "concat" and self.dim % 2:
            raise ConfigError(f"dim={dim} must be even: half of it for each view; or use combine=sum")
        if self.variates > most:
            raise DimensionError(f"dim={dim} needs {self.variates} canonical variates, but {roles} has {most}")
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("directions", torch.empty(0, 0))
        self.register_buffer("correlations", torch.empty(0))

    @property
    def variates(self) -> int:
        """Number of canonical variates of each view."""
        return self.dim // 2 if self.combine == "concat" else self.dim

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts."""
        return (self._modality,)

    @property
    def out_dim(self) -> int:
        """``dim``."""
        return self.dim

    def fit(self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None) -> CCA:
        """Fit the canonical directions, in float64.

        Raises:
            DataError: the features are missing, or fewer samples than variates.
        """
        features = fit_sides(self.inputs, image, text)[self._modality]
        units = torch.cat(list(unit_features(features, self.roles).values()), dim=1)
        n, k = len(units), self.variates
        if n <= k:
            raise DataError(f"{k} canonical variates need more than {k} fit samples, got {n}")
        x = units.double()
        mean = x.mean(0)
        x = x - mean
        covariance = x.T @ x / n
        s = self.split
        first, second = (_inverse_root(c, self.ridge) for c in (covariance[:s, :s], covariance[s:, s:]))
        u, correlations, vt = torch.linalg.svd(first @ covariance[:s, s:] @ second, full_matrices=False)
        # The largest component of each direction of the first view is positive, whatever the solver's signs.
        signs = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True)))[:, :k]
        directions = torch.cat([first @ u[:, :k] * signs, second @ vt.T[:, :k] * signs])
        self.mean, self.directions, self.correlations = (
            mean.to(self.mean),
            directions.to(self.mean),
            correlations[:k].to(self.mean),
        )
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the canonical variates, (batch, dim)."""
        check_choice("modality", modality, self.modalities)
        stacked = torch.cat(list(unit_features(features, self.roles).values()), dim=1).to(self.mean.dtype)
        if not self.directions.numel():
            raise NotFittedError("CCA has no canonical directions yet; call fit() on training features first")
        first, second = self.directions[: self.split], self.directions[self.split :]
        x = stacked - self.mean
        one, two = x[:, : self.split] @ first, x[:, self.split :] @ second
        return torch.cat([one, two], dim=1) if self.combine == "concat" else one + two

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {"method": "cca", "dim": self.dim, "ridge": self.ridge, "combine": self.combine}


def _inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    """Return (S + ridge · mean variance · I)^(-1/2)."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = ridge * covariance.diagonal().mean()
    root: Tensor = (vectors * (values.clamp_min(0) + floor).rsqrt()) @ vectors.T
    return root


def _cross(inputs: InputSpec) -> dict[str, int]:
    return {} if inputs.cross_modal is None else {CROSS_MODAL: inputs.cross_modal}


def unit_features(features: Features, roles: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the features of ``roles`` scaled to unit length.

    Raises:
        DataError: a role is missing, has another dimension, or holds NaN, infinity or a zero vector.
    """
    units: dict[str, Tensor] = {}
    for role, dim in roles.items():
        if role not in features:
            raise DataError(f"features of {role!r} are missing; there are {sorted(features)}")
        try:
            units[role] = CosineKernel(dim)(features[role])
        except DataError as error:
            raise DataError(f"features of {role!r}: {error}") from None
    return units


def fit_sides(inputs: InputSpec, image: Features | None, text: Features | None) -> dict[Modality, Features]:
    """Return the given features of the sides that have experts.

    Raises:
        DataError: a side with experts was not given.
    """
    given: dict[Modality, Features] = {}
    for modality, features in (("image", image), ("text", text)):
        if not inputs.experts(modality):  # type: ignore[arg-type]
            continue
        if not features:
            raise DataError(f"fit() needs {modality} features: the {modality} side has experts")
        given[modality] = features  # type: ignore[index]
    return given
