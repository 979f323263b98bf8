"""The features of a dataset under a pair of encoders: what fusion and probes are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from krossfuse.core.errors import DataError, did_you_mean
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import Part


@dataclass(frozen=True)
class FeatureBundle:
    """Stored features, by part and by role.

    Attributes:
        info: the dataset.
        pair: name of the pair of encoders.
        features: ``features[part][role]`` is (n, dim) float, a tensor over a read-only memory map where it comes
            from a store. ``role`` is ``"cross_modal"`` or the name of an expert. The parts of one split have as
            many rows as the split has items of that modality; image experts appear in image parts only.
        encoders: by role, the encoder's record (name, fingerprint), for the results.
    """

    info: DatasetInfo
    pair: str
    features: Mapping[Part, Mapping[str, Tensor]]
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __getitem__(self, part: Part) -> Mapping[str, Tensor]:
        try:
            return self.features[part]
        except KeyError:
            have = [str(p) for p in sorted(self.features)]
            raise DataError(
                f"dataset {self.info.name!r} has no features for {part}; it has {have}{did_you_mean(part, have)}"
            ) from None

    def __contains__(self, part: object) -> bool:
        return part in self.features

    def dims(self, modality: str) -> dict[str, int]:
        """Return the dimension of each role seen in parts of ``modality``."""
        return {
            role: tensor.shape[1]
            for part, roles in self.features.items()
            if part.modality == modality
            for role, tensor in roles.items()
        }
