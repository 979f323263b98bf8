"""Constant offset: the unit of the sketch's product in the place of an expert that sees nothing."""

from __future__ import annotations

from torch import Tensor

from krossfuse.fusion.alignments.shared import SharedAlignment
from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.sketches import RandomSketch


class OffsetAlignment(SharedAlignment):
    """The expert's projection plus √C times the sketch's unit, in place of the symmetrisation's random constant.

    With U_2φ + √C·1 for images and √C·1 for texts the kernels are those of the symmetrised form in the mean, because
    E[U_2] = 0, with less noise between images and texts. Section 4 of docs/mathematics.md.
    """

    name = "offset"

    def constant(self, sketch: RandomSketch, factor: int, experts: list[Kernel]) -> Tensor:
        """Return the product of the experts' units."""
        return sketch.multiply([sketch.unit(factor + i) for i in range(len(experts))])
