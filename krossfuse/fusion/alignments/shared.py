"""Alignments that sketch all parents at once, with a constant in the place of an expert that sees nothing."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from krossfuse.core.errors import ConfigError
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.core.seeds import derive_seed
from krossfuse.fusion.alignments.base import Alignment, Constants
from krossfuse.fusion.factories import SketchFactory
from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.sketches import RandomSketch


class SharedAlignment(Alignment):
    """One random sketch of the product of all parents; an expert's projection has √C times a constant added to it.

    For the modality that the expert does not see, the constant stands alone, so that the product of projections is an
    unbiased sketch of √C·ψ there. It needs a sketch that projects each factor linearly
    (:class:`~krossfuse.fusion.sketches.RandomSketch`). What a subclass gives is the constant.
    """

    widening: ClassVar[int] = 1
    """How many times as wide as the expert's map the sketch's factor is."""

    def build(self, dim: int | None, sketch: SketchFactory) -> None:
        """Make the sketch and the constants."""
        self.check_parents()
        experts = [kernel for side in self.parents.sides for kernel in self.parents.of(side)]
        seed = derive_seed(self.seed, "sketch")
        widths = [self.parents.cross_modal.out_dim, *(kernel.out_dim * self.widening for kernel in experts)]
        built = sketch(widths, math.prod(widths) if dim is None else dim, seed=seed)
        if not isinstance(built, RandomSketch):
            raise ConfigError(
                f"sketch={getattr(built, 'name', built)!r} has no linear projection of one factor, which alignment="
                f"{self.name!r} needs; use alignment='exact'"
            )
        self.sketches["shared"] = built
        factor = 1
        for side in self.parents.sides:
            kernels = self.parents.of(side)
            self.register_buffer(f"constant_{side}", self.constant(built, factor, kernels))
            factor += len(kernels)

    def check_parents(self) -> None:
        """Check that the alignment suits the parents.

        Raises:
            ConfigError: it does not.
        """

    @abstractmethod
    def constant(self, sketch: RandomSketch, factor: int, experts: list[Kernel]) -> Tensor:
        """Return what √C is multiplied by, for a side whose experts are the sketch's factors from ``factor`` on."""

    @property
    def out_dim(self) -> int:
        """That of the sketch."""
        return self.sketch("shared").out_dim

    def encode(self, modality: Modality, maps: Mapping[str, Tensor], constants: Constants) -> Tensor:
        """Return the sketch of the product, constants in the place of what the modality lacks."""
        sketch = self.sketch("shared")
        assert isinstance(sketch, RandomSketch)
        projections, factor = [sketch.project(0, maps[CROSS_MODAL])], 1
        for side, experts in self.parents.experts.items():
            constant = self.get_buffer(f"constant_{side}") * math.sqrt(constants[side])
            roles = list(experts)
            if side != modality:
                projections.append(constant)
            elif len(roles) == 1:
                projections.append(sketch.project(factor, maps[roles[0]], constant))
            else:
                several = [sketch.project(factor + i, maps[role]) for i, role in enumerate(roles)]
                projections.append(sketch.multiply(several) + constant)
            factor += len(roles)
        return sketch.finish(sketch.multiply(projections))
