"""Out-of-distribution test: heads of this dataset's training split, tested on other sets with the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from krossfuse.core.errors import ConfigError, DataError, check_positive
from krossfuse.core.parts import SPLITS, TEST, TRAIN, Part
from krossfuse.probes.base import EmbeddingSpace, Measurement, Probe, ProbeResult
from krossfuse.probes.linear import LinearProbe
from krossfuse.probes.rows import check_names
from krossfuse.probes.zero_shot import ZeroShot

HEADS = ("linear", "zero_shot")
SHIFTED = "test_"
"""Splits whose names begin so are test sets of the same classes from elsewhere, e.g. ``test_sketch``."""


class OutOfDistribution(Probe):
    """Accuracy on the dataset's own test split and on shifted ones, whose items no head has been fitted or chosen on.

    ``linear`` is :class:`~krossfuse.probes.LinearProbe` on this dataset's training and validation splits;
    ``zero_shot`` is :class:`~krossfuse.probes.ZeroShot` with the first prompt set of the label set. Figures, by head
    (in ``form``) and ``split``: ``accuracy`` and ``mean_per_class_accuracy``; by head, ``shifted_accuracy``, the mean
    of the accuracies on the shifted splits, each counting alike. A shifted split may lack classes.

    Args:
        splits: the shifted splits, or None for every ``test_...`` that the space has.
        heads: of ``"linear"`` and ``"zero_shot"``.
        grid: values of C, the weight of the sum of losses against ½‖W‖².
        tol: bound on the gradient, relative to that at zero weights.
        label_sets: names, or None for every single-label set with labels for a shifted split.
    """

    name = "ood"

    def __init__(
        self,
        *,
        splits: Sequence[str] | None = None,
        heads: Sequence[str] = HEADS,
        grid: Sequence[float] = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0),
        tol: float = 1e-3,
        label_sets: Sequence[str] | None = None,
    ) -> None:
        check_positive("tol", tol)
        if not len(grid):
            raise ConfigError("grid=[] must hold at least one value of C")
        for value in grid:
            check_positive("grid", value)
        self.splits = None if splits is None else check_names("splits", splits)
        for split in self.splits or []:
            if split in SPLITS:
                raise ConfigError(f"splits: {split!r} is this dataset's own; name test sets from elsewhere")
        self.heads = check_names("heads", heads, HEADS)
        self.grid = sorted({float(value) for value in grid})
        self.tol = tol
        self.label_sets = None if label_sets is None else check_names("label_sets", label_sets)

    def _shifted(self, space: EmbeddingSpace) -> list[str]:
        if self.splits is not None:
            return self.splits
        return sorted(p.split for p in space.parts if p.split.startswith(SHIFTED) and p.modality == "image")

    def _chosen(self, space: EmbeddingSpace) -> list[str]:
        shifted = self._shifted(space)
        return [
            name
            for name, label_set in space.info.label_sets.items()
            if (
                name in self.label_sets
                if self.label_sets is not None
                else not label_set.multilabel and any(split in label_set.labels for split in shifted)
            )
        ]

    def applies(self, space: EmbeddingSpace) -> bool:
        """Whether it has training, test and shifted images with labels."""
        own = Part(TRAIN, "image") in space and Part(TEST, "image") in space
        return own and bool(self._shifted(space)) and bool(self._chosen(space))

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; nothing is random, so ``seed`` changes nothing.

        Raises:
            DataError: a split is missing, a class has no training item, or features have NaN.
        """
        shifted = self._shifted(space)
        for split in shifted:
            space[Part(split, "image")]
        if not shifted:
            raise DataError(f"{space.info.name!r} has no split {SHIFTED}... with images, so no shifted test set")
        for name in self.label_sets or []:
            if name not in space.info.label_sets or space.info.label_sets[name].multilabel:
                usable = [n for n, s in space.info.label_sets.items() if not s.multilabel]
                raise DataError(f"the test needs single-label sets; {name!r} is not one of {usable}")
        measurements: list[Measurement] = []
        heads: dict[str, nn.Module] = {}
        for name in self._chosen(space):
            labels = space.info.label_sets[name].labels
            splits = [TEST, *(split for split in shifted if split in labels)]
            by_head: dict[str, ProbeResult] = {}
            if "linear" in self.heads:
                linear = LinearProbe(
                    grid=self.grid, tol=self.tol, label_sets=[name], modalities=["image"], extra_splits=splits[1:]
                )
                by_head["linear"] = linear.evaluate(space, seed=seed)
            prompt_set = next(iter(space.info.label_sets[name].prompts), "")
            if "zero_shot" in self.heads and Part.prompts(name, prompt_set) in space:
                zero_shot = ZeroShot(label_sets=[name], prompt_sets=[prompt_set], extra_splits=splits[1:])
                by_head["zero_shot"] = zero_shot.evaluate(space, seed=seed)
            for head, result in by_head.items():
                own = [
                    replace(f, protocol={**f.protocol, "form": head})
                    for f in result.measurements
                    if f.metric in ("accuracy", "mean_per_class_accuracy")
                ]
                measurements += own
                away = [f.value for f in own if f.metric == "accuracy" and f.protocol["split"] != TEST]
                if away:
                    protocol = {"form": head, "splits": splits[1:]}
                    measurements.append(Measurement("shifted_accuracy", sum(away) / len(away), "image", name, protocol))
                heads |= {f"{key}/{head}": module for key, module in result.heads.items()}
        return ProbeResult(measurements, {"grid": self.grid, "tol": self.tol, "shifted": shifted}, heads)
