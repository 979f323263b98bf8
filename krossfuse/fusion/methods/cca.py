"""Canonical correlation analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.parts import Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec, expert_modalities
from krossfuse.fusion.methods.features import cross_modal_role, fit_sides, unit_features


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

    name = "cca"
    title = "CCA"
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
        roles = {**cross_modal_role(inputs), **inputs.experts(self._modality)}
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

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check that there are more samples than variates; see :meth:`FusionMethod.check_rows`."""
        if self._modality in rows and rows[self._modality] <= self.variates:
            raise DataError(
                f"{self.variates} canonical variates need more than {self.variates} fit samples, got "
                f"{rows[self._modality]}; give more samples or lower dim"
            )

    def fit(self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None) -> CCA:
        """Fit the canonical directions, in float64.

        Raises:
            DataError: the features are missing, or fewer samples than variates.
        """
        features = fit_sides(self.inputs, image, text)[self._modality]
        units = torch.cat(list(unit_features(features, self.roles, self.mean).values()), dim=1)
        n, k = len(units), self.variates
        self.check_rows({self._modality: n})
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
        stacked = torch.cat(list(unit_features(features, self.roles, self.mean).values()), dim=1)
        if not self.directions.numel():
            raise NotFittedError("CCA has no canonical directions yet; call fit() on training features first")
        first, second = self.directions[: self.split], self.directions[self.split :]
        x = stacked - self.mean
        one, two = x[:, : self.split] @ first, x[:, self.split :] @ second
        return torch.cat([one, two], dim=1) if self.combine == "concat" else one + two

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        described = {"method": self.name, "title": self.title, "dim": self.dim}
        return {**described, "ridge": self.ridge, "combine": self.combine}


def _inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    """Return (S + ridge · mean variance · I)^(-1/2)."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = ridge * covariance.diagonal().mean()
    root: Tensor = (vectors * (values.clamp_min(0) + floor).rsqrt()) @ vectors.T
    return root
