"""COMM: the experts through an MLP beside the cross-modal features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DimensionError, check_choice, check_positive
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.fusion.base import Features, InputSpec
from krossfuse.fusion.methods.features import unit_features
from krossfuse.fusion.methods.trained import TrainedFusion, scaled, start_at_components, start_at_zero


class Comm(TrainedFusion):
    """COMM: the experts through an MLP, concatenated with the cross-modal features as they are (Jiang et al. 2023).

    The embedding is [φ(ψ) ; e/‖e‖], e = P·γ + MLP(γ), of experts γ. P·γ is ours: an MLP alone forgets on few samples
    what the experts know. P starts at the experts' principal components and the MLP's last layer at zero, so that
    training starts at the concatenation, as far as the dimension allows.

    The cross-modal part is untouched, so with ``missing="zeros"`` a modality without experts is encoded as
    [φ(ψ) ; 0] and image-text similarities are exactly the cross-modal encoder's.

    Args:
        dim: total dimension, of which the MLP has what the cross-modal features leave; None = twice the latter.
        missing: ``none`` or ``zeros``.
        recipe: see :class:`TrainedFusion`.
    """

    name = "comm"
    title = "COMM"

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
        """Make the experts' projection and MLP."""
        cross, *experts = self.roles.values()
        width = self.dim - cross
        self.project = nn.Linear(sum(experts), width, bias=False)
        self.adapt = nn.Sequential(nn.Linear(sum(experts), width), nn.GELU(), nn.Linear(width, width))

    def start(self, centred: dict[str, Tensor]) -> None:
        """Start at the experts' principal components, with an MLP of zero."""
        start_at_components([self.project], [torch.cat(list(centred.values())[1:], dim=1)])
        start_at_zero(self.adapt[2])

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Return [φ(ψ) ; e/‖e‖], e = P·γ + MLP(γ)."""
        cross, *_ = units.values()
        experts = dict(list(self.centred(units).items())[1:])
        adapted = self.project(torch.cat(list(experts.values()), dim=1)) + self.adapt(scaled(experts))
        return torch.cat([cross, nn.functional.normalize(adapted, dim=1)], dim=1)

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Return the fused embeddings, or [φ(ψ) ; 0] for the modality without experts."""
        check_choice("modality", modality, self.modalities)
        if modality == self.side:
            return super().encode(modality, features)
        cross = unit_features(features, {CROSS_MODAL: self.roles[CROSS_MODAL]}, self._like())[CROSS_MODAL]
        return nn.functional.pad(cross, (0, self.dim - cross.shape[1]))

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**super().describe(), "missing": self.missing}
