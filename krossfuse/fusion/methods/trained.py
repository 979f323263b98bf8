"""Trained baselines: GATE, ATTN and COMM (arXiv 2506.08645, section 5), fitted with labels through a linear head.

The recipe, the same for all three and all of it in their YAML: unit features in, the fused vector through a linear
head, cross-entropy with label smoothing, AdamW with a cosine schedule, a stated number of epochs. With
``val_fraction`` a random part of the training samples is held out and the weights of its best epoch are kept. They
know no other modality than the one that they were trained on: GATE and ATTN have no text side.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.memory import check_memory
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec, expert_modalities
from krossfuse.fusion.methods.features import fit_sides, unit_features


class TrainedFusion(FusionMethod):
    """A small network over unit features of several parents, trained in ``training.py``.

    Args:
        inputs: dimensions of the parents, with experts on one side.
        dim: dimension of the fused embedding.
        epochs: passes over the training samples.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        batch_size: samples a step.
        label_smoothing: of the cross-entropy.
        dropout: on the input features.
        val_fraction: share of the training samples held out to keep the best epoch; 0 = keep the last.
        seed: of the weights, the batches' order, the dropout and the held-out samples.

    Raises:
        ConfigError: a bad value, no expert, or experts on both sides.
    """

    trained = True
    name: ClassVar[str]
    fitted: Tensor
    best_epoch: Tensor

    def __init__(
        self,
        *,
        inputs: InputSpec,
        dim: int = 512,
        epochs: int = 30,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 256,
        label_smoothing: float = 0.0,
        dropout: float = 0.1,
        val_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive("dim", dim, integer=True)
        check_positive("epochs", epochs, integer=True)
        check_positive("batch_size", batch_size, integer=True)
        check_positive("lr", lr)
        for name, value in (
            ("weight_decay", weight_decay),
            ("label_smoothing", label_smoothing),
            ("dropout", dropout),
            ("val_fraction", val_fraction),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ConfigError(f"{name}={value!r} must be a number from 0 to less than 1")
        (self.side,) = expert_modalities(inputs, type(self).__name__, "none")
        self.inputs, self.dim, self.seed = inputs, dim, seed
        cross = {} if inputs.cross_modal is None else {CROSS_MODAL: inputs.cross_modal}
        self.roles = {**cross, **inputs.experts(self.side)}
        if len(self.roles) < 2:
            raise ConfigError(f"{self.name} needs two parents of one modality, got {self.roles}")
        self.recipe: dict[str, Any] = {
            "epochs": epochs,
            "lr": float(lr),
            "weight_decay": float(weight_decay),
            "batch_size": batch_size,
            "label_smoothing": float(label_smoothing),
            "dropout": float(dropout),
            "val_fraction": float(val_fraction),
        }
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("best_epoch", torch.tensor(-1))  # -1: the last one was kept
        check_memory(f"512 rows of {dim} dimensions", 512 * 4 * dim, "lower dim")
        with torch.device("meta"):  # allocates nothing
            self.build()
        # Weights, gradients and the two moments of AdamW.
        needed = 4 * sum(p.numel() * p.element_size() for p in self.parameters())
        check_memory(f"training {self.name} with dim={dim}", needed, "lower dim", error=DimensionError)
        with torch.random.fork_rng(devices=[]):  # the initialisers know the global generator only
            torch.manual_seed(seed)
            self.build()

    @abstractmethod
    def build(self) -> None:
        """Make the layers."""

    @abstractmethod
    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Fuse the unit features of all parents, in training and after it, (batch, out_dim)."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts."""
        return (self.side,)

    @property
    def out_dim(self) -> int:
        """``dim``."""
        return self.dim

    def fit(
        self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None
    ) -> TrainedFusion:
        """Train on labelled features of the side with experts; rows with label -1 are left out.

        Raises:
            DataError: no labels, fewer than two classes, or the features do not fit.
        """
        features = fit_sides(self.inputs, image, text)[self.side]
        if labels is None:
            raise DataError(f"{self.name} is trained: fit() needs labels (name a label set)")
        if labels.ndim != 1 or len(labels) != len(next(iter(features.values()))):
            raise DataError(f"{self.name} needs one label a sample, got labels of shape {tuple(labels.shape)}")
        rows = labels >= 0
        units = {role: unit[rows] for role, unit in unit_features(features, self.roles, self._like()).items()}
        classes, targets = torch.unique(labels[rows], return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"{self.name} needs labels of two classes or more, got {len(classes)}")
        from krossfuse.fusion.methods.training import train  # imports Lightning

        targets = targets.to(next(iter(units.values())).device)
        best = train(self, units, targets, len(classes), trainers=self.trainers, seed=self.seed, **self.recipe)
        self.best_epoch.fill_(best)
        self.fitted.fill_(True)
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the fused embeddings, (batch, dim)."""
        check_choice("modality", modality, self.modalities)
        units = unit_features(features, self.roles, self._like())
        if not self.fitted:
            raise NotFittedError(f"{self.name} is not trained yet; call fit() with labels first")
        return self.fuse(units)

    def _like(self) -> Tensor:
        """Return a parameter, whose precision and device the features are brought to."""
        return next(self.parameters())

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results: dimension, seed and the whole recipe."""
        chosen = {"best_epoch": int(self.best_epoch)} if self.best_epoch >= 0 else {}
        described = {"method": self.name, "title": self.title, "dim": self.out_dim, "seed": self.seed}
        return {**described, **self.recipe, **chosen}
