"""Images of one part as the classifiers of few shots read them: each form of them is made once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from krossfuse.core.parts import Part
from krossfuse.probes.rows import check_range, finite_rows, largest, unit_rows
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.zero_shot import ZeroShotHead


def dtype_of(space: EmbeddingSpace, part: Part) -> torch.dtype:
    """Return the precision that heads are fitted in: the embedding's, float32 if that is half."""
    return torch.promote_types(space[part].dtype, torch.float32)


def head_rows(space: EmbeddingSpace, part: Part, rows: Tensor, *, normalise: bool) -> Tensor:
    """Return (n, dim) rows of a part as a linear head reads them.

    Raises:
        DataError: NaN, infinity, a zero vector that is to be scaled, or values whose squares overflow.
    """
    block = space[part][rows].to(dtype_of(space, part))
    if normalise:
        return unit_rows(block, part, dtype=None, rows=rows)
    if len(finite_rows(block, part, rows=rows)):
        way_out = "scale the embeddings, or say normalise=true"
        check_range(largest(block), (1, block.shape[1]), block.dtype, part, way_out=way_out)
    return block


class Images:
    """Some images of a part.

    Args:
        space: the embedding.
        part: of the images.
        rows: (n,) int64.
        normalise: whether linear heads read them scaled to norm 1.
    """

    def __init__(self, space: EmbeddingSpace, part: Part, rows: Tensor, *, normalise: bool) -> None:
        self._space, self._part, self.rows, self._normalise = space, part, rows, normalise
        self._text_scores: dict[int, Tensor] = {}

    @cached_property
    def for_heads(self) -> Tensor:
        """(n, dim) as linear heads read them."""
        return head_rows(self._space, self._part, self.rows, normalise=self._normalise)

    @cached_property
    def unit(self) -> Tensor:
        """(n, dim) scaled to norm 1."""
        return self.for_heads if self._normalise else head_rows(self._space, self._part, self.rows, normalise=True)

    def text_scores(self, texts: ZeroShotHead) -> Tensor:
        """Return the (n, K) float64 kernel between the images, as they are, and the class texts: C·k_ψ if exact."""
        if id(texts) not in self._text_scores:
            own = finite_rows(self._space[self._part][self.rows], self._part, rows=self.rows)
            self._text_scores[id(texts)] = own.to(texts.weight) @ texts.weight.T
        return self._text_scores[id(texts)]
