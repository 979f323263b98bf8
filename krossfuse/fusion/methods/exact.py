"""KrossFuse without error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from krossfuse.core.errors import ConfigError, NotFittedError, check_positive
from krossfuse.core.parts import Modality
from krossfuse.fusion.alignments import ExactAlignment
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.factories import KernelFactory
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods.fit_span import FitSpan
from krossfuse.fusion.methods.rp_krossfuse import RPKrossFuse
from krossfuse.fusion.sketches import KroneckerSketch, Sketch


class ExactKrossFuse(RPKrossFuse):
    """KrossFuse itself: the kernel of section 3 without error.

    Its feature map is the direct sum [√C·ψ ; ψ ⊗ γ], text [√C·ψ ; 0]: the kernel of the symmetrised form ψ ⊗ γ̃, in
    d_ψ(1 + d_γ) dimensions rather than 2·d_ψ·d_γ. Where these are more than ``max_dim``, the product is written in the
    span of the fit set (:class:`FitSpan`), one dimension a fit sample: exact between any sample and a fit sample, and
    between images and texts. :func:`gram` gives the kernel between any samples in blocks.

    Args:
        inputs: dimensions of the pair: a cross-modal encoder and one expert at least.
        C: constant of the image experts, and of the text experts where C_text is null; or a rule, see
            :class:`RPKrossFuse`.
        C_text: constant of the text experts, for a pair that has experts on both sides; null: C.
        expert_weight: a, weight of the experts' own kernel, see :class:`RPKrossFuse`.
        kernel: of every parent.
        expert_kernel: of the experts, where they need another; null: ``kernel``.
        product_kernel: of the cross-modal features within the product, where that is another; null: ``kernel``.
        explicit: build the map. False: no embedding, only :meth:`kernel`.
        max_dim: largest product that is written in its own coordinates.
        seed: of random features, where the kernel has them.

    Raises:
        ConfigError: a bad value.
    """

    name = "exact_krossfuse"
    title = "KrossFuse, no sketch"

    def __init__(
        self,
        *,
        inputs: InputSpec,
        C: float | str = 1.0,
        C_text: float | None = None,
        expert_weight: float | str = 0.0,
        kernel: KernelFactory = CosineKernel,
        expert_kernel: KernelFactory | None = None,
        product_kernel: KernelFactory | None = None,
        explicit: bool = True,
        max_dim: int = 65_536,
        seed: int = 0,
    ) -> None:
        check_positive("max_dim", max_dim, integer=True)
        super().__init__(
            inputs=inputs,
            dim=None,
            C=C,
            C_text=C_text,
            expert_weight=expert_weight,
            alignment=ExactAlignment,
            kernel=kernel,
            expert_kernel=expert_kernel,
            product_kernel=product_kernel,
            sketch=partial(_whole_product, max_dim=max_dim if explicit else None),
            seed=seed,
        )
        self.explicit, self.max_dim = explicit, max_dim

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        if not self.explicit:
            raise ConfigError("explicit=False builds no map: use kernel() or gram(), or set explicit=True")
        unfitted = [s.name for s in self.sketches.values() if s.needs_fit and not s.out_dim]
        if unfitted:
            raise NotFittedError(
                f"the whole product has more than max_dim={self.max_dim} dimensions and is written in the span of the "
                f"training samples: call fit first, or raise max_dim"
            )
        return super()._encode(modality, maps)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**super().describe(), "explicit": self.explicit}


def _whole_product(dims: Sequence[int], out_dim: int, *, max_dim: int | None, seed: int) -> Sketch:
    """Return the product itself, or what writes it in the span of the fit set where it is too large."""
    large = max_dim is not None and math.prod(dims) > max_dim
    return (FitSpan if large else KroneckerSketch)(dims, out_dim, seed=seed)
