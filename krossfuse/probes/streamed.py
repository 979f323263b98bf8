"""Linear heads that train on a stream: every label set and every setting of SGD in one pass over the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.labels import LabelSet


@dataclass(frozen=True)
class SGDSetting:
    """One setting of SGD, tried for every label set.

    Attributes:
        learning_rate: at the start of the cosine schedule.
        weight_decay: of weights, not of biases.
    """

    learning_rate: float
    weight_decay: float


class StreamedHeads(nn.Module):
    """Linear heads of several label sets under several settings of SGD, all trained on the same batches.

    Each head has its own loss and learns alone; one matrix product serves all of them. It fits any loop over batches
    of embeddings with their labels by label set: ``loss(heads(embeddings), labels)`` is what to minimise, with
    :meth:`optimisers`. A fusion module takes it as one head of several label sets::

        heads = StreamedHeads(module.method.out_dim, info.label_sets, settings)
        module.add_head("sgd", heads, label_set=list(info.label_sets), loss=heads.loss)
        module.train_heads(source, lambda _: heads.optimisers(steps), epochs=epochs)

    Args:
        dim: of the embeddings.
        label_sets: by name, what is predicted (their labels come with the batches).
        settings: each is a head of every label set.
        momentum: of SGD.
        scale: embeddings are multiplied by it, so that learning rates mean the same in every space.
    """

    def __init__(
        self,
        dim: int,
        label_sets: Mapping[str, LabelSet],
        settings: Sequence[SGDSetting],
        *,
        momentum: float = 0.9,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.classes = {name: len(s.classes) for name, s in label_sets.items()}
        self.multilabel = {name: s.multilabel for name, s in label_sets.items()}
        self.settings, self.momentum, self.scale = list(settings), momentum, scale
        sizes = [k for k in self.classes.values() for _ in self.settings]
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(k, dim)) for k in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(k)) for k in sizes)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the scores of all heads, (n, Σ settings·classes), of (n, dim) embeddings: by label set, by setting."""
        x = embeddings.float() * self.scale
        return nn.functional.linear(x, torch.cat(list(self.weights)), torch.cat(list(self.biases)))

    def losses(self, scores: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, by label set, the sum over its heads of their mean loss on a batch.

        Args:
            scores: of :meth:`forward`.
            labels: by label set, (n,) int64 with -1 where an item has none, or (n, classes) bool if multilabel.
        """
        counts = [len(self.settings) * k for k in self.classes.values()]
        losses = {}
        for (name, k), chosen in zip(self.classes.items(), scores.split_with_sizes(counts, 1), strict=True):
            y = labels[name]
            chosen = chosen.view(len(chosen), len(self.settings), k)
            if self.multilabel[name]:
                each = nn.functional.binary_cross_entropy_with_logits(
                    chosen, y[:, None].to(chosen.dtype).expand_as(chosen), reduction="sum"
                )
                losses[name] = each / len(y)
            else:
                each = nn.functional.cross_entropy(
                    chosen.transpose(1, 2), y[:, None].expand(-1, chosen.shape[1]), ignore_index=-1, reduction="sum"
                )
                losses[name] = each / (y >= 0).sum().clamp_min(1)
        return losses

    def loss(self, scores: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the heads' mean losses on a batch, whose gradient trains each alone."""
        total = scores.new_zeros(())
        for loss in self.losses(scores, labels).values():
            total = total + loss
        return total

    def optimisers(self, steps: int) -> dict[str, Any]:
        """Return what ``configure_optimizers`` returns: SGD with a group a head, and one cosine schedule of steps."""
        groups: list[dict[str, Any]] = []
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            setting = self.settings[i % len(self.settings)]
            lr = setting.learning_rate
            groups += [
                {"params": [weight], "lr": lr, "weight_decay": setting.weight_decay},
                {"params": [bias], "lr": lr},
            ]
        optimizer = torch.optim.SGD(groups, momentum=self.momentum)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def fitted(self, label_set: str) -> tuple[Tensor, Tensor]:
        """Return weights (settings, classes, dim) and biases (settings, classes) for embeddings as they are, on CPU."""
        first = list(self.classes).index(label_set) * len(self.settings)
        chosen = slice(first, first + len(self.settings))
        weights = [w.detach().cpu() * self.scale for w in list(self.weights)[chosen]]
        return torch.stack(weights), torch.stack([b.detach().cpu() for b in list(self.biases)[chosen]])
