"""The protocol of a fusion method: features of a pair of encoders in, one embedding out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from krossfuse.data.base import Modality
from krossfuse.encoders.base import CROSS_MODAL as CROSS_MODAL

Features = Mapping[str, Tensor]
"""Features of one batch by role: ``"cross_modal"`` or an expert's name to (batch, dim)."""


@dataclass(frozen=True)
class InputSpec:
    """Dimensions of what is fused.

    Attributes:
        cross_modal: dimension d_ψ of the cross-modal encoder, or None when experts of one modality are fused.
        image_experts: by name, dimension d_γ of each image expert.
        text_experts: by name, dimension d_γ of each text expert.
    """

    cross_modal: int | None = None
    image_experts: Mapping[str, int] = field(default_factory=dict)
    text_experts: Mapping[str, int] = field(default_factory=dict)

    def experts(self, modality: Modality) -> Mapping[str, int]:
        """Return the experts of one modality."""
        return self.image_experts if modality == "image" else self.text_experts


class FusionMethod(nn.Module, ABC):
    """A fusion method: hyper-parameters and dimensions at construction, then ``fit``, then ``encode``.

    Every random number comes from ``seed`` through a CPU generator, so that the same seed gives the same bits on
    any device. Everything drawn or fitted is a registered buffer (or parameter), so ``state_dict``, ``.to()`` and
    safetensors hold all of it. Constructing validates the hyper-parameters and raises ``ConfigError``.

    Attributes:
        inputs: the dimensions of the parents.
        deterministic: True when neither the seed nor the fit's data order changes the result (no seeds to sweep).
    """

    inputs: InputSpec
    deterministic: bool = False

    @property
    @abstractmethod
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that it can encode (an image expert alone, or GATE, has no text side)."""

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """Dimension of the fused embedding, equal for all its modalities."""

    def fit(
        self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None
    ) -> FusionMethod:
        """Fit on training features (label-free unless the method's docstring says that it is trained).

        Args:
            image: image features by role, each (n, dim).
            text: text features by role, each (m, dim).
            labels: (n,) int64, used by trained methods only.
        """
        return self

    @abstractmethod
    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Fuse one batch: (batch, dim) by role in, (batch, out_dim) out.

        Raises:
            DataError: a role is missing, has the wrong dimension, or holds NaN or a zero vector.
            ConfigError: the method cannot encode this modality.
            NotFittedError: it needs a fit first.
        """

    def kernel(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> Tensor | None:
        """Return the exact kernel (len(a), len(b)) that the embedding approximates, or None if it has none."""
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the flat, JSON-able description that goes into every result.

        Keys where they apply: ``method``, ``dim`` (total output), ``alignment``, ``sketch``, ``kernel``,
        ``bandwidth``, ``C``, ``seed``, and whatever else the method was configured with or has chosen.
        """
