"""Random Fourier features of the concatenation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from krossfuse.core.errors import check_positive
from krossfuse.core.parts import Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec
from krossfuse.fusion.kernels import GaussianKernel
from krossfuse.fusion.methods.concatenation import Concatenation
from krossfuse.fusion.methods.features import fit_sides, sides_with_experts


class RFFConcatenation(FusionMethod):
    """Random Fourier features of the scaled concatenation: a Gaussian kernel on [√w_1 φ_1 ; √w_2 φ_2 ; ...].

    One Gaussian on the scaled concatenation is the product of Gaussians of the parents (docs/mathematics.md,
    section 5). With ``missing="zeros"`` the expert's factor between an image and a text is the constant
    exp(−w‖φ‖²/2σ²), so the order of image-text similarities is the cross-modal encoder's, in the mean over draws.

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

    name = "rff_concatenation"
    title = "RFF of concatenation"

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

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check that there are two samples, where the bandwidth awaits them; see :meth:`FusionMethod.check_rows`."""
        if all(side in rows for side in sides_with_experts(self.inputs)):
            self.gaussian.check_rows(sum(rows[side] for side in sides_with_experts(self.inputs)))

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
        described = {"method": self.name, "title": self.title, "dim": self.out_dim, "seed": self.seed}
        return {**self.stack.describe(), **described, **self.gaussian.describe()}
