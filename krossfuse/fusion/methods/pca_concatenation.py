"""PCA of the concatenation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import DimensionError, NotFittedError, check_positive
from krossfuse.core.parts import Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec
from krossfuse.fusion.methods.concatenation import Concatenation
from krossfuse.fusion.methods.features import fit_sides, sides_with_experts
from krossfuse.fusion.methods.principal import check_samples, principal_axes


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

    name = "pca_concatenation"
    title = "PCA of concatenation"
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

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check that there are as many samples as components; see :meth:`FusionMethod.check_rows`."""
        if all(side in rows for side in sides_with_experts(self.inputs)):
            samples = sum(rows[side] for side in sides_with_experts(self.inputs))
            check_samples(samples, self.dim, centre=self.stack.missing == "none")

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
        return {**self.stack.describe(), "method": self.name, "title": self.title, "dim": self.dim}
