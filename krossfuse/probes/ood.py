"""Out-of-distribution test: heads of this dataset's training split, tested on other sets with the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from krossfuse.core.errors import ConfigError, DataError, check_positive
from krossfuse.core.parts import SPLITS, TEST, TRAIN, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.linear import LinearProbe
from krossfuse.probes.options import check_device, check_grid, check_names
from krossfuse.probes.scope import Scope
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.zero_shot import ZeroShot

HEADS = ("linear", "zero_shot")
SHIFTED = "test_"
"""Splits whose names begin so are test sets of the same classes from elsewhere, e.g. ``test_sketch``."""


class OutOfDistribution(Probe):
    """Accuracy on the dataset's own test split and on shifted ones, whose items no head has been fitted or chosen on.

    ``linear`` is :class:`~krossfuse.probes.LinearProbe` on this dataset's training and validation splits;
    ``zero_shot`` is :class:`~krossfuse.probes.ZeroShot` with the first prompt set of the label set. Measurements, by
    head (in ``form``) and ``split``: ``accuracy`` and ``mean_per_class_accuracy``; by head, ``shifted_accuracy``, the
    mean of the accuracies on the shifted splits, each counting alike. A shifted split may lack classes.

    Args:
        splits: the shifted splits, or None for every ``test_...`` that the space has.
        heads: of ``"linear"`` and ``"zero_shot"``.
        grid: values of C, the weight of the sum of losses against ½‖W‖².
        tol: bound on the gradient, relative to that at zero weights.
        label_sets: names, or None for every single-label set with labels for a shifted split.
        device: where to solve and to compare; None is where the embeddings are, ``"auto"`` a CUDA device where there
            is one.
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
        device: str | None = None,
    ) -> None:
        check_positive("tol", tol)
        self.shifted = None if splits is None else check_names("splits", splits)
        for split in self.shifted or []:
            if split in SPLITS:
                raise ConfigError(f"splits: {split!r} is this dataset's own; name test sets from elsewhere")
        self.heads = check_names("heads", heads, HEADS)
        self.grid = check_grid("grid", grid)
        self.tol = tol
        self.device = check_device(device)
        self.scope = Scope(label_sets=label_sets, splits=[TEST, *(self.shifted or [])], fitted=[TRAIN])

    def _shifted(self, space: EmbeddingSpace) -> list[str]:
        if self.shifted is not None:
            return self.shifted
        return sorted(p.split for p in space.parts if p.split.startswith(SHIFTED) and p.modality == "image")

    def _lacks(self, space: EmbeddingSpace, modality: Modality, name: str) -> str | None:
        labels, shifted = space.info.label_sets[name].labels, self._shifted(space)
        if any(split in labels for split in shifted):
            return None
        return f"it has labels for none of the shifted splits {shifted}; it has them for {list(labels)}"

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from training, test and shifted images with labels."""
        if not self._shifted(space):
            return f"{space.info.name!r} has no split {SHIFTED}... with images, so no shifted test set"
        return self.scope.why_not(space, self._lacks)

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; nothing is random, so ``seed`` changes nothing.

        Raises:
            ConfigError: a label set that the dataset does not have, or with several labels an item.
            DataError: a split is missing, a class has no training item, or features have NaN.
        """
        shifted = self._shifted(space)
        for split in shifted:
            space[Part(split, "image")]
        if not shifted:
            raise DataError(str(self.why_not(space)))
        self.check(space.info, space.parts)
        measurements: list[Measurement] = []
        heads: dict[str, nn.Module] = {}
        for _, name in self.scope.pairs(space, self._lacks):
            labels = space.info.label_sets[name].labels
            splits = [TEST, *(split for split in shifted if split in labels)]
            by_head: dict[str, ProbeResult] = {}
            if "linear" in self.heads:
                linear = LinearProbe(
                    grid=self.grid,
                    tol=self.tol,
                    label_sets=[name],
                    modalities=["image"],
                    extra_splits=splits[1:],
                    device=self.device,
                )
                by_head["linear"] = linear.evaluate(space, seed=seed)
            prompt_set = next(iter(space.info.label_sets[name].prompts), "")
            if "zero_shot" in self.heads and Part.prompts(name, prompt_set) in space:
                zero_shot = ZeroShot(
                    label_sets=[name], prompt_sets=[prompt_set], extra_splits=splits[1:], device=self.device
                )
                by_head["zero_shot"] = zero_shot.evaluate(space, seed=seed)
            for head, result in by_head.items():
                accuracies = [
                    replace(m, protocol={**m.protocol, "form": head})
                    for m in result.measurements
                    if m.metric in ("accuracy", "mean_per_class_accuracy")
                ]
                measurements += accuracies
                away = [m.value for m in accuracies if m.metric == "accuracy" and m.protocol["split"] != TEST]
                if away:
                    protocol = {"form": head, "splits": splits[1:]}
                    measurements.append(Measurement("shifted_accuracy", sum(away) / len(away), "image", name, protocol))
                heads |= {f"{key}/{head}": module for key, module in result.heads.items()}
        return ProbeResult(measurements, {"grid": list(self.grid), "tol": self.tol, "shifted": shifted}, heads)
