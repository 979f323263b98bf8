"""Joint random Fourier features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krossfuse.core.errors import DimensionError
from krossfuse.fusion.sketches.base import Sketch


class JointFourierSketch(Sketch):
    """Joint random Fourier features of a product of shift-invariant kernels (section 5; arXiv 2506.08645, section 4).

    Each factor is [cos(ω_iᵀx_i), sin(ω_iᵀx_i)]/√r with the same number r of its own frequencies; the product of the
    unit complex numbers has the phase Σ_i ω_iᵀx_i, so it is a random feature of the product kernel itself, with no
    projection at all. l = 2r. Its pointwise error is √(2·log(2/δ)/r) at most, with probability 1 − δ. O(m·r) a sample.

    Example:
        >>> angles = torch.tensor([[0.3, 1.2]])  # two frequencies' phases, of a factor that is multiplied by itself
        >>> factor = torch.cat([angles.cos(), angles.sin()], 1) / 2**0.5
        >>> joint = JointFourierSketch([4, 4], 4)([factor, factor])
        >>> torch.allclose(joint, torch.cat([(2 * angles).cos(), (2 * angles).sin()], 1) / 2**0.5)
        True

    Raises:
        DimensionError: the factors' dimensions and ``out_dim`` are not one even number.
    """

    name = "joint_fourier"
    fourier = True

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        if len({*dims, out_dim}) > 1 or out_dim % 2:
            raise DimensionError(f"joint Fourier features need one even number of features throughout, got factors of "
                                 f"{list(dims)} and an output of {out_dim}; set kernel.features to the "
                                 f"output's")  # fmt: skip

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the joint features, (n, 2r)."""
        product = torch.complex(*factors[0].chunk(2, 1))
        for factor in factors[1:]:
            product = product * torch.complex(*factor.chunk(2, 1))
        scale = (self.out_dim / 2) ** ((len(factors) - 1) / 2)
        joint: Tensor = torch.cat([product.real, product.imag], 1) * scale
        return joint
