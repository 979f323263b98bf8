"""Heads on fused embeddings: which labels each reads, its loss in training and its accuracy in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from krossfuse.core.errors import ConfigError
from krossfuse.core.parts import Modality

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

Loss = Callable[[Tensor, Any], Tensor]
"""``loss(scores, labels)``: labels of the one label set that a head reads, or by name of the several."""

Optimisers = Callable[[list[nn.Parameter]], Any]
"""What ``configure_optimizers`` returns (an optimiser, or Lightning's mapping with a schedule), from the parameters."""


class Heads(nn.Module):
    """Heads by name.

    Attributes:
        names: of all heads, in the order in which they were added.
        measured: of those that predict one label set, whose accuracy is measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heads = nn.ModuleDict()
        self._metrics = nn.ModuleDict()
        self._reads: dict[str, tuple[Modality, str | tuple[str, ...], Loss]] = {}

    def add(
        self,
        name: str,
        head: nn.Module,
        *,
        label_set: str | Sequence[str],
        modality: Modality,
        loss: Loss | None,
        classes: int,
    ) -> None:
        """Add a head; see :meth:`~krossfuse.fusion.module.FusionModule.add_head`.

        Raises:
            ConfigError: the name is taken or has a dot, or several label sets come without a loss.
        """
        if "." in name or name in self._heads:
            raise ConfigError(f"head {name!r}: the name must be new and without dots; there are {self.names}")
        if not isinstance(label_set, str) and loss is None:
            raise ConfigError(f"head {name!r} reads the label sets {list(label_set)}, so it needs a loss of its own")
        if isinstance(label_set, str):
            from torchmetrics import MetricCollection
            from torchmetrics.classification import MulticlassAccuracy

            accuracies = {
                f"{name}/top{k}": MulticlassAccuracy(classes, top_k=k, average="micro", ignore_index=-1)
                for k in (1, 5)
                if k < classes
            }
            self._metrics[name] = MetricCollection(accuracies)  # type: ignore[arg-type]
        self._heads[name] = head
        sets = label_set if isinstance(label_set, str) else tuple(label_set)
        self._reads[name] = (modality, sets, loss or nn.CrossEntropyLoss(ignore_index=-1))

    @property
    def names(self) -> list[str]:
        """Names of all heads."""
        return list(self._reads)

    @property
    def measured(self) -> list[str]:
        """Names of those that are measured."""
        return list(self._metrics)

    def head(self, name: str) -> nn.Module:
        """Return a head."""
        return self._heads[name]

    def by_modality(self, names: Iterable[str]) -> dict[Modality, list[str]]:
        """Return the names by the modality of the embeddings that the heads read."""
        grouped: dict[Modality, list[str]] = {}
        for name in names:
            grouped.setdefault(self._reads[name][0], []).append(name)
        return grouped

    def label_sets(self, names: Iterable[str]) -> list[str]:
        """Return the label sets that heads read, each once."""
        read = (self._reads[name][1] for name in names)
        return list(dict.fromkeys(one for sets in read for one in ((sets,) if isinstance(sets, str) else sets)))

    def loss(self, name: str, fused: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a head on a training batch."""
        _, sets, loss = self._reads[name]
        return loss(self._heads[name](fused), labels[sets] if isinstance(sets, str) else labels)

    def measure(self, modality: Modality, fused: Tensor, labels: Mapping[str, Tensor]) -> Iterator[MetricCollection]:
        """Update the accuracies of the heads that read this modality and whose labels are there, and yield them."""
        for name in self.by_modality(self.measured).get(modality, []):
            label_set, metrics = self._reads[name][1], cast("MetricCollection", self._metrics[name])
            if label_set in labels:
                assert isinstance(label_set, str)
                metrics.update(self._heads[name](fused), labels[label_set])
                yield metrics
