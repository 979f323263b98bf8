"""Trained baselines: GATE, ATTN and COMM (arXiv 2506.08645, section 5), fitted with labels through a linear head.

What is combined follows the works that each class names, where it also says how ours departs from them; it was not
compared with anyone's code. The recipe is ours, the same for all three and all of it in their YAML. Unit features in,
centred on the training samples and scaled to unit length again; the fused vector, of unit length, through a linear
head; cross-entropy, AdamW with a cosine schedule. Training starts at what needs no labels, the principal components of
the parents' concatenation (COMM: the concatenation), with the layers that turn away from it at zero: from random
weights, few steps leave a baseline below its parents. With ``val_fraction`` a random part of the training samples is
held out first, to learn after how many epochs training on all of them is to stop.

They know no other modality than the one that they were trained on: GATE and ATTN have no text side.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.memory import check_memory
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec, expert_modalities
from krossfuse.fusion.methods.features import fit_sides, unit_features
from krossfuse.fusion.methods.principal import principal_axes
from krossfuse.fusion.rows import can_look

_BEYOND_RANK = 0.01
"""Share of their random weights that coordinates without a principal axis start at: at zero they would never learn."""


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
        val_fraction: share of the training samples held out to choose the epoch (by accuracy, then loss) at which
            training on all of them stops; 0 = the last.
        logit_scale: what the head's scores of unit embeddings are multiplied by.
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
        epochs: int = 60,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 256,
        label_smoothing: float = 0.0,
        dropout: float = 0.1,
        val_fraction: float = 0.2,
        logit_scale: float = 20.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive("dim", dim, integer=True)
        check_positive("epochs", epochs, integer=True)
        check_positive("batch_size", batch_size, integer=True)
        check_positive("lr", lr)
        check_positive("logit_scale", logit_scale)
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
            "logit_scale": float(logit_scale),
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
        for i, d in enumerate(self.roles.values()):
            self.register_buffer(f"mean_{i}", torch.zeros(d))

    @abstractmethod
    def build(self) -> None:
        """Make the layers."""

    @abstractmethod
    def start(self, centred: dict[str, Tensor]) -> None:
        """Set the layers to where training starts, from the centred training features of all parents."""

    @abstractmethod
    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Fuse the unit features of all parents, in training and after it, (batch, out_dim)."""

    @property
    def means(self) -> list[Tensor]:
        """Means of the training samples' unit features, a parent each."""
        return [self.get_buffer(f"mean_{i}") for i in range(len(self.roles))]

    def centred(self, units: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return unit features less the mean of the training samples', scaled to unit length again."""
        both = zip(units.items(), self.means, strict=True)
        return {role: nn.functional.normalize(unit - mean, dim=1) for (role, unit), mean in both}

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
        with torch.no_grad():
            for mean, unit in zip(self.means, units.values(), strict=True):
                mean.copy_(unit.double().mean(0))
            self.start(self.centred(units))
        best = train(self, units, targets, len(classes), trainers=self.trainers, seed=self.seed, **self.recipe)
        self.best_epoch.fill_(best)
        self.fitted.fill_(True)
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the fused embeddings, (batch, dim)."""
        check_choice("modality", modality, self.modalities)
        units = unit_features(features, self.roles, self._like())
        if can_look() and not self.fitted:
            raise NotFittedError(f"{self.name} is not trained yet; call fit() with labels first")
        return self.fuse(units)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool, *messages: list[str]
    ) -> None:
        if f"{prefix}mean_0" not in state_dict:
            messages[-1].append(
                f"it was trained before {self.name} centred its features and started at the parents' principal "
                "components; train it again"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *messages)

    def _like(self) -> Tensor:
        """Return a parameter, whose precision and device the features are brought to."""
        return next(self.parameters())

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results: dimension, seed and the whole recipe."""
        chosen = {"best_epoch": int(self.best_epoch)} if self.best_epoch >= 0 else {}
        described = {"method": self.name, "title": self.title, "dim": self.out_dim, "seed": self.seed}
        return {**described, **self.recipe, **chosen}


def scaled(centred: dict[str, Tensor]) -> Tensor:
    """Return the parents side by side, each coordinate of size about 1: what a layer of default weights can read."""
    return torch.cat([x * x.shape[1] ** 0.5 for x in centred.values()], dim=1)


def start_at_components(layers: Sequence[nn.Linear], parents: Sequence[Tensor]) -> None:
    """Set layers without biases, one a parent, such that their outputs' sum is the parents' principal components.

    Coordinates beyond the rank keep a small share of their random weights.

    Args:
        layers: (d_i, k) each.
        parents: (n, d_i) features.
    """
    stacked = torch.cat(list(parents), dim=1)
    k = min(layers[0].out_features, *stacked.shape)
    _, axes = principal_axes(lambda: [stacked], n=len(stacked), k=k, centre=False)
    there = axes.square().sum(0) > 0.5  # an axis beyond the rank may be zero
    with torch.no_grad():
        for layer, part in zip(layers, torch.split(axes, [x.shape[1] for x in parents]), strict=True):
            layer.weight.mul_(_BEYOND_RANK)
            layer.weight[:k][there] = part.T[there].to(layer.weight)


def start_at_zero(layer: nn.Module) -> None:
    """Set a linear layer to zero."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
