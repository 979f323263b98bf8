"""The LightningModule that trains GATE, ATTN and COMM; apart, because importing Lightning takes seconds."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from krossfuse.core.errors import DataError
from krossfuse.fusion.trained import TrainedFusion


class FusionTraining(pl.LightningModule):
    """A trained fusion method with its linear head: cross-entropy, AdamW, cosine schedule.

    Args:
        method: its layers are trained in place.
        classes: of the head.
        lr: peak learning rate.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        dropout: on the unit features.
        steps: optimisation steps in all, for the schedule.
    """

    def __init__(
        self,
        method: TrainedFusion,
        *,
        classes: int,
        lr: float,
        weight_decay: float,
        label_smoothing: float,
        dropout: float,
        steps: int,
    ) -> None:
        super().__init__()
        self.method = method
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps
        self.head = nn.Linear(method.out_dim, classes)
        self.drop = nn.Dropout(dropout)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self._correct = self._seen = 0

    def forward(self, batch: list[Tensor]) -> Tensor:
        """Return the head's scores of a batch [unit features of each parent ..., targets]."""
        *units, _ = batch
        fused = self.method.fuse({role: self.drop(x) for role, x in zip(self.method.roles, units, strict=True)})
        scores: Tensor = self.head(fused)
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss: Tensor = self.loss(self(batch), batch[-1])
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
        if self.best is None or accuracy > self.best[0]:
            self.best = (accuracy, self.current_epoch, copy.deepcopy(self.method.state_dict()))

    def configure_optimizers(self) -> Any:
        """Return AdamW with a cosine schedule, stepped with every batch."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    method: TrainedFusion,
    units: dict[str, Tensor],
    targets: Tensor,
    classes: int,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    val_fraction: float,
    **recipe: float,
) -> int:
    """Train the layers of ``method`` in place, on its device; the global random state is left as it was.

    Args:
        method: to train.
        units: by role, (n, dim) unit features.
        targets: (n,) class numbers from 0.
        classes: number of classes.
        seed: of everything random.
        epochs: passes over the samples.
        batch_size: samples a step.
        val_fraction: share held out to choose the epoch; 0 = the last.
        recipe: ``lr``, ``weight_decay``, ``label_smoothing`` and ``dropout`` of :class:`FusionTraining`.

    Returns:
        The epoch kept (from 0), or -1 without held-out samples: the last.

    Raises:
        DataError: too few samples to hold any out.
    """
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
    device = targets.device
    cuda = [device] if device.type == "cuda" else []
    loud = logging.getLogger("pytorch_lightning").level
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=cuda), warnings.catch_warnings():
            torch.manual_seed(seed)
            # Lightning advises loader workers, which in-memory tensors have no use for.
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            module = FusionTraining(method, classes=classes, steps=epochs * len(batches), **recipe)
            trainer = pl.Trainer(
                accelerator="gpu" if cuda else "cpu",
                devices=[device.index or 0] if cuda else 1,
                max_epochs=epochs,
                num_sanity_val_steps=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, loader, validation)
    finally:
        logging.getLogger("pytorch_lightning").setLevel(loud)
    method.to(device).eval()
    if module.best is None:
        return -1
    method.load_state_dict(module.best[2])
    return module.best[1]
