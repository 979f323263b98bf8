"""A pair: one cross-modal encoder and the uni-modal experts that it is fused with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.encoders.base import Encoder


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The encoders of one experiment, by role.

    Attributes:
        name: short name, as in the configuration.
        cross_modal: encoder of both modalities in one space, or None when experts of one modality are fused.
        image_experts: by role, the encoders of images alone.
        text_experts: by role, the encoders of texts alone.

    Raises:
        ConfigError: no encoder at all, an encoder that lacks the modality of its place, or a role given twice.
    """

    name: str
    cross_modal: Encoder | None = None
    image_experts: Mapping[str, Encoder] = field(default_factory=dict)
    text_experts: Mapping[str, Encoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A config writes null for "no experts here".
        object.__setattr__(self, "image_experts", dict(self.image_experts or {}))
        object.__setattr__(self, "text_experts", dict(self.text_experts or {}))
        twice = sorted(set(self.image_experts) & set(self.text_experts))
        if twice:
            raise ConfigError(f"pair {self.name!r}: experts {twice} are named on both sides; give each its own name")
        if CROSS_MODAL in {*self.image_experts, *self.text_experts}:
            raise ConfigError(f"pair {self.name!r}: {CROSS_MODAL!r} cannot be the name of an expert")
        if self.cross_modal is None and bool(self.image_experts) == bool(self.text_experts):
            raise ConfigError(
                f"pair {self.name!r} needs a cross-modal encoder, or experts of exactly one modality; it has image "
                f"experts {list(self.image_experts)} and text experts {list(self.text_experts)}"
            )
        for place in ("cross_modal", "image_experts", "text_experts"):
            given = getattr(self, place)
            for role, encoder in given.items() if isinstance(given, dict) else {CROSS_MODAL: given}.items():
                if encoder is not None and not (hasattr(encoder, "modalities") and hasattr(encoder, "fingerprint")):
                    raise ConfigError(
                        f"pair {self.name!r}: {place}: {role!r} is a {type(encoder).__name__}, which is no "
                        "krossfuse.encoders.base.Encoder"
                    )
        for modality in MODALITIES:
            for role, encoder in self.encoders(modality).items():
                if modality not in encoder.modalities:
                    raise ConfigError(
                        f"pair {self.name!r}: {role} ({encoder.name!r}) must encode {modality}, "
                        f"but it encodes {list(encoder.modalities)}"
                    )

    def encoders(self, modality: Modality) -> dict[str, Encoder]:
        """Return by role the encoders that see ``modality``, the cross-modal one first."""
        check_choice("modality", modality, MODALITIES)
        experts = self.image_experts if modality == "image" else self.text_experts
        cross = {} if self.cross_modal is None else {CROSS_MODAL: self.cross_modal}
        return {**cross, **experts}

    def every(self) -> dict[str, Encoder]:
        """Return by role all encoders, the cross-modal one first."""
        return {**self.encoders("image"), **self.encoders("text")}
