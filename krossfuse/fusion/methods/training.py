"""The LightningModule that trains GATE, ATTN and COMM; apart, because importing Lightning takes seconds."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from krossfuse.core.errors import DataError
from krossfuse.core.trainers import TrainerFactory, quiet


class Network(Protocol):
    """What is trained: a module that fuses unit features by role."""

    roles: dict[str, int]

    @property
    def name(self) -> str:
        """Name of the method, in the tracker."""

    @property
    def out_dim(self) -> int:
        """Dimension of the fused embedding."""

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Fuse the unit features of all parents, (batch, out_dim)."""


class FusionTraining(pl.LightningModule):
    """A network that fuses unit features, with a linear head: cross-entropy, AdamW, cosine schedule.

    Logged, where the Trainer has a logger: ``<name>/loss`` of each step and ``<name>/val_accuracy`` of each epoch.

    Args:
        network: its layers are trained in place; an ``nn.Module``.
        classes: of the head.
        lr: peak learning rate.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        dropout: on the unit features.
        steps: optimisation steps in all, for the schedule.
    """

    def __init__(
        self,
        network: Network,
        *,
        classes: int,
        lr: float,
        weight_decay: float,
        label_smoothing: float,
        dropout: float,
        steps: int,
    ) -> None:
        super().__init__()
        assert isinstance(network, nn.Module)
        self.network = network
        self.roles, self.network_name = list(network.roles), network.name
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps
        self.head = nn.Linear(network.out_dim, classes)
        self.drop = nn.Dropout(dropout)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self._correct = self._seen = 0

    def forward(self, batch: list[Tensor]) -> Tensor:
        """Return the head's scores of a batch [unit features of each parent ..., targets]."""
        *units, _ = batch
        fused = self.network.fuse({role: self.drop(x) for role, x in zip(self.roles, units, strict=True)})
        scores: Tensor = self.head(fused)
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss: Tensor = self.loss(self(batch), batch[-1])
        if self.logger is not None:
            self.log(f"{self.network_name}/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's count."""
        self._correct = self._seen = 0

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Count the held-out samples that are right."""
        self._correct += int((self(batch).argmax(1) == batch[-1]).sum())
        self._seen += len(batch[-1])

    def on_validation_epoch_end(self) -> None:
        """Keep the layers of the best epoch, the earliest among equals."""
        accuracy = self._correct / self._seen
        if self.logger is not None:
            self.log(f"{self.network_name}/val_accuracy", accuracy)
        if self.best is None or accuracy > self.best[0]:
            self.best = (accuracy, self.current_epoch, copy.deepcopy(self.network.state_dict()))

    def configure_optimizers(self) -> Any:
        """Return AdamW with a cosine schedule, stepped with every batch."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    network: Network,
    units: dict[str, Tensor],
    targets: Tensor,
    classes: int,
    *,
    trainers: TrainerFactory | None,
    seed: int,
    epochs: int,
    batch_size: int,
    val_fraction: float,
    **recipe: float,
) -> int:
    """Train the layers of ``network`` in place; it stays on its device, and the global random state as it was.

    Args:
        network: to train.
        units: by role, (n, dim) unit features.
        targets: (n,) class numbers from 0.
        classes: number of classes.
        trainers: makes the Trainer, which trains on one device and logs to the run's tracker; None = the device of
            ``targets``, no tracker.
        seed: of everything random.
        epochs: passes over the samples.
        batch_size: samples a step.
        val_fraction: share held out to choose the epoch; 0 = the last.
        recipe: ``lr``, ``weight_decay``, ``label_smoothing`` and ``dropout`` of :class:`FusionTraining`.

    Returns:
        The epoch kept (from 0), or -1 without held-out samples: the last.

    Raises:
        DataError: too few samples to hold any out.
        ConfigError: the Trainer's options are impossible.
    """
    assert isinstance(network, nn.Module)
    device = targets.device
    trainers = trainers or TrainerFactory.on(device)
    generator = torch.Generator().manual_seed(seed)
    data = TensorDataset(*units.values(), targets)
    order = torch.randperm(len(targets), generator=generator)
    held = round(len(targets) * val_fraction)
    if val_fraction and not 0 < held < len(targets):
        raise DataError(f"val_fraction={val_fraction} of {len(targets)} samples leaves nothing to train or to hold out")
    subset = TensorDataset(*(tensor[order[held:].to(tensor.device)] for tensor in data.tensors))
    # Batches are cut by index: a loader that stacks single rows would take longer than the training.
    batches = BatchSampler(RandomSampler(subset, generator=generator), min(batch_size, len(subset)), drop_last=True)
    loader = DataLoader(subset, sampler=batches, batch_size=None)
    validation = None
    if held:
        rest = TensorDataset(*(tensor[order[:held].to(tensor.device)] for tensor in data.tensors))
        validation = DataLoader(rest, sampler=BatchSampler(SequentialSampler(rest), 4096, False), batch_size=None)
    trainer = trainers(log=True, max_epochs=epochs, num_sanity_val_steps=0)
    target = trainer.strategy.root_device
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), quiet():
        torch.manual_seed(seed)
        module = FusionTraining(network, classes=classes, steps=epochs * len(batches), **recipe)
        trainer.fit(module, loader, validation)
    network.to(device).eval()
    if module.best is None:
        return -1
    network.load_state_dict(module.best[2])
    return module.best[1]
