"""How forms are fitted and chosen, and what was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from krossfuse.probes.few_shot.images import Images
from krossfuse.probes.few_shot.linear import LinearFit


class Classifier(Protocol):
    """What a form ends in."""

    def scores(self, images: Images) -> Tensor:
        """Return (n, K) scores of images."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every form is fitted and chosen; see :class:`~krossfuse.probes.FewShot`."""

    fit: LinearFit
    grid: tuple[float, ...]
    head_C: float | None
    tau: float | Literal["rule", "val"]
    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    split: str


@dataclass(frozen=True)
class Chosen:
    """What is best on the validation shots, its accuracy there, how many they are, and what was chosen."""

    classifier: Classifier
    val_accuracy: float
    n_val: int
    protocol: dict[str, float]
