"""The training of CLIP-Adapter; apart, because importing Lightning takes seconds.

Its authors point to CoOp's command, whose configuration is: SGD with learning rate 2e-3, momentum 0.9 and weight decay
5e-4, in batches of 32, a first epoch at 1e-5 and then a cosine schedule, for 50 epochs with 1 shot, 100 with 2 to 4,
200 with more. The last epoch is kept. Departure: the shots are fixed features, not augmented anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from krossfuse.core.lightning import pl
from krossfuse.core.seeds import derived_generator
from krossfuse.core.trainers import TrainerFactory
from krossfuse.probes.few_shot.clip_adapter import REDUCTION, adapted
from krossfuse.probes.few_shot.side_by_side import batches, train

BATCH, LR, WARM_UP_LR, MOMENTUM, DECAY = 32, 2e-3, 1e-5, 0.9, 5e-4


def epochs_of(shots: int) -> int:
    """Return the number of epochs.

    >>> [epochs_of(shots) for shots in (1, 2, 4, 8)]
    [50, 100, 100, 200]
    """
    return 50 if shots == 1 else 100 if shots <= 4 else 200


def rate(epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch, from 0, as a share of ``LR``: the cosine starts with the second."""
    return WARM_UP_LR / LR if epoch == 0 else 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


class AdapterTraining(pl.LightningModule):
    """Several adapters, trained side by side: each has its own loss, and SGD is by coordinate.

    Args:
        shots: (P, n, dim) unit embeddings.
        labels: (P, n) int64.
        texts: (P, K, dim) class texts times g.
        down: (P, hidden, dim) first W₁.
        up: (P, dim, hidden) first W₂.
        epochs: in all.
        steps: in all.
    """

    def __init__(
        self, shots: Tensor, labels: Tensor, texts: Tensor, down: Tensor, up: Tensor, *, epochs: int, steps: int
    ) -> None:
        super().__init__()
        self.epochs, self.steps_an_epoch = epochs, steps // epochs
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.shots: Tensor
        self.labels: Tensor
        self.texts: Tensor
        self.register_buffer("shots", shots)
        self.register_buffer("labels", labels)
        self.register_buffer("texts", texts.to(shots))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the sum over the adapters of the mean loss on their own (P, b) rows of the batch."""
        problems = torch.arange(len(batch), device=batch.device)[:, None]
        logits = adapted(self.shots[problems, batch], self.down, self.up) @ self.texts.mT
        losses = cross_entropy(logits.flatten(0, 1), self.labels[problems, batch].flatten(), reduction="none")
        loss: Tensor = losses.view(batch.shape).mean(1).sum()
        return loss

    def configure_optimizers(self) -> Any:
        """Return SGD with the schedule, which changes from epoch to epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(min(step // self.steps_an_epoch, self.epochs - 1), self.epochs)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained_adapters(
    shots: Tensor, labels: Tensor, texts: Tensor, *, n_shots: int, seeds: Sequence[int], trainers: TrainerFactory
) -> tuple[Tensor, Tensor]:
    """Return W₁ (P, hidden, dim) and W₂ (P, dim, hidden) of P adapters of one size.

    Args:
        shots: (P, n, dim) unit embeddings.
        labels: (P, n) int64.
        texts: (P, K, dim) class texts times g.
        n_shots: of a class.
        seeds: of each adapter's first weights and batches: those of the subsets.
        trainers: makes the Trainer.

    Raises:
        ConfigError: the Trainer's options are impossible.
    """
    n, dim = shots.shape[1:]
    hidden, epochs = max(1, dim // REDUCTION), epochs_of(n_shots)
    first = [(_uniform(seed, "down", hidden, dim), _uniform(seed, "up", dim, hidden)) for seed in seeds]
    down, up = (torch.stack(weights).to(shots) for weights in zip(*first, strict=True))
    steps = batches(seeds, "clip_adapter", n, epochs=epochs, size=BATCH)
    module = train(
        lambda count: AdapterTraining(shots, labels, texts, down, up, epochs=epochs, steps=count), steps, trainers
    )
    return module.down.detach().to(shots), module.up.detach().to(shots)


def _uniform(seed: int, name: str, rows: int, columns: int) -> Tensor:
    """Return first weights as torch draws those of a linear layer: uniform within ±1/√columns."""
    drawn = torch.rand(rows, columns, generator=derived_generator(seed, "clip_adapter", name))
    return (2 * drawn - 1) / math.sqrt(columns)
