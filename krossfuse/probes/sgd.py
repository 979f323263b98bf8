"""SGD probe: linear heads trained by Lightning, for embeddings that only stream."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.core.parts import TEST, VAL, Modality, Part
from krossfuse.probes.base import EmbeddingSpace
from krossfuse.probes.linear import (
    HeadProbe,
    LinearHead,
    all_rows,
    check_grid,
    item_labels,
    select,
    selection_parts,
)
from krossfuse.probes.solvers import Target

_SCALE_ROWS = 4096


class StreamedHeads(pl.LightningModule):
    """Linear heads of several label sets under several settings of SGD, all trained on the same batches.

    Each head has its own loss and learns alone; one matrix product serves all of them. Batches are
    ``(embeddings, [labels of each target])``.

    Args:
        dim: of the embeddings.
        targets: the label sets (their labels come with the batches).
        settings: (learning rate, weight decay) of each head of a label set.
        steps: of the cosine schedule.
        momentum: of SGD.
    """

    def __init__(
        self,
        dim: int,
        targets: Sequence[Target],
        settings: Sequence[tuple[float, float]],
        *,
        steps: int,
        momentum: float,
    ) -> None:
        super().__init__()
        self.targets, self.settings, self.steps, self.momentum = targets, settings, steps, momentum
        sizes = [(len(settings), target.n_classes) for target in targets]
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(k, dim)) for h, k in sizes for _ in range(h))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(k)) for h, k in sizes for _ in range(h))

    def training_step(self, batch: tuple[Tensor, list[Tensor]]) -> Tensor:
        """Return the sum of the heads' mean losses on a batch."""
        x, labels = batch
        scores = nn.functional.linear(x, torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        counts = [len(self.settings) * target.n_classes for target in self.targets]
        loss = x.new_zeros(())
        for target, own, y in zip(self.targets, scores.split_with_sizes(counts, 1), labels, strict=True):
            own = own.view(len(own), len(self.settings), target.n_classes)
            if target.multilabel:
                each = nn.functional.binary_cross_entropy_with_logits(
                    own, y[:, None].to(own.dtype).expand_as(own), reduction="sum"
                )
                loss = loss + each / len(y)
            else:
                each = nn.functional.cross_entropy(
                    own.transpose(1, 2), y[:, None].expand(-1, own.shape[1]), ignore_index=-1, reduction="sum"
                )
                loss = loss + each / (y >= 0).sum().clamp_min(1)
        return loss

    def configure_optimizers(self) -> Any:
        """SGD with a group a head, weights decayed and biases not, and one cosine schedule for all."""
        groups: list[dict[str, Any]] = []
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            lr, decay = self.settings[i % len(self.settings)]
            groups += [{"params": [weight], "lr": lr, "weight_decay": decay}, {"params": [bias], "lr": lr}]
        optimizer = torch.optim.SGD(groups, momentum=self.momentum)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Items(Dataset[tuple[Tensor, list[Tensor]]]):
    def __init__(self, x: Tensor, labels: Sequence[Tensor], scale: float) -> None:
        self.x, self.labels, self.scale = x, labels, scale

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.x[rows].float() * self.scale, [y[rows] for y in self.labels]


class _Batches(Sampler[Tensor]):
    """Shuffled batches of row indices, ascending within a batch (kind to a memory map); each epoch another order."""

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.size = n, size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in torch.split(torch.randperm(self.n, generator=self.generator), self.size):
            yield batch.sort().values

    def __len__(self) -> int:
        return math.ceil(self.n / self.size)


class SGDProbe(HeadProbe):
    """Linear heads trained by SGD with momentum and a cosine schedule, as in DINOv2's evaluation.

    Every pair of learning rate and weight decay is a head, and so is every label set; all of them train on the same
    pass over the data, which is read once an epoch. The pair that is most accurate on the validation split is tested
    (multilabel: of the highest mean average precision); there is no refit. Weights start at zero; the seed orders the
    batches. Embeddings are divided by the root of their mean squared norm, so that learning rates and weight decays
    mean the same in every space. Figures and heads: see :class:`~krossfuse.probes.linear.HeadProbe`.

    Args:
        learning_rates: each is tried.
        weight_decays: each is tried with each learning rate; zero is allowed.
        momentum: in [0, 1).
        epochs: passes over the training items.
        batch_size: items in a batch.
        label_sets: names, or None for all.
        modalities: of the items that are probed, where the space has them with labels.
        split: the split that is tested.
        extra_splits: further splits on which the same heads are tested.
        accelerator: of Lightning's Trainer: ``"auto"``, ``"cpu"``, ``"gpu"``, ...
    """

    name = "sgd_probe"

    def __init__(
        self,
        *,
        learning_rates: Sequence[float] = (0.3, 1.0, 3.0, 10.0, 30.0),
        weight_decays: Sequence[float] = (0.0, 1e-5, 1e-4),
        momentum: float = 0.9,
        epochs: int = 20,
        batch_size: int = 256,
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image", "text"),
        split: str = TEST,
        extra_splits: Sequence[str] = (),
        accelerator: str = "auto",
    ) -> None:
        super().__init__(label_sets=label_sets, modalities=modalities, split=split, extra_splits=extra_splits)
        self.learning_rates = check_grid("learning_rates", learning_rates)
        if not len(weight_decays) or not all(isinstance(w, int | float) and 0 <= w < 1 for w in weight_decays):
            raise ConfigError(f"weight_decays={weight_decays!r} must be a list of numbers in [0, 1) that is not empty")
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum={momentum!r} must lie in [0, 1)")
        check_positive("epochs", epochs, integer=True)
        check_positive("batch_size", batch_size, integer=True)
        self.weight_decays = sorted({float(w) for w in weight_decays})
        self.momentum, self.epochs, self.batch_size, self.accelerator = momentum, epochs, batch_size, accelerator

    def _protocol(self) -> dict[str, Any]:
        return {
            "classifier": "linear, SGD",
            "learning_rates": self.learning_rates,
            "weight_decays": self.weight_decays,
            "momentum": self.momentum,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "schedule": "cosine",
            "selection": "val",
            "refit": "",
        }

    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        train, _ = selection_parts(space, modality, names, required=True)
        x = space[train]
        sets = [space.info.label_sets[name] for name in names]
        labels = [item_labels(space, train, name) for name in names]
        targets = [Target(y, len(s.classes), s.multilabel) for y, s in zip(labels, sets, strict=True)]
        settings = list(itertools.product(self.learning_rates, self.weight_decays))
        count = min(len(x), _SCALE_ROWS)
        sample = x[torch.arange(count) * len(x) // count].double()
        scale = float(sample.square().sum(1).mean().clamp_min(1e-300).rsqrt())
        batches = _Batches(len(x), self.batch_size, seed)
        module = StreamedHeads(x.shape[1], targets, settings, steps=self.epochs * len(batches), momentum=self.momentum)
        with warnings.catch_warnings():
            # Lightning asks for worker processes; rows of a tensor need none.
            warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
            trainer = pl.Trainer(
                max_epochs=self.epochs,
                accelerator=self.accelerator,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, DataLoader(_Items(x, labels, scale), sampler=batches, batch_size=None))
        weights = [w.detach().cpu() * scale for w in module.weights]
        biases = [b.detach().cpu() for b in module.biases]
        found = {}
        for i, name in enumerate(names):
            own = slice(i * len(settings), (i + 1) * len(settings))
            best, score = self._select(space, Part(VAL, modality), name, weights[own], biases[own])
            protocol = {
                "learning_rate": settings[best][0],
                "weight_decay": settings[best][1],
                "selection_score": score,
                "n_train": len(all_rows(labels[i])),
            }
            found[name] = (LinearHead(weights[own][best], biases[own][best]), protocol)
        return found

    def _select(
        self, space: EmbeddingSpace, val: Part, name: str, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> tuple[int, float]:
        labels = item_labels(space, val, name)
        rows = all_rows(labels)
        # A head that diverged scores nothing finite; zeros rank it last among those that learnt.
        stacked, bias = torch.stack(list(weights)).nan_to_num(0, 0, 0), torch.stack(list(biases)).nan_to_num(0, 0, 0)
        scores = [
            space[val][rows[b]].to(stacked) @ stacked.transpose(1, 2) + bias[:, None] for b in blocks(len(rows), 4096)
        ]
        label_set = space.info.label_sets[name]
        return select(torch.cat(scores, 1), labels[rows], label_set, squared=False)
