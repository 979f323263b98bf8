"""What the probes of linear heads share: one head for each label set and modality, by a grid or otherwise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import check_positive
from krossfuse.core.labels import LabelSet
from krossfuse.core.parts import TRAIN, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.heads import Candidates, LinearHead
from krossfuse.probes.labelled import all_rows, check_label_set, item_labels
from krossfuse.probes.options import check_device, solving_device
from krossfuse.probes.rows import check_range, finite_rows, largest, normalised
from krossfuse.probes.scope import Scope
from krossfuse.probes.scoring import measurements_of_head
from krossfuse.probes.selection import Selection, best_for, k_folds, selection_parts, warn_once
from krossfuse.probes.solvers import Target
from krossfuse.probes.solvers.rows import resident
from krossfuse.probes.space import READ_ROWS, EmbeddingSpace


def head_scope(
    label_sets: Sequence[str] | None,
    modalities: Sequence[Modality],
    split: str,
    extra_splits: Sequence[str] = (),
    *,
    streams: bool = False,
) -> Scope:
    """Return the scope of a probe of heads, fitted on the training split."""
    return Scope(
        label_sets=label_sets,
        modalities=modalities,
        splits=[split, *extra_splits],
        fitted=[TRAIN],
        multilabel=True,
        streams=streams,
    )


class HeadProbe(Probe):
    """A probe of linear heads, one for each label set and modality.

    Measurements, by label set, modality and split: ``accuracy``, ``mean_per_class_accuracy`` (over the classes
    present), ``top5_accuracy`` where there are more than five classes; ``mean_average_precision`` where multilabel.
    Heads are named ``<label set>/<modality>``.

    Args:
        scope: what is probed; multilabel sets suit.

    Attributes:
        seeded: whether another seed gives other measurements of the same embedding.
    """

    seeded: bool = False

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    @abstractmethod
    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        """Return by label set the head and the protocol of its fit."""

    def _measured_of_fit(self, name: str, modality: Modality, protocol: dict[str, Any]) -> list[Measurement]:
        """Return what is measured of a fit itself, whatever the split."""
        return []

    def _testing_device(self) -> torch.device | None:
        """Return where heads are tested; None is where the embeddings are."""
        return None

    @abstractmethod
    def _protocol(self) -> dict[str, Any]:
        """Return the protocol that all measurements share."""

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from labelled training and test items of any of the modalities."""
        return self.scope.why_not(space)

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure.

        Raises:
            ConfigError: a label set that the dataset does not have.
            DataError: a class without training items, a set with one class, no validation split to select on, a
                label out of range, or features with NaN.
        """
        self.check(space.info, space.parts)
        measurements: list[Measurement] = []
        heads: dict[str, nn.Module] = {}
        for modality, names in self.scope.label_sets_of(space).items():
            for name in names:
                check_label_set(space, name, Part(TRAIN, modality))
            for name, (head, protocol) in self._fit(space, modality, names, seed).items():
                heads[f"{name}/{modality}"] = head
                for split in self.scope.splits_with(space, modality, name):
                    measurements += measurements_of_head(
                        space, name, Part(split, modality), head, protocol, device=self._testing_device()
                    )
                measurements += self._measured_of_fit(name, modality, protocol)
        return ProbeResult(measurements, self._protocol(), heads, seeded=self.seeded)


class GridProbe(HeadProbe):
    """Heads whose one hyper-parameter is chosen from a grid on held-out items, then fitted on all of them.

    Args:
        scope: what is probed.
        selection: how the hyper-parameter is chosen.
        normalise: scale embeddings to Euclidean norm 1.
        block_rows: rows read at once; None is some 64 MB of them.
        device: where to solve; None is where the embeddings are, ``"auto"`` a CUDA device where there is one.
    """

    knob: str
    """Name of the hyper-parameter in the protocol."""
    squared: bool
    """Whether the loss is the squared error, or the log-loss."""

    def __init__(
        self, scope: Scope, selection: Selection, *, normalise: bool, block_rows: int | None, device: str | None
    ) -> None:
        super().__init__(scope)
        if block_rows is not None:
            check_positive("block_rows", block_rows, integer=True)
        self.selection, self.normalise = selection, normalise
        self.block_rows, self.device = block_rows, check_device(device)

    @abstractmethod
    def _solve(
        self,
        x: Sequence[Tensor],
        targets: Sequence[Target],
        grids: Sequence[Sequence[float]],
        device: torch.device | None,
    ) -> list[Candidates]:
        """Fit each target at each value of its grid; the rows of ``x`` follow one another."""

    def _testing_device(self) -> torch.device | None:
        return solving_device(self.device)

    def _protocol(self) -> dict[str, Any]:
        return {"grid": list(self.selection.grid), **self.selection.described(), "normalise": self.normalise}

    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        device, selection = solving_device(self.device), self.selection
        parts = selection_parts(space, modality, names, required=selection.on_val)
        x = resident([space[part] for part in parts], device)
        for rows, part in zip(x, parts, strict=True):
            check_part(rows, part, normalise=self.normalise)
        sets = [space.info.label_sets[name] for name in names]
        labels = [[item_labels(space, part, name) for part in parts] for name in names]
        joined = [torch.cat(by_part) for by_part in labels]
        train = [Target(by_part[0], len(s.classes), s.multilabel) for by_part, s in zip(labels, sets, strict=True)]
        both = [replace(target, labels=y) for target, y in zip(train, joined, strict=True)]
        every = [selection.grid] * len(names)
        if selection.on_val:
            first = self._solve(x[:1], train, every, device)
            chosen = [
                self._best([(f, y[1])], x[1:], [all_rows(y[1])], s, device)
                for f, y, s in zip(first, labels, sets, strict=True)
            ]
        else:
            first = []
            chosen = [self._cross_validate(x, target, s, seed, device) for target, s in zip(both, sets, strict=True)]
        final, picks = first, [pick for pick, _ in chosen]
        if selection.refit:
            final = self._solve(x, both, [[selection.grid[pick]] for pick in picks], device)
            picks = [0] * len(names)
        heads = {}
        for i, name in enumerate(names):
            best, score = chosen[i]
            fit, pick, used = final[i], picks[i], (joined if selection.refit else [y[0] for y in labels])[i]
            what = f"{self.name} of {space.info.name!r}, {name!r}, {modality}"
            if fit.records[pick].get("ended") == "max_iter":
                warn_once(f"{what}: the solver did not converge in max_iter steps; raise max_iter")
            protocol = {
                self.knob: selection.grid[best],
                "selection_score": score,
                "n_train": len(all_rows(used)),
                **fit.records[pick],
                **selection.edge(best, self.knob, what),
            }
            home = space[parts[0]].device
            weight, bias = (of[pick].to(home, copy=True) for of in (fit.weights, fit.intercepts))
            head = LinearHead(weight, bias, normalise=self.normalise)
            heads[name] = (head, protocol)
        return heads

    def _cross_validate(
        self, x: Sequence[Tensor], target: Target, s: LabelSet, seed: int, device: torch.device | None
    ) -> tuple[int, float]:
        """Return which value of the grid has the best mean over folds, and that; all folds share the passes."""
        held = k_folds(target.labels, self.selection.n_folds, seed, classes=s.classes)
        targets = []
        for out in held:
            weight = torch.ones(len(target.labels))
            weight[out] = 0
            targets.append(replace(target, weight=weight))
        fits = self._solve(x, targets, [self.selection.grid] * len(held), device)
        return self._best([(fit, target.labels) for fit in fits], x, held, s, device)

    def _best(
        self,
        fits: Sequence[tuple[Candidates, Tensor]],
        x: Sequence[Tensor],
        held: Sequence[Tensor],
        s: LabelSet,
        device: torch.device | None,
    ) -> tuple[int, float]:
        """Return which candidate is best on the held-out rows, every item counting alike, and its score."""
        scores, truth = [], []
        for (fit, labels), rows in zip(fits, held, strict=True):
            out, weights, intercepts = [], fit.weights.to(device), fit.intercepts.to(device)
            for b in blocks(len(rows), READ_ROWS):
                block = take(x, rows[b]).to(weights)
                block = normalised(block) if self.normalise else block
                out.append(block @ weights.transpose(1, 2) + intercepts[:, None])
            scores.append(torch.cat(out, 1))
            truth.append(labels[rows])
        return best_for(torch.cat(scores, 1), torch.cat(truth), s, squared=self.squared)


def check_part(x: Tensor, part: Part, *, normalise: bool = False) -> None:
    """Check that all embeddings (n, dim) of a part are finite and, unless ``normalise``, of a size that can be squared.

    Raises:
        DataError: they are not; the message names the part, and the row or the size.
    """
    size = 0.0
    dtype = torch.promote_types(x.dtype, torch.float32)
    for b in blocks(len(x), READ_ROWS):
        size = max(size, largest(finite_rows(x[b], part, rows=torch.arange(b.start, b.stop))))
    if not normalise:
        way_out = "scale the embeddings, or say normalise=true"
        check_range(size, (x.shape[0], x.shape[1]), dtype, part, way_out=way_out)


def take(x: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Return ascending ``rows`` of tensors that follow one another.

    >>> take([torch.tensor([[0], [1]]), torch.tensor([[2], [3]])], torch.tensor([1, 2])).flatten().tolist()
    [1, 2]
    """
    return torch.cat(list(_pieces(x, rows)))


def _pieces(x: Sequence[Tensor], rows: Tensor) -> Iterator[Tensor]:
    start = 0
    for part in x:
        yield part[rows[(rows >= start) & (rows < start + len(part))] - start]
        start += len(part)
