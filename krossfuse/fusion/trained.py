"""Trained baselines: GATE, ATTN and COMM (method.md, section 8), fitted with labels through a linear head.

The recipe, the same for all three and all of it in their YAML: unit features in, the fused vector through a linear
head, cross-entropy with label smoothing, AdamW with a cosine schedule, a stated number of epochs. With
``val_fraction`` a random part of the training samples is held out and the weights of its best epoch are kept. They
know no other modality than the one that they were trained on: GATE and ATTN have no text side.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec, expert_modalities
from krossfuse.fusion.baselines import fit_sides, unit_features


class TrainedFusion(FusionMethod):
    """A small network over unit features of several parents, trained by :class:`training.FusionTraining`.

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
        units = {role: unit[rows] for role, unit in unit_features(features, self.roles).items()}
        classes, targets = torch.unique(labels[rows], return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"{self.name} needs labels of two classes or more, got {len(classes)}")
        from krossfuse.fusion.training import train  # imports Lightning

        targets = targets.to(next(iter(units.values())).device)
        best = train(self, units, targets, len(classes), seed=self.seed, **self.recipe)
        self.best_epoch.fill_(best)
        self.fitted.fill_(True)
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the fused embeddings, (batch, dim)."""
        check_choice("modality", modality, self.modalities)
        units = unit_features(features, self.roles)
        if not self.fitted:
            raise NotFittedError(f"{self.name} is not trained yet; call fit() with labels first")
        dtype = next(self.parameters()).dtype
        return self.fuse({role: unit.to(dtype) for role, unit in units.items()})

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results: dimension, seed and the whole recipe."""
        chosen = {"best_epoch": int(self.best_epoch)} if self.best_epoch >= 0 else {}
        return {"method": self.name, "dim": self.out_dim, "seed": self.seed, **self.recipe, **chosen}


class Gate(TrainedFusion):
    """GATE: a sigmoid gate chooses, coordinate by coordinate, between the projected parents (Arevalo et al. 2017).

    h_i = tanh(W_i φ_i); g = σ(MLP([φ_1; ...; φ_m])), one gate vector a parent; with two parents the gates are g and
    1 − g, with more the sigmoids are scaled to sum to one. The embedding is Σ g_i ⊙ h_i.
    """

    name = "gate"

    def build(self) -> None:
        """Make a projection for each parent and the gating network."""
        self.project = nn.ModuleList(nn.Linear(d, self.dim) for d in self.roles.values())
        gates = 1 if len(self.roles) == 2 else len(self.roles)
        self.gating = nn.Sequential(
            nn.Linear(sum(self.roles.values()), self.dim), nn.ReLU(), nn.Linear(self.dim, gates * self.dim)
        )

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Return Σ g_i ⊙ h_i."""
        hidden = [torch.tanh(layer(x)) for layer, x in zip(self.project, units.values(), strict=True)]
        gates = torch.sigmoid(self.gating(torch.cat(list(units.values()), dim=1)))
        if len(hidden) == 2:
            chosen: Tensor = gates * hidden[0] + (1 - gates) * hidden[1]
            return chosen
        several = gates.view(len(gates), len(hidden), self.dim)
        weighted: Tensor = (several / several.sum(1, keepdim=True) * torch.stack(hidden, dim=1)).sum(1)
        return weighted


class Attention(TrainedFusion):
    """ATTN: the projected parents are tokens of one self-attention layer; the embedding is their mean.

    A pre-norm block: x + MultiHead(LN(x)), with an identity embedding added to each token so that the layer can
    tell the parents apart.

    Args:
        heads: attention heads; they divide ``dim``.
        recipe: see :class:`TrainedFusion`.
    """

    name = "attn"

    def __init__(self, *, inputs: InputSpec, dim: int = 512, heads: int = 4, **recipe: Any) -> None:
        check_positive("heads", heads, integer=True)
        check_positive("dim", dim, integer=True)
        if dim % heads:
            raise ConfigError(f"dim={dim} must be divisible by heads={heads}")
        self.__dict__["heads"] = heads  # build() runs inside nn.Module's own initialisation
        super().__init__(inputs=inputs, dim=dim, **recipe)

    def build(self) -> None:
        """Make the projections, the attention and its norm."""
        self.project = nn.ModuleList(nn.Linear(d, self.dim) for d in self.roles.values())
        self.identity = nn.Parameter(torch.randn(len(self.roles), self.dim) * 0.02)
        self.norm = nn.LayerNorm(self.dim)
        self.attention = nn.MultiheadAttention(self.dim, self.heads, batch_first=True)

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Return the mean of the attended tokens."""
        projected = [layer(x) for layer, x in zip(self.project, units.values(), strict=True)]
        tokens = torch.stack(projected, dim=1) + self.identity
        normed = self.norm(tokens)
        fused: Tensor = (tokens + self.attention(normed, normed, normed, need_weights=False)[0]).mean(1)
        return fused

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**super().describe(), "heads": self.heads}


class Comm(TrainedFusion):
    """COMM: the experts through an MLP, concatenated with the cross-modal features as they are (Jiang et al. 2023).

    The cross-modal part is untouched, so with ``missing="zeros"`` a modality without experts is encoded as
    [φ(ψ) ; 0] and image-text similarities are exactly the cross-modal encoder's.

    Args:
        dim: total dimension, of which the MLP has what the cross-modal features leave; None = twice the latter.
        missing: ``none`` or ``zeros``.
        recipe: see :class:`TrainedFusion`.
    """

    name = "comm"

    def __init__(self, *, inputs: InputSpec, dim: int | None = None, missing: str = "none", **recipe: Any) -> None:
        check_choice("missing", missing, ("none", "zeros"))
        if inputs.cross_modal is None:
            raise ConfigError("comm needs a cross-modal encoder")
        dim = 2 * inputs.cross_modal if dim is None else dim
        check_positive("dim", dim, integer=True)
        if dim <= inputs.cross_modal:
            raise DimensionError(
                f"dim={dim} leaves nothing for the experts beside {inputs.cross_modal} cross-modal dimensions"
            )
        self.__dict__["missing"] = missing
        super().__init__(inputs=inputs, dim=dim, **recipe)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts; both with ``missing="zeros"``."""
        return ("image", "text") if self.missing == "zeros" else (self.side,)

    def build(self) -> None:
        """Make the experts' MLP."""
        cross, *experts = self.roles.values()
        width = self.dim - cross
        self.adapt = nn.Sequential(nn.Linear(sum(experts), width), nn.GELU(), nn.Linear(width, width))

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Return [φ(ψ) ; MLP(experts)]."""
        cross, *experts = units.values()
        return torch.cat([cross, self.adapt(torch.cat(experts, dim=1))], dim=1)

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the fused embeddings, or [φ(ψ) ; 0] for the modality without experts."""
        check_choice("modality", modality, self.modalities)
        if modality == self.side:
            return super().encode(modality, features)
        cross = unit_features(features, {CROSS_MODAL: self.roles[CROSS_MODAL]})[CROSS_MODAL]
        return nn.functional.pad(cross, (0, self.dim - cross.shape[1]))

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**super().describe(), "missing": self.missing}
