"""The protocol of a fusion method: features of a pair of encoders in, one embedding out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError
from krossfuse.core.parts import MODALITIES, Modality
from krossfuse.core.trainers import TrainerFactory

Features = Mapping[str, Tensor]
"""Features of one batch by role: ``"cross_modal"`` or an expert's name to (batch, dim)."""


CHOSEN = ("C_folds", "C_rows", "C_basis", "C_ridge", "C_error", "C_accuracy", "best_epoch")
"""Keys of :meth:`FusionMethod.describe` that a fit has found, and that tell no methods apart."""


@dataclass(frozen=True)
class InputSpec:
    """Dimensions of what is fused.

    Attributes:
        cross_modal: dimension d_ψ of the cross-modal encoder, or None when experts of one modality are fused.
        image_experts: by name, dimension d_γ of each image expert.
        text_experts: by name, dimension d_γ of each text expert.

    Raises:
        ConfigError: an expert of images and one of texts have one name.
    """

    cross_modal: int | None = None
    image_experts: Mapping[str, int] = field(default_factory=dict)
    text_experts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that a name stands for one expert."""
        both = sorted(set(self.image_experts) & set(self.text_experts))
        if both:
            raise ConfigError(f"experts {both} are on both sides, images and texts; give each its own name")

    def experts(self, modality: Modality) -> Mapping[str, int]:
        """Return the experts of one modality."""
        return self.image_experts if modality == "image" else self.text_experts


class FusionMethod(nn.Module, ABC):
    """A fusion method: hyper-parameters and dimensions at construction, then ``fit``, then ``encode``.

    Every random number comes from ``seed`` through a CPU generator, so that the same seed gives the same bits on
    any device. Everything drawn or fitted is a registered buffer (or parameter), so ``state_dict``, ``.to()`` and
    safetensors hold all of it. Constructing validates the hyper-parameters and raises ``ConfigError``.

    Constructors take keyword arguments only; they are kept in ``arguments``, from which ``io.save_fusion`` writes the
    configuration beside the tensors.

    Attributes:
        title: the method's name for readers: in tables and pictures.
        inputs: the dimensions of the parents.
        deterministic: True when neither the seed nor the fit's data order changes the result (no seeds to sweep).
        trained: True when ``fit`` needs labels.
        arguments: what it was constructed with.
        trainers: makes the Trainers of a method that trains; None = the method's device, without a tracker.
        fitted_buffers: names of the buffers that are empty before the fit and take any shape when a state is loaded.
    """

    title: str
    inputs: InputSpec
    deterministic: bool = False
    trained: bool = False
    arguments: dict[str, Any]
    trainers: TrainerFactory | None = None
    fitted_buffers: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, **arguments: Any) -> Self:  # noqa: D102
        method = super().__new__(cls)
        # Past nn.Module's __setattr__, which registers modules and works only after nn.Module's __init__.
        method.__dict__["arguments"] = arguments
        return method

    @property
    @abstractmethod
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that it can encode (an image expert alone, or GATE, has no text side)."""

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """Dimension of the fused embedding, equal for all its modalities."""

    @property
    def has_kernel(self) -> bool:
        """Whether :meth:`kernel` gives an exact kernel, which is known before the fit."""
        return type(self).kernel is not FusionMethod.kernel

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check that a fit on so many training rows is possible; cheap, so that a sweep can be refused as a whole.

        Args:
            rows: by modality, how many rows :meth:`fit` would be given; what is not there is not checked.

        Raises:
            DataError: they are too few; the message says how many it takes.
        """

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

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in self.fitted_buffers:
            if prefix + name in state_dict:
                like = state_dict[prefix + name]
                setattr(self, name, torch.empty_like(like, device=self.get_buffer(name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the one mapping that says what the method is: flat and JSON-able, in every result.

        Keys where they apply: ``method``, ``title`` (for readers), ``dim`` (total output), ``alignment``, ``sketch``,
        ``kernel``, ``bandwidth``, ``C``, ``seed``, and whatever else it was configured with or has chosen.

        Two methods are the same one if they agree in every key but ``title``, ``seed`` (another draw of it) and
        :data:`CHOSEN` (what its fit has found on the data at hand). A ``C`` or a ``bandwidth`` that a rule chose
        stands beside the rule (``C_rule``, ``bandwidth_rule``), and tells nothing apart then.
        """


def expert_modalities(inputs: InputSpec, method: str, missing: str) -> tuple[Modality, ...]:
    """Return the modalities that a method without symmetrisation can encode.

    Raises:
        ConfigError: there is no expert, or there are experts on both sides and nothing stands for the missing ones.
    """
    sides: tuple[Modality, ...] = tuple(m for m in MODALITIES if inputs.experts(m))
    if not sides:
        raise ConfigError(f"{method} needs an expert beside the cross-modal encoder; choose a pair that has one")
    if missing == "zeros" and inputs.cross_modal is not None:
        return ("image", "text")
    if len(sides) == 2:
        raise ConfigError(
            f"{method} has no common space for image experts {list(inputs.image_experts)} and text experts "
            f"{list(inputs.text_experts)}; use missing=zeros where the method has it, or a pair with one side"
        )
    return sides
