"""Exact alignment: the direct sum of the cross-modal map and a sketch of the product."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from krossfuse.core.errors import DimensionError
from krossfuse.core.parts import Modality
from krossfuse.core.seeds import derive_seed
from krossfuse.fusion.alignments.base import WITHIN, Alignment, Constants
from krossfuse.fusion.factories import SketchFactory, build_sketch
from krossfuse.fusion.sketches import Sketch


class ExactAlignment(Alignment):
    """Direct sum [√C·ψ ; S(ψ ⊗ γ)] for images, [√C·ψ ; 0] for texts: C·k_ψ + k_ψ·k_γ is a sum of two kernels.

    Image-text similarities, and those of the side without experts, are exactly those of the cross-modal map, times C,
    whatever the sketch S does: no zero-shot decision and no ranking can change. With experts on both sides: image
    [√(C_X·C_T)·ψ ; √C_T·S_1(ψ ⊗ γ_X) ; 0], text [√(C_X·C_T)·ψ ; 0 ; √C_X·S_2(ψ ⊗ γ_T)]. Every sketch will do. Of
    ``dim`` the sketches have what the cross-modal map leaves, in halves where both sides have experts.

    With an expert weight a > 0 the expert is multiplied by [√a ; ψ] instead of ψ, so that within a side the kernel is
    C·k_ψ + (a + k_ψ)·k_γ: the sum of the kernels and their product in one. Within the product ψ may have a kernel p of
    its own: C·k_ψ + (a + p)·k_γ, and image-text similarities stay. Section 3 of docs/mathematics.md.

    Example:
        >>> from krossfuse.fusion import InputSpec, RPKrossFuse
        >>> method = RPKrossFuse(inputs=InputSpec(cross_modal=4, image_experts={"e": 3}), dim=9, alignment="exact")
        >>> text = method.encode("text", {"cross_modal": torch.tensor([[3.0, 0.0, 0.0, 4.0]])})
        >>> text[0, :5]  # the cross-modal map, then zeros in the place of the product
        tensor([0.6000, 0.0000, 0.0000, 0.8000, 0.0000])
    """

    name = "exact"
    takes_expert_weight = True
    takes_product_kernel = True

    def build(self, dim: int | None, sketch: SketchFactory) -> None:
        """Make the sketch of each side's product."""
        for side, share in zip(self.parents.sides, self._shares(dim), strict=True):
            factors, seed = self.parents.factors(side), derive_seed(self.seed, "sketch", side)
            self.sketches[side] = build_sketch(sketch, factors, share, seed=seed, constant=self.expert_weight > 0)

    def _shares(self, dim: int | None) -> list[int | None]:
        """Return what ``dim`` leaves for the sketch of each side with experts."""
        sides = len(self.parents.sides)
        if dim is None:
            return [None] * sides
        cross = self.parents.cross_modal.out_dim
        rest = dim - cross
        if rest < sides:
            raise DimensionError(
                f"dim={dim} must be {cross + sides} or more with alignment='exact': the cross-modal map has {cross}, "
                f"and each side with experts takes some; raise dim, or use alignment='offset'"
            )
        return [(rest + sides - 1 - i) // sides for i in range(sides)]

    @property
    def out_dim(self) -> int:
        """Dimensions of the cross-modal map and of the sketches."""
        return self.parents.cross_modal.out_dim + sum(self.sketch(side).out_dim for side in self.sketches)

    def fitted_sketches(self) -> Mapping[Modality, Sketch]:
        """Return each side's sketch."""
        return {side: self.sketch(side) for side in self.parents.sides}

    def factors(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the maps, the cross-modal one within the product with the constant √a in front."""
        cross, *experts = (x for key, x in maps.items() if key != WITHIN)
        first = maps.get(WITHIN, cross)
        if self.expert_weight:
            first = torch.cat([first.new_full((first.shape[0], 1), math.sqrt(self.expert_weight)), first], 1)
        return [first, *experts]

    def encode(self, modality: Modality, maps: Mapping[str, Tensor], constants: Constants) -> Tensor:
        """Return the direct sum."""
        cross = next(iter(maps.values()))
        parts = [cross * math.sqrt(constants["image"] * constants["text"])]
        for side in self.parents.sides:
            sketch = self.sketch(side)
            if side == modality:
                weight = math.sqrt(constants["text" if side == "image" else "image"])
                product = sketch(self.factors(maps))
                parts.append(product if weight == 1 else product * weight)
            else:
                parts.append(cross.new_zeros(cross.shape[0], sketch.out_dim))
        return torch.cat(parts, 1)

    def side_kernel(self, cross: Tensor, expert: Tensor, constant: float, within: Tensor | None = None) -> Tensor:
        """Return C·k_ψ + (a + p)·k_γ, where p is k_ψ unless it is given."""
        if within is not None:
            return constant * cross + (self.expert_weight + within) * expert
        kernel = super().side_kernel(cross, expert, constant)
        return kernel + self.expert_weight * expert if self.expert_weight else kernel
