"""A model as one flat vector of parameters, trained at many clients at once."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from krossfuse.core.blocks import blocks


class FlatModel(ABC):
    """A classifier whose parameters are ONE vector of d numbers, in the order of ``nn.Module.parameters()``.

    Attributes:
        d: number of parameters.
        classes: number of outputs.
        multilabel: whether labels are (n, classes) bool with the binary cross-entropy summed over classes, instead of
            (n,) classes with the cross-entropy.
    """

    d: int
    classes: int
    multilabel: bool = False

    @abstractmethod
    def initial(self, seed: int) -> Tensor:
        """Return the (d,) float32 parameters to start from."""

    @abstractmethod
    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the (n, classes) scores of (n, ...) inputs under (d,) parameters."""

    @abstractmethod
    def accumulate(self, parameters: Tensor, velocity: Tensor, x: Tensor, y: Tensor, momentum: float) -> None:
        """Replace every client's velocity by ``momentum·velocity + gradient`` of its batch's mean loss, in place.

        Args:
            parameters: (K, d), a client each.
            velocity: (K, d).
            x: (K, B, ...) batches.
            y: (K, B) int64, or (K, B, classes) bool.
            momentum: factor of the old velocity; 0 replaces it.
        """

    def loss(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of (n, classes) scores."""
        if self.multilabel:
            return functional.binary_cross_entropy_with_logits(scores, y.to(scores.dtype), reduction="sum") / len(y)
        return functional.cross_entropy(scores, y)

    def residual(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of every client's mean loss by its (K, B, classes) scores."""
        if self.multilabel:
            out = torch.sigmoid(scores) - y.to(scores.dtype)
        else:
            out = torch.softmax(scores, -1)
            out.scatter_add_(-1, y[..., None], out.new_full((1,), -1.0).expand(*y.shape, 1))
        return out.div_(scores.shape[1])

    @torch.no_grad()
    def evaluate(self, parameters: Tensor, x: Tensor, y: Tensor, *, size: int = 8192) -> dict[str, float]:
        """Return accuracy (for multilabel, of the single decisions) and mean loss on (n, ...) inputs, in blocks."""
        right = total = 0.0
        for block in blocks(len(y), size):
            scores, labels = self.scores(parameters, x[block].float()), y[block]
            total += float(self.loss(scores, labels)) * len(labels)
            if self.multilabel:
                right += float(((scores > 0) == labels).double().mean(1).sum())
            else:
                right += float((scores.argmax(1) == labels).sum())
        return {"accuracy": right / len(y), "loss": total / len(y)}
