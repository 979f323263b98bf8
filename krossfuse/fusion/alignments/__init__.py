"""Alignments, one a file: how the embedding of a cross-modal encoder with experts keeps images and texts comparable.

An expert of one modality has no map for the other. An :class:`Alignment` is a map of both modalities whose inner
products are, exactly or in the mean,

    image-image  C_T·k_ψ·(C_X + k_γX)      text-text  C_X·k_ψ·(C_T + k_γT)      image-text  C_X·C_T·k_ψ.

Sections 3 and 4 of docs/mathematics.md. A new alignment is one file here, known by its ``name``, or a class anywhere
(``alignment: {_target_: my_package.MyAlignment, _partial_: true}``).
"""

from krossfuse.fusion.alignments.base import WITHIN, Alignment, AlignmentFactory, Parents
from krossfuse.fusion.alignments.exact import ExactAlignment
from krossfuse.fusion.alignments.offset import OffsetAlignment
from krossfuse.fusion.alignments.published import PublishedAlignment
from krossfuse.fusion.alignments.shared import SharedAlignment

__all__ = [
    "WITHIN",
    "Alignment",
    "AlignmentFactory",
    "ExactAlignment",
    "OffsetAlignment",
    "Parents",
    "PublishedAlignment",
    "SharedAlignment",
]
