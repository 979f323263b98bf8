"""The published form: the symmetrised expert, folded so that it is never built."""

from __future__ import annotations

import math

from torch import Tensor

from krossfuse.core.errors import ConfigError
from krossfuse.fusion.alignments.shared import SharedAlignment
from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.sketches import RandomSketch


class PublishedAlignment(SharedAlignment):
    """Sketch of ψ ⊗ γ̃ (arXiv 2506.08645, algorithms 1 and 2), γ̃ the symmetrised expert of 2d dimensions

        γ̃_X = (1/√2)·[√(C/d)·1 + γ ; √(C/d)·1 − γ]        γ̃_T = √(C/2d)·1.

    With U = [A B] the expert's factor of the sketch, Uγ̃_X = c + Wγ and Uγ̃_T = c, where W = (A − B)/√2 and
    c = √(C/2d)·(A + B)·1: half the work, the same numbers, and the 2d-wide vector is never built. Unbiased. Section 4
    of docs/mathematics.md.
    """

    name = "published"
    widening = 2

    def check_parents(self) -> None:
        """Refuse several experts on one side, whose product has no symmetrised form."""
        for side in self.parents.sides:
            if len(self.parents.of(side)) > 1:
                raise ConfigError(
                    f"alignment='published' symmetrises one expert a side, and the pair has several on the {side} "
                    f"side, {list(self.parents.experts[side])}; use alignment='exact' or 'offset'"
                )

    def constant(self, sketch: RandomSketch, factor: int, experts: list[Kernel]) -> Tensor:
        """Fold the symmetrisation into the sketch; return c / √C."""
        return sketch.mirror(factor) / math.sqrt(2 * experts[0].out_dim)
