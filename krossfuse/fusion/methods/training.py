"""The LightningModule that trains GATE, ATTN and COMM; apart, because importing Lightning takes seconds."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from krossfuse.core.errors import DataError
from krossfuse.core.lightning import pl
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
    """A network that fuses unit features, with a linear head from zero: cross-entropy, AdamW, cosine schedule.

    Logged, where the Trainer has a logger: ``<name>/loss`` of each step and ``<name>/val_accuracy`` of each epoch.

    Args:
        network: its layers are trained in place; an ``nn.Module``.
        classes: of the head.
        lr: peak learning rate.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        dropout: on the unit features.
        logit_scale: what the head's scores are multiplied by.
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
        logit_scale: float,
        steps: int,
    ) -> None:
        super().__init__()
        assert isinstance(network, nn.Module)
        self.network = network
        self.roles, self.network_name = list(network.roles), network.name
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps
        self.head = nn.Linear(network.out_dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.logit_scale = logit_scale
        self.drop = nn.Dropout(dropout)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self._best: tuple[float, float] | None = None
        self.best_epoch = -1
        self._correct, self._seen, self._loss = 0, 0, 0.0

    def forward(self, batch: list[Tensor]) -> Tensor:
        """Return the head's scores of a batch [unit features of each parent ..., targets]."""
        *units, _ = batch
        fused = self.network.fuse({role: self.drop(x) for role, x in zip(self.roles, units, strict=True)})
        scores: Tensor = self.logit_scale * self.head(fused)
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss: Tensor = self.loss(self(batch), batch[-1])
        if self.logger is not None:
            self.log(f"{self.network_name}/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's count."""
        self._correct, self._seen, self._loss = 0, 0, 0.0

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Count the held-out samples that are right, and add up their losses."""
        scores = self(batch)
        self._correct += int((scores.argmax(1) == batch[-1]).sum())
        self._seen += len(batch[-1])
        self._loss += float(nn.functional.cross_entropy(scores.float(), batch[-1], reduction="sum"))

    def on_validation_epoch_end(self) -> None:
        """Note the best epoch: by accuracy, then by loss, the earliest among equals."""
        accuracy = self._correct / self._seen
        if self.logger is not None:
            self.log(f"{self.network_name}/val_accuracy", accuracy)
        score = (accuracy, -self._loss)
        if self._best is None or score > self._best:
            self._best, self.best_epoch = score, self.current_epoch

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
        val_fraction: share held out to choose at which epoch to stop training on all samples, from the same start and
            on the same schedule; 0 = at the last.
        recipe: ``lr``, ``weight_decay``, ``label_smoothing``, ``dropout`` and ``logit_scale`` of
            :class:`FusionTraining`.

    Returns:
        The last epoch trained (from 0), or -1 without held-out samples.

    Raises:
        DataError: too few samples to hold any out.
        ConfigError: the Trainer's options are impossible.
    """
    assert isinstance(network, nn.Module)
    data = TensorDataset(*units.values(), targets)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    held = round(len(targets) * val_fraction)
    if val_fraction and not 0 < held < len(targets):
        raise DataError(f"val_fraction={val_fraction} of {len(targets)} samples leaves nothing to train or to hold out")

    def rows(chosen: Tensor) -> TensorDataset:
        return TensorDataset(*(tensor[chosen.to(tensor.device)] for tensor in data.tensors))

    def run(training: TensorDataset, validation: TensorDataset | None, until: int, *, log: bool) -> FusionTraining:
        return _run(
            network,
            training,
            validation,
            trainers=trainers or TrainerFactory.on(targets.device),
            log=log,
            seed=seed,
            classes=classes,
            epochs=epochs,
            until=until,
            batch_size=batch_size,
            **recipe,
        )

    best = -1
    if held:
        start = copy.deepcopy(network.state_dict())
        best = run(rows(order[held:]), rows(order[:held]), epochs, log=True).best_epoch
        network.load_state_dict(start)
    # One curve in the tracker: that of the run with held-out samples, where there is one.
    run(rows(order), None, best + 1 or epochs, log=not held)
    network.to(targets.device).eval()
    return best


def _run(
    network: Network,
    training: TensorDataset,
    validation: TensorDataset | None,
    *,
    trainers: TrainerFactory,
    log: bool,
    seed: int,
    epochs: int,
    until: int,
    batch_size: int,
    **recipe: Any,
) -> FusionTraining:
    """Train on a schedule of ``epochs`` for the first ``until`` of them."""
    generator = torch.Generator().manual_seed(seed)
    # Batches are cut by index: a loader that stacks single rows would take longer than the training.
    sampler = RandomSampler(training, generator=generator)
    batches = BatchSampler(sampler, min(batch_size, len(training)), drop_last=True)
    loader = DataLoader(training, sampler=batches, batch_size=None)
    held_out = None
    if validation is not None:
        sequence = BatchSampler(SequentialSampler(validation), 4096, False)
        held_out = DataLoader(validation, sampler=sequence, batch_size=None)
    trainer = trainers(log=log, max_epochs=until, num_sanity_val_steps=0)
    target = trainer.strategy.root_device
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), quiet():
        torch.manual_seed(seed)
        module = FusionTraining(network, steps=epochs * len(batches), **recipe)
        trainer.fit(module, loader, held_out)
    return module
