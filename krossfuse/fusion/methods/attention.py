"""ATTN: self-attention over the projected parents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.methods.trained import TrainedFusion, start_at_components, start_at_zero


class Attention(TrainedFusion):
    """ATTN: the projected parents are tokens of one self-attention layer; the embedding is their mean, of unit length.

    A pre-norm block: x + MultiHead(LN(x)), with an identity embedding added to each token so that the layer can
    tell the parents apart. It starts with projections at the principal components of the parents' concatenation, and
    with the attention's output and the identities at zero.

    Args:
        heads: attention heads; they divide ``dim``.
        recipe: see :class:`TrainedFusion`.
    """

    name = "attn"
    title = "ATTN"

    def __init__(self, *, inputs: InputSpec, dim: int = 512, heads: int = 4, **recipe: Any) -> None:
        check_positive("heads", heads, integer=True)
        check_positive("dim", dim, integer=True)
        if dim % heads:
            raise ConfigError(f"dim={dim} must be divisible by heads={heads}")
        self.__dict__["heads"] = heads  # build() runs inside nn.Module's own initialisation
        super().__init__(inputs=inputs, dim=dim, **recipe)

    def build(self) -> None:
        """Make the projections, the attention and its norm."""
        self.project = nn.ModuleList(nn.Linear(d, self.dim, bias=False) for d in self.roles.values())
        self.identity = nn.Parameter(torch.zeros(len(self.roles), self.dim))
        self.norm = nn.LayerNorm(self.dim)
        self.attention = nn.MultiheadAttention(self.dim, self.heads, batch_first=True)

    def start(self, centred: dict[str, Tensor]) -> None:
        """Start at the principal components, with nothing attended to."""
        start_at_components(list(self.project), list(centred.values()))  # type: ignore[arg-type]
        start_at_zero(self.attention.out_proj)

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Return the mean of the attended tokens, of unit length."""
        projected = [layer(x) for layer, x in zip(self.project, self.centred(units).values(), strict=True)]
        tokens = torch.stack(projected, dim=1) + self.identity
        normed = self.norm(tokens)
        attended = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return nn.functional.normalize(attended.mean(1), dim=1)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**super().describe(), "heads": self.heads}
