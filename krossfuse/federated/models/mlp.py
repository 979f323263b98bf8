"""Multi-layer perceptrons and linear heads, by batched matrix products written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.core.seeds import derived_generator
from krossfuse.core.unit import normalised
from krossfuse.federated.models.base import FlatModel


class MLP(FlatModel):
    """Linear layers with ReLU between them; two sizes are a linear head.

    The gradients of K clients are batched matrix products that add to the velocity where it lies (``baddbmm_``), over
    views of the flat vectors: nothing is copied but the batches.

    Args:
        sizes: width of the input, of the hidden layers, and number of classes; (784, 32, 16, 10) is the paper's.
        multilabel: see :class:`FlatModel`.

    Raises:
        ConfigError: fewer than two sizes, or one that is not positive.
    """

    def __init__(self, sizes: Sequence[int], *, multilabel: bool = False) -> None:
        if len(sizes) < 2:
            raise ConfigError(f"sizes={list(sizes)}: an input width and a number of classes are needed")
        for size in sizes:
            check_positive("size", int(size), integer=True)
        self.sizes = tuple(int(size) for size in sizes)
        self.d = sum((a + 1) * b for a, b in pairwise(self.sizes))
        self.classes = self.sizes[-1]
        self.multilabel = multilabel

    def initial(self, seed: int) -> Tensor:
        """Return zeros for a linear head, else PyTorch's default law for linear layers (uniform ±1/√inputs)."""
        if len(self.sizes) == 2:
            return torch.zeros(self.d)
        generator = derived_generator(seed, "model")
        layers = [
            (torch.rand(rows, generator=generator) * 2 - 1) / math.sqrt(a)
            for a, b in pairwise(self.sizes)
            for rows in (a * b, b)
        ]
        return torch.cat(layers)

    def _layers(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return views of (K, d) vectors: (K, out, in) weights and (K, out) biases by layer."""
        out, at = [], 0
        for a, b in pairwise(self.sizes):
            weight = flat[:, at : at + a * b].view(-1, b, a)
            out.append((weight, flat[:, at + a * b : at + (a + 1) * b]))
            at += (a + 1) * b
        return out

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the (n, classes) scores."""
        hidden = x.reshape(len(x), -1)
        layers = self._layers(parameters[None])
        for i, (weight, bias) in enumerate(layers):
            hidden = torch.addmm(bias[0], hidden, weight[0].T)
            if i + 1 < len(layers):
                hidden = hidden.relu_()
        return hidden

    def accumulate(self, parameters: Tensor, velocity: Tensor, x: Tensor, y: Tensor, momentum: float) -> None:
        """See :meth:`FlatModel.accumulate`."""
        hidden = [x.reshape(*x.shape[:2], -1)]
        layers, velocities = self._layers(parameters), self._layers(velocity)
        for i, (weight, bias) in enumerate(layers):
            z = torch.baddbmm(bias[:, None], hidden[-1], weight.transpose(1, 2))
            hidden.append(z.relu_() if i + 1 < len(layers) else z)
        gradient = self.residual(hidden.pop(), y)
        for i in reversed(range(len(layers))):
            weight_velocity, bias_velocity = velocities[i]
            weight_velocity.baddbmm_(gradient.transpose(1, 2), hidden[i], beta=momentum)
            if momentum:
                bias_velocity.mul_(momentum).add_(gradient.sum(1))
            else:
                bias_velocity.copy_(gradient.sum(1))
            if i:
                gradient = torch.bmm(gradient, layers[i][0]).mul_(hidden[i] > 0)


class LinearHead(MLP):
    """A linear classifier on embeddings: d = classes·(dim + 1), from zero.

    Args:
        dim: of the embeddings.
        classes: number of classes.
        multilabel: see :class:`FlatModel`.
    """

    def __init__(self, dim: int, classes: int, *, multilabel: bool = False) -> None:
        super().__init__((dim, classes), multilabel=multilabel)


class UnitHead(LinearHead):
    """A linear classifier on embeddings scaled to norm 1, each by itself: no statistic of anybody's data is needed."""

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the (n, classes) scores."""
        return super().scores(parameters, normalised(x))

    def accumulate(self, parameters: Tensor, velocity: Tensor, x: Tensor, y: Tensor, momentum: float) -> None:
        """See :meth:`FlatModel.accumulate`."""
        super().accumulate(parameters, velocity, normalised(x), y, momentum)
