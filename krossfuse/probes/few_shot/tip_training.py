"""Tip-Adapter-F: the keys of the cache are trained; apart, because importing Lightning takes seconds.

As the paper has it (ε as in its released code): keys start at the shots, values and texts stay, cross-entropy on the
shots, AdamW with learning rate 1e-3 (ε = 1e-4), a cosine schedule, 20 epochs in batches of 256, with α = 1 and β = 5.5;
then α and β are chosen as for Tip-Adapter. Departures: the shots are fixed features, not augmented anew, and the last
epoch is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from krossfuse.core.lightning import pl
from krossfuse.core.trainers import TrainerFactory
from krossfuse.probes.few_shot.side_by_side import batches, train
from krossfuse.probes.few_shot.tip_adapter import activation

EPOCHS, BATCH, LR, EPS = 20, 256, 1e-3, 1e-4
ALPHA, BETA = 1.0, 5.5


class CacheTraining(pl.LightningModule):
    """The keys of several caches of one size, trained side by side: each has its own loss, and AdamW is by coordinate.

    Args:
        shots: (P, n, dim) unit embeddings.
        labels: (P, n) int64.
        texts: (P, n, K) logits of the class texts.
        steps: in all, for the schedule.
    """

    def __init__(self, shots: Tensor, labels: Tensor, texts: Tensor, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.keys = nn.Parameter(shots.clone())
        self.shots: Tensor
        self.labels: Tensor
        self.texts: Tensor
        self.values: Tensor
        self.register_buffer("shots", shots)
        self.register_buffer("labels", labels)
        self.register_buffer("texts", texts.to(shots))
        self.register_buffer("values", one_hot(labels, texts.shape[2]).to(shots))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the sum over the caches of the mean loss on their own (P, b) rows of the batch."""
        caches = torch.arange(len(batch), device=batch.device)[:, None]
        affinity = self.shots[caches, batch] @ self.keys.transpose(1, 2)
        logits = ALPHA * activation(affinity, BETA) @ self.values + self.texts[caches, batch]
        losses = cross_entropy(logits.flatten(0, 1), self.labels[caches, batch].flatten(), reduction="none")
        loss: Tensor = losses.view(batch.shape).mean(1).sum()
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with a cosine schedule, stepped with every batch."""
        optimizer = torch.optim.AdamW([self.keys], lr=LR, eps=EPS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained_keys(
    shots: Tensor, labels: Tensor, texts: Tensor, *, seeds: Sequence[int], trainers: TrainerFactory
) -> Tensor:
    """Return the (P, n, dim) trained keys of P caches of one size; the global random state stays as it was.

    Args:
        shots: (P, n, dim) unit embeddings, where the keys start.
        labels: (P, n) int64.
        texts: (P, n, K) logits of the class texts.
        seeds: of the order of each cache's batches: those of the subsets.
        trainers: makes the Trainer.

    Raises:
        ConfigError: the Trainer's options are impossible.
    """
    steps = batches(seeds, "tip_adapter_f", shots.shape[1], epochs=EPOCHS, size=BATCH)
    module = train(lambda count: CacheTraining(shots, labels, texts, count), steps, trainers)
    return module.keys.detach().to(shots)
