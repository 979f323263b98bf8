"""SGD probe: linear heads trained by Lightning, for embeddings that are held, mapped or only stream."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.core.lightning import pl
from krossfuse.core.parts import TEST, VAL, Modality, Part
from krossfuse.core.trainers import quiet
from krossfuse.probes.head_probe import HeadProbe, head_scope
from krossfuse.probes.heads import LinearHead
from krossfuse.probes.labelled import all_rows, item_labels, labelled_items
from krossfuse.probes.options import check_grid
from krossfuse.probes.selection import best_for, selection_parts
from krossfuse.probes.space import EmbeddingSpace, EmbeddingStream
from krossfuse.probes.streamed import SGDSetting, StreamedHeads

_SCALE_ROWS = 4096


class SGDProbe(HeadProbe):
    """Linear heads trained by SGD with momentum and a cosine schedule, as in DINOv2's evaluation.

    Every pair of learning rate and weight decay is a head, and so is every label set; all of them train on the same
    pass over the data, which is read once an epoch, or made anew where embeddings only stream. The pair that is most
    accurate on the validation split is tested (multilabel: of the highest mean average precision); there is no refit.
    Weights start at zero; the seed orders the batches. Embeddings are divided by the root of their mean squared norm,
    so that learning rates and weight decays mean the same in every space. The mean loss of each label set's heads goes
    to the run's tracker, as ``sgd_probe/<label set>/<modality>/train_loss``. Measurements and heads: see
    :class:`~krossfuse.probes.head_probe.HeadProbe`.

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
        accelerator: of Lightning's Trainer: ``"auto"``, ``"cpu"``, ``"gpu"``, ...; None is that of the run's Trainer.
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
        accelerator: str | None = None,
    ) -> None:
        super().__init__(head_scope(label_sets, modalities, split, extra_splits, streams=True))
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
            "learning_rates": list(self.learning_rates),
            "weight_decays": self.weight_decays,
            "momentum": self.momentum,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "schedule": "cosine",
            "selection": VAL,
            "refit": "",
        }

    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        train, val = selection_parts(space, modality, names, required=True)
        label_sets = {name: space.info.label_sets[name] for name in names}
        labels = {name: item_labels(space, train, name) for name in names}
        settings = [SGDSetting(*pair) for pair in itertools.product(self.learning_rates, self.weight_decays)]
        stream = space.stream(train, names, batch_size=self.batch_size, seed=seed)
        heads = StreamedHeads(
            stream.dim, label_sets, settings, momentum=self.momentum, scale=inverse_size(space, train, stream.rows)
        )
        training = _Training(heads, self.epochs * len(stream), self.name, modality)
        accelerator: dict[str, Any] = {} if self.accelerator is None else {"accelerator": self.accelerator}
        try:
            trainer = space.trainers(log=True, max_epochs=self.epochs, num_sanity_val_steps=0, **accelerator)
        except ConfigError as error:
            raise ConfigError(f"{self.name}, accelerator={self.accelerator!r}: {error}") from None
        with quiet(), warnings.catch_warnings():
            # Lightning asks for worker processes and loaders of its own; a stream needs none.
            warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
            trainer.fit(training, _Batches(stream))
        fitted = {}
        for name in names:
            weights, biases = heads.fitted(name)
            best, score = _best(space, val, name, weights, biases)
            protocol = {
                "learning_rate": settings[best].learning_rate,
                "weight_decay": settings[best].weight_decay,
                "selection_score": score,
                "n_train": len(all_rows(labels[name])),
            }
            fitted[name] = (LinearHead(weights[best].clone(), biases[best].clone()), protocol)
        return fitted


class _Training(pl.LightningModule):
    """The loop around the heads."""

    def __init__(self, heads: StreamedHeads, steps: int, probe: str, modality: Modality) -> None:
        super().__init__()
        self.heads, self.steps, self.probe, self.modality = heads, steps, probe, modality

    def training_step(self, batch: tuple[Tensor, Mapping[str, Tensor]]) -> Tensor:
        """Return the sum of the heads' mean losses on a batch, and log each label set's."""
        x, labels = batch
        losses = self.heads.losses(self.heads(x), labels)
        total = x.new_zeros((), dtype=torch.float32)
        for name, loss in losses.items():
            total = total + loss
            if self.logger is not None:
                self.log(
                    f"{self.probe}/{name}/{self.modality}/train_loss",
                    loss.detach() / len(self.heads.settings),
                    on_step=False,
                    on_epoch=True,
                    batch_size=len(x),
                )
        return total

    def configure_optimizers(self) -> Any:
        """Return those of the heads."""
        return self.heads.optimisers(self.steps)


class _Batches:
    """A stream as a loader: a plain iterable with a length."""

    def __init__(self, stream: EmbeddingStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for x, labels in self.stream:
            yield x, dict(labels)


def inverse_size(space: EmbeddingSpace, part: Part, rows: int) -> float:
    """Return one over the root of the mean squared norm of at most 4,096 rows of a part, at even distances."""
    count = min(rows, _SCALE_ROWS)
    sample = torch.cat([x.double() for x in space.read(part, torch.arange(count) * rows // count)])
    return float(sample.square().sum(1).mean().clamp_min(1e-300).rsqrt())


def _best(space: EmbeddingSpace, val: Part, name: str, weights: Tensor, biases: Tensor) -> tuple[int, float]:
    rows, labels = labelled_items(space, val, name)
    # A head that diverged scores nothing finite; zeros rank it last among those that learnt.
    weights, biases = weights.nan_to_num(0, 0, 0), biases.nan_to_num(0, 0, 0)
    scores = [x.to(weights) @ weights.transpose(1, 2) + biases[:, None] for x in space.read(val, rows)]
    return best_for(torch.cat(scores, 1), labels, space.info.label_sets[name], squared=False)
