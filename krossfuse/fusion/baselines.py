"""Label-free baselines: PCA of the concatenation, CCA, average of kernels, random features of the concatenation.

All of them see sums of the parents' kernels, or their common part, where KrossFuse multiplies them (method.md,
sections 2 and 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.data.base import Modality
from krossfuse.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.fusion.base import CROSS_MODAL, Features, FusionMethod, InputSpec
from krossfuse.fusion.draws import derive_seed
from krossfuse.fusion.kernels import CosineKernel, GaussianKernel, Kernel, LinearKernel
from krossfuse.fusion.postprocess import principal_axes

MISSING = ("none", "zeros")


KernelFactory = Callable[..., Kernel]
"""What makes a kernel from ``in_dim`` and ``seed``: a class, or a ``_partial_`` in YAML."""


class _Stacked(FusionMethod):
    """What the concatenations share: the parents' weighted feature maps, side by side.

    With ``missing="none"`` only the side with experts is encoded. With ``missing="zeros"`` both sides share one
    layout, [cross-modal | image experts | text experts], where what a side lacks is zero: image-text similarities
    are then those of the cross-modal encoder, times its weight.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        weights: Mapping[str, float] | None,
        missing: str,
        kernel: KernelFactory = CosineKernel,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("missing", missing, MISSING)
        self.inputs, self.missing = inputs, missing
        roles = {**_cross(inputs), **inputs.image_experts, **inputs.text_experts}
        self._modalities = expert_modalities(inputs, type(self).__name__, missing)
        self.weights = dict.fromkeys(roles, 1.0)
        for role, weight in (weights or {}).items():
            check_choice("weights: role", role, roles)
            check_positive(f"weights[{role}]", weight)
            self.weights[role] = float(weight)
        # A list, because a role may hold characters that a ModuleDict refuses.
        maps = [kernel(in_dim=d, seed=derive_seed(seed, "parent", i)) for i, d in enumerate(roles.values())]
        self.maps = nn.ModuleList(maps)
        self.slots = dict(zip(roles, maps, strict=True))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts; both with ``missing="zeros"`` and a cross-modal encoder."""
        return self._modalities

    @property
    def width(self) -> int:
        """Dimension of the concatenation."""
        return sum(kernel.out_dim for kernel in self.slots.values())

    def fit_maps(self, given: Mapping[Modality, Features]) -> None:
        """Fit each parent's kernel on the first side that has its features."""
        for role, kernel in self.slots.items():
            for features in given.values():
                if role in features:
                    kernel.fit(features[role])
                    break

    def stacked(self, modality: Modality, features: Features) -> Tensor:
        """Return (batch, width): √weight · φ of each parent, zeros where this side has no such parent."""
        check_choice("modality", modality, self.modalities)
        own = {**_cross(self.inputs), **self.inputs.experts(modality)}
        mapped = {role: apply_kernel(self.slots[role], features, role) * self.weights[role] ** 0.5 for role in own}
        like = next(iter(mapped.values()))
        return torch.cat(
            [mapped[role] if role in own else like.new_zeros(len(like), k.out_dim) for role, k in self.slots.items()],
            dim=1,
        )


class PCAConcatenation(_Stacked):
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
        super().__init__(inputs=inputs, weights=weights, missing=missing)
        check_positive("dim", dim, integer=True)
        if dim > self.width:
            raise DimensionError(f"dim={dim} is larger than the concatenation of {list(self.slots)}, {self.width}")
        self.dim = dim
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("axes", torch.empty(0, 0))

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
        given = fit_sides(self.inputs, image, text)
        blocks = [self.stacked(modality, features) for modality, features in given.items()]
        n = sum(len(block) for block in blocks)
        self.mean, self.axes = principal_axes(lambda: blocks, n=n, k=self.dim, centre=self.missing == "none")
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the principal components, (batch, dim)."""
        stacked = self.stacked(modality, features)
        if not self.axes.numel():
            raise NotFittedError("PCAConcatenation has no principal axes yet; call fit() on training features first")
        return (stacked - self.mean.to(stacked.dtype)) @ self.axes.to(stacked.dtype)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {"method": "pca_concatenation", "dim": self.dim, "weights": self.weights, "missing": self.missing}


class AverageKernel(_Stacked):
    """The weighted average of the parents' kernels, k = Σ w_i k_i with Σ w_i = 1, as an explicit map.

    ⟨E(x), E(y)⟩ = Σ w_i ⟨φ_i(x), φ_i(y)⟩: the *sum* that KrossFuse's product is compared with. Two samples are
    similar when any parent says so.

    Args:
        inputs: dimensions of the parents.
        kernel: of every parent.
        weights: by role; 1 where not named; scaled here to sum to 1.
        missing: ``none`` or ``zeros``: what stands for the expert that a modality lacks.
        seed: of random features, where the kernel has them.

    Raises:
        ConfigError: a bad value.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        kernel: KernelFactory = CosineKernel,
        weights: Mapping[str, float] | None = None,
        missing: str = "none",
        seed: int = 0,
    ) -> None:
        super().__init__(inputs=inputs, weights=weights, missing=missing, kernel=kernel, seed=seed)
        total = sum(self.weights.values())
        self.weights = {role: weight / total for role, weight in self.weights.items()}
        self.seed = seed
        self.deterministic = all(isinstance(k, CosineKernel | LinearKernel) for k in self.slots.values())

    @property
    def out_dim(self) -> int:
        """Sum of the dimensions of the parents' maps."""
        return self.width

    def fit(
        self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None
    ) -> AverageKernel:
        """Fit the kernels' bandwidths, where they have any to fit."""
        if any(kernel.needs_fit for kernel in self.slots.values()):
            self.fit_maps(fit_sides(self.inputs, image, text))
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the weighted maps side by side, (batch, out_dim)."""
        return self.stacked(modality, features)

    def kernel(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> Tensor:
        """Return the average of the exact kernels of the parents that both sides have."""
        own = {**_cross(self.inputs), **(self.inputs.experts(modality_a) if modality_a == modality_b else {})}
        values = [self.weights[role] * self.slots[role].kernel(a[role], b[role]) for role in own]
        return torch.stack(values).sum(0)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        kernel = next(iter(self.slots.values())).describe()
        return {
            "method": "average_kernel",
            "dim": self.out_dim,
            **kernel,
            "weights": self.weights,
            "missing": self.missing,
            "seed": self.seed,
        }


class RFFConcatenation(_Stacked):
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
        bandwidth: float | str = "median",
        orthogonal: bool = True,
        weights: Mapping[str, float] | None = None,
        missing: str = "none",
        seed: int = 0,
    ) -> None:
        super().__init__(inputs=inputs, weights=weights, missing=missing)
        check_positive("dim", dim, integer=True)
        self.seed = seed
        self.gaussian = GaussianKernel(
            self.width,
            bandwidth=bandwidth,  # type: ignore[arg-type]
            features=dim,
            orthogonal=orthogonal,
            seed=seed,
        )

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
            self.gaussian.fit(torch.cat([self.stacked(modality, features) for modality, features in given.items()]))
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the random features, (batch, dim)."""
        fused: Tensor = self.gaussian(self.stacked(modality, features))
        return fused

    def kernel(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> Tensor:
        """Return the exact Gaussian kernel on the scaled concatenation."""
        return self.gaussian.kernel(self.stacked(modality_a, a), self.stacked(modality_b, b))

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {
            "method": "rff_concatenation",
            "dim": self.out_dim,
            **self.gaussian.describe(),
            "weights": self.weights,
            "missing": self.missing,
            "seed": self.seed,
        }


class CCA(FusionMethod):
    """Canonical correlation analysis of the cross-modal encoder and its experts (Hotelling 1936).

    The two views are the first parent, and the others side by side; unit features, centred. With S₁₁, S₂₂ their
    covariances and S₁₂ between them, the canonical directions are S₁₁^(-1/2)·U and S₂₂^(-1/2)·V of the singular
    value decomposition S₁₁^(-1/2)·S₁₂·S₂₂^(-1/2) = U·diag(ρ)·Vᵀ. The embedding is the pairs of canonical variates,
    side by side or added (Sun et al., 2005). It encodes the side with experts only.

    Args:
        inputs: dimensions of the parents; two or more on one side.
        dim: total dimension; even, with ``combine="concat"``.
        ridge: share of the mean variance added to every variance, so that S₁₁ and S₂₂ can be inverted.
        combine: ``concat`` (dim / 2 variates of each view) or ``sum`` (dim of each, added).

    Raises:
        ConfigError: a bad value; ``DimensionError`` where there are fewer variates than asked for.
    """

    deterministic = True
    mean: Tensor
    directions: Tensor

    def __init__(self, *, inputs: InputSpec, dim: int, ridge: float = 0.01, combine: str = "concat") -> None:
        super().__init__()
        check_positive("dim", dim, integer=True)
        check_positive("ridge", ridge)
        check_choice("combine", combine, ("concat", "sum"))
        self.inputs, self.dim, self.ridge, self.combine = inputs, dim, float(ridge), combine
        (self._modality,) = expert_modalities(inputs, "CCA", "none")
        roles = {**_cross(inputs), **inputs.experts(self._modality)}
        if len(roles) < 2:
            raise ConfigError(f"CCA needs two parents of one modality, got {roles}")
        self.roles = roles
        self.split = next(iter(roles.values()))
        most = min(self.split, sum(roles.values()) - self.split)
        if combine == "concat" and dim % 2:
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
        self.mean = mean.to(units.dtype)
        self.directions = torch.cat([first @ u[:, :k] * signs, second @ vt.T[:, :k] * signs]).to(units.dtype)
        self.correlations = correlations[:k].to(units.dtype)
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the canonical variates, (batch, dim)."""
        check_choice("modality", modality, self.modalities)
        stacked = torch.cat(list(unit_features(features, self.roles).values()), dim=1)
        if not self.directions.numel():
            raise NotFittedError("CCA has no canonical directions yet; call fit() on training features first")
        x, directions = stacked - self.mean.to(stacked.dtype), self.directions.to(stacked.dtype)
        one, two = x[:, : self.split] @ directions[: self.split], x[:, self.split :] @ directions[self.split :]
        return torch.cat([one, two], dim=1) if self.combine == "concat" else one + two

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {"method": "cca", "dim": self.dim, "ridge": self.ridge, "combine": self.combine}


def _inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    """Return (S + ridge · mean variance · I)^(-1/2)."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = ridge * covariance.diagonal().mean()
    return (vectors * (values.clamp_min(0) + floor).rsqrt()) @ vectors.T


def _cross(inputs: InputSpec) -> dict[str, int]:
    return {} if inputs.cross_modal is None else {CROSS_MODAL: inputs.cross_modal}


def expert_modalities(inputs: InputSpec, method: str, missing: str) -> tuple[Modality, ...]:
    """Return the modalities that a method without symmetrisation can encode.

    Raises:
        ConfigError: there is no expert, or there are experts on both sides and nothing stands for the missing ones.
    """
    sides: tuple[Modality, ...] = tuple(m for m in ("image", "text") if inputs.experts(m))  # type: ignore[misc]
    if not sides:
        raise ConfigError(f"{method} needs an expert beside the cross-modal encoder; choose a pair that has one")
    if missing == "zeros" and inputs.cross_modal is not None:
        return ("image", "text")
    if len(sides) == 2:
        raise ConfigError(
            f"{method} has no common space for image experts {list(inputs.image_experts)} and text experts "
            f"{list(inputs.text_experts)}; use missing=zeros where the method has it, or a pair with one side"
        )
    return sides


def apply_kernel(kernel: Kernel, features: Features, role: str) -> Tensor:
    """Return the kernel's map of one role's features; an error names the role."""
    if role not in features:
        raise DataError(f"features of {role!r} are missing; there are {sorted(features)}")
    try:
        mapped: Tensor = kernel(features[role])
    except DataError as error:
        raise DataError(f"features of {role!r}: {error}") from None
    return mapped


def unit_features(features: Features, roles: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the features of ``roles`` scaled to unit length.

    Raises:
        DataError: a role is missing, has another dimension, or holds NaN, infinity or a zero vector.
    """
    return {role: apply_kernel(CosineKernel(dim), features, role) for role, dim in roles.items()}


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
