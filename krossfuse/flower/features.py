"""The features that a node trains or tests on: a file of embeddings, or a fusion of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, did_you_mean
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import TEST, TRAIN, Modality, Part
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.fusion.io import load_fusion

MODALITY: Modality = "image"


@dataclass(frozen=True)
class Labelled:
    """Rows with a label.

    Attributes:
        x: (n, dim) float32.
        y: (n,) int64, or (n, classes) bool.
    """

    x: Tensor
    y: Tensor


class Features:
    """The images of a file of embeddings, as one embedding.

    Args:
        path: of the file.
        role: of the encoder: ``cross_modal`` or an image expert's name; empty where there is one.
        fusion: a saved fusion method that makes the embedding of all encoders; empty for none.
        label_set: empty where there is one.

    Raises:
        ConfigError: a choice that has to be made, or that is not there.
        DataError: what is wrong with the file.
        StoreError: what is wrong with the fusion.
    """

    def __init__(self, path: str, *, role: str = "", fusion: str = "", label_set: str = "") -> None:
        if role and fusion:
            raise ConfigError(f"features={role!r} and fusion={fusion!r}: the fusion takes all encoders; choose one")
        source = EmbeddingsFile(path=path)
        source.check()
        self.bundle, self.where = source.bundle(), f"data={path!r}"
        self.method = load_fusion(fusion) if fusion else None
        self.role = "" if fusion else self._chosen("features", role, self.bundle[Part(TRAIN, MODALITY)])
        self.name = self._chosen("label-set", label_set, self.info.label_sets)

    @property
    def info(self) -> DatasetInfo:
        """Of the dataset."""
        return self.bundle.info

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.info.label_sets[self.name].classes)

    @property
    def multilabel(self) -> bool:
        """Whether items have several labels."""
        return self.info.label_sets[self.name].multilabel

    def train(self) -> Labelled:
        """Return the training rows."""
        return self._rows(TRAIN)

    def test(self) -> Labelled:
        """Return the test rows."""
        return self._rows(TEST)

    def _rows(self, split: str) -> Labelled:
        part = Part(split, MODALITY)
        roles = self.bundle[part]
        if self.method is None:
            x = roles[self.role].float()
        else:
            with torch.no_grad():
                x = self.method.encode(MODALITY, {role: tensor.float() for role, tensor in roles.items()})
        y = self.info.labels(self.name, part)
        if self.multilabel:
            return Labelled(x, y.bool())
        kept = y >= 0
        if not kept.any():
            raise DataError(f"{self.where}: no item of {part} has a label in {self.name!r}")
        return Labelled(x[kept], y[kept].long())

    def _chosen(self, key: str, value: str, choices: object) -> str:
        names = sorted(choices)  # type: ignore[call-overload]
        if value in names:
            return value
        if not value and len(names) == 1:
            return str(names[0])
        raise ConfigError(
            f"{self.where}: {key}={value!r} must be one of {names}{did_you_mean(value, names)}"
            + ("; or fusion=FILE makes one embedding of them" if key == "features" else "")
        )
