"""The protocol of a probe: an embedding space in, named measurements out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from krossfuse.core.labels import DatasetInfo
from krossfuse.core.metrics import metric
from krossfuse.core.parts import Part
from krossfuse.probes.scope import Scope
from krossfuse.probes.space import EmbeddingSpace as EmbeddingSpace


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Attributes:
        metric: a declared one, e.g. ``"accuracy"``, ``"recall@10"``, ``"nmi"``; see :mod:`krossfuse.core.metrics`.
        value: in the metric's own unit; accuracies and recalls are fractions in [0, 1].
        modality: ``"image"``, ``"text"``, ``"image->text"`` or ``"text->image"``.
        label_set: the label set, or "" where there is none.
        protocol: what is particular to this measurement (shots, selected C, prompt set, training form, ...), flat and
            JSON-able. What all measurements of the probe share stands in :attr:`ProbeResult.protocol`.
        per_item: (n_test,) float, the test items' own scores whose mean is ``value`` (correct or not, hit or
            not), where the metric is such a mean; kept for paired comparisons of methods on the same items.

    Raises:
        ConfigError: nobody declared the metric.
        DataError: the value is outside the metric's bounds, or not finite.
    """

    metric: str
    value: float
    modality: str
    label_set: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    per_item: Tensor | None = None

    def __post_init__(self) -> None:
        metric(self.metric).check(self.value)


@dataclass(frozen=True)
class ProbeResult:
    """What a probe returns.

    Attributes:
        measurements: the measured numbers.
        protocol: what they share.
        heads: the fitted heads by name; may be none.
        drawn: what the probe drew by seed (few-shot subsets), JSON-able; written to the run folder where there is any.
        seeded: whether another seed gives other measurements of the same embedding.
    """

    measurements: list[Measurement]
    protocol: Mapping[str, Any]
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    drawn: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = False


class Probe(ABC):
    """A probe. Constructing one validates its configuration and raises ``ConfigError``; it holds no state.

    Attributes:
        name: as in the configuration and the results.
        scope: what it looks at.
    """

    name: str
    scope: Scope = Scope()

    def check(self, info: DatasetInfo, parts: Collection[Part] = ()) -> None:
        """Check the names of label sets, splits and prompt sets against a dataset, before anything is computed.

        Args:
            info: the dataset.
            parts: that it has, where they are known.

        Raises:
            ConfigError: the dataset does not have one of them.
        """
        self.scope.check(info, parts)

    @abstractmethod
    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return None if the space has what this probe needs, or what it lacks and what to do about it."""

    def applies(self, space: EmbeddingSpace) -> bool:
        """Whether the space has what this probe needs (zero-shot needs images and class texts in one space)."""
        return self.why_not(space) is None

    @abstractmethod
    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure. The same space and seed give the same bits.

        Raises:
            ConfigError: a name that the dataset does not have.
            DataError: the space cannot be probed so (a class without training items, NaN, ...).
        """
