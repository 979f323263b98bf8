"""The protocol of a probe: an embedding space in, named measurements out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from krossfuse.core.errors import DataError
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import Modality, Part


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Attributes:
        metric: e.g. ``"accuracy"``, ``"recall@10"``, ``"nmi"``.
        value: in the metric's own unit; accuracies and recalls are fractions in [0, 1].
        modality: ``"image"``, ``"text"``, ``"image->text"`` or ``"text->image"``.
        label_set: the label set, or "" where there is none.
        protocol: what is particular to this measurement (shots, selected C, prompt set, training form, ...), flat and
            JSON-able. What all measurements of the probe share stands in :attr:`ProbeResult.protocol`.
        per_item: (n_test,) float, the test items' own scores whose mean is ``value`` (correct or not, hit or
            not), where the metric is such a mean; kept for paired comparisons of methods on the same items.
    """

    metric: str
    value: float
    modality: str
    label_set: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    per_item: Tensor | None = None


@dataclass(frozen=True)
class ProbeResult:
    """What a probe returns.

    Attributes:
        measurements: the measured numbers.
        protocol: what they share.
        heads: the fitted heads by name; may be none.
        drawn: what the probe drew by seed (few-shot subsets), JSON-able; written to the run folder where there is any.
    """

    measurements: list[Measurement]
    protocol: Mapping[str, Any]
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    drawn: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbeddingSpace:
    """One embedding of one dataset, as a probe sees it.

    Attributes:
        info: the dataset: label sets, prompts, captions.
        parts: by part, the embeddings (n, dim); may lie over a read-only memory map larger than memory, so probes
            read them in blocks of rows.
        kernel: exact kernel between rows of two parts, ``kernel(part_a, rows_a, part_b, rows_b)`` to (a, b), with
            row indices (int64), or None where the embedding has no exact kernel behind it.
        reference: by part, the cross-modal encoder's own embeddings, for measures of agreement; may be empty.
    """

    info: DatasetInfo
    parts: Mapping[Part, Tensor]
    kernel: Callable[[Part, Tensor, Part, Tensor], Tensor] | None = None
    reference: Mapping[Part, Tensor] = field(default_factory=dict)

    def __contains__(self, part: object) -> bool:
        return part in self.parts

    def __getitem__(self, part: Part) -> Tensor:
        try:
            return self.parts[part]
        except KeyError:
            have = [str(p) for p in sorted(self.parts)]
            raise DataError(f"this embedding of {self.info.name!r} has no part {part}; it has {have}") from None

    def xy(self, split: str, modality: Modality, label_set: str) -> tuple[Tensor, Tensor]:
        """Return the embeddings of a part and its labels (rows with label -1 are still there)."""
        part = Part(split, modality)
        return self[part], self.info.labels(label_set, part)


class Probe(ABC):
    """A probe. Constructing one validates its configuration and raises ``ConfigError``; it holds no state.

    Attributes:
        name: as in the configuration and the results.
    """

    name: str

    @abstractmethod
    def applies(self, space: EmbeddingSpace) -> bool:
        """Whether the space has what this probe needs (zero-shot needs images and class texts in one space)."""

    @abstractmethod
    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure. The same space and seed give the same bits.

        Raises:
            DataError: the space cannot be probed so (a class without training items, NaN, ...).
        """
