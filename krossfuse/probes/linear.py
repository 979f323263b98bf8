"""Linear probe: multinomial logistic regression, its C chosen on held-out items, refitted on all of them.

The base classes here also carry the ridge and SGD probes: what is probed, which items select, what is reported.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.labels import LabelSet
from krossfuse.core.parts import TEST, TRAIN, VAL, Modality, Part
from krossfuse.probes.base import EmbeddingSpace, Measurement, Probe, ProbeResult
from krossfuse.probes.rows import (
    accuracy_measurements,
    best_of,
    check_every_class,
    check_modalities,
    check_names,
    finite_rows,
    labelled,
    part_labels,
)
from krossfuse.probes.solvers import Target, fit_logistic

SELECTIONS = ("val", "k-fold")
_BLOCK = 4096


class LinearHead(nn.Module):
    """Class scores Wz + b of embeddings z, or of z/‖z‖.

    Args:
        weight: (classes, dim).
        bias: (classes,).
        normalise: scale embeddings to Euclidean norm 1 first.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, normalise: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.normalise = normalise

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return (n, classes) scores of (n, dim) embeddings."""
        z = embeddings.to(self.weight.dtype)
        if self.normalise:
            z = nn.functional.normalize(z, dim=1)
        return z @ self.weight.T + self.bias


@dataclass(frozen=True)
class Candidates:
    """Heads of one label set, fitted alike but for one hyper-parameter.

    Attributes:
        weights: (n, classes, dim).
        intercepts: (n, classes).
        records: of each, what its fit says of itself.
    """

    weights: Tensor
    intercepts: Tensor
    records: Sequence[dict[str, Any]]


class HeadProbe(Probe):
    """A probe of linear heads, one for each label set and modality.

    Figures, by label set, modality and split: ``accuracy``, ``mean_per_class_accuracy`` (over the classes present),
    ``top5_accuracy`` where there are more than five classes; ``mean_average_precision`` where multilabel. Heads are
    named ``<label set>/<modality>``.

    Args:
        label_sets: names, or None for all.
        modalities: of the items that are probed, where the space has them with labels.
        split: the split that is tested.
        extra_splits: further splits on which the same heads are tested.
    """

    def __init__(
        self,
        *,
        label_sets: Sequence[str] | None,
        modalities: Sequence[Modality],
        split: str,
        extra_splits: Sequence[str],
    ) -> None:
        self.label_sets = None if label_sets is None else check_names("label_sets", label_sets)
        self.modalities = check_modalities(modalities)
        self.splits = [split, *extra_splits]

    @abstractmethod
    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        """Return by label set the head and the protocol of its fit."""

    @abstractmethod
    def _protocol(self) -> dict[str, Any]:
        """Return the protocol that all measurements share."""

    def _pairs(self, space: EmbeddingSpace) -> dict[Modality, list[str]]:
        """Return the label sets to probe by modality."""
        for name in self.label_sets or []:
            if name not in space.info.label_sets:
                have = list(space.info.label_sets)
                raise DataError(f"dataset {space.info.name!r} has no label set {name!r}; it has {have}")
        names = self.label_sets or list(space.info.label_sets)
        needed = [TRAIN, self.splits[0]]
        return {
            modality: [name for name in names if all(s in space.info.label_sets[name].labels for s in needed)]
            for modality in self.modalities
            if all(Part(split, modality) in space for split in needed)
        }

    def applies(self, space: EmbeddingSpace) -> bool:
        """Whether it has labelled training and test items of one of the modalities."""
        return any(self._pairs(space).values())

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure.

        Raises:
            DataError: a class without training items, a set with one class, no validation split to select on, a
                label out of range, or features with NaN.
        """
        measurements: list[Measurement] = []
        heads: dict[str, nn.Module] = {}
        for modality, names in self._pairs(space).items():
            if not names:
                continue
            for name in names:
                check_label_set(space, name, Part(TRAIN, modality))
            for name, (head, protocol) in self._fit(space, modality, names, seed).items():
                heads[f"{name}/{modality}"] = head
                for split in self.splits:
                    if Part(split, modality) in space and split in space.info.label_sets[name].labels:
                        measurements += head_measurements(space, name, Part(split, modality), head, protocol)
        return ProbeResult(measurements, self._protocol(), heads)


class GridProbe(HeadProbe):
    """Heads whose one hyper-parameter is chosen from a grid on held-out items, then fitted on all of them.

    Args:
        grid: values of the hyper-parameter.
        selection: ``"val"``, on the validation split, or ``"k-fold"``, over training and validation items.
        n_folds: of ``"k-fold"``; stratified, shuffled by the run's seed.
        refit: fit anew on training and validation items with the value chosen; with ``"k-fold"`` it must.
        normalise: scale embeddings to Euclidean norm 1.
        block_rows: rows read at once; None is some 64 MB of them.
        device: where to solve; None is where the embeddings are.
        heads: arguments of :class:`HeadProbe`.
    """

    knob: str
    """Name of the hyper-parameter in the protocol."""
    squared: bool
    """Whether the loss is the squared error, or the log-loss."""

    def __init__(
        self,
        *,
        grid: Sequence[float],
        selection: str,
        n_folds: int,
        refit: bool,
        normalise: bool,
        block_rows: int | None,
        device: str | None,
        **heads: Any,
    ) -> None:
        super().__init__(**heads)
        self.grid = check_grid("grid", grid)
        self.selection = check_choice("selection", selection, SELECTIONS)
        check_positive("n_folds", n_folds, integer=True)
        if n_folds < 2:
            raise ConfigError(f"n_folds={n_folds} must be 2 or more")
        if selection == "k-fold" and not refit:
            raise ConfigError("selection='k-fold' has no fit of its own to test: refit must be true")
        if block_rows is not None:
            check_positive("block_rows", block_rows, integer=True)
        self.n_folds, self.refit, self.normalise = n_folds, refit, normalise
        self.block_rows, self.device = block_rows, device

    @abstractmethod
    def _solve(
        self, x: Sequence[Tensor], targets: Sequence[Target], grids: Sequence[Sequence[float]]
    ) -> list[Candidates]:
        """Fit each target at each value of its grid; the rows of ``x`` follow one another."""

    def _protocol(self) -> dict[str, Any]:
        return {
            "grid": self.grid,
            "selection": self.selection if self.selection == "val" else f"{self.n_folds}-fold",
            "refit": "train+val" if self.refit else "",
            "normalise": self.normalise,
        }

    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        parts = selection_parts(space, modality, names, required=self.selection == "val")
        x = [space[part] for part in parts]
        sets = [space.info.label_sets[name] for name in names]
        labels = [[item_labels(space, part, name) for part in parts] for name in names]
        joined = [torch.cat(own) for own in labels]
        train = [Target(own[0], len(s.classes), s.multilabel) for own, s in zip(labels, sets, strict=True)]
        both = [replace(target, labels=y) for target, y in zip(train, joined, strict=True)]
        every = [self.grid] * len(names)
        if self.selection == "val":
            first = self._solve(x[:1], train, every)
            chosen = [
                self._best([(f, y[1])], x[1:], [all_rows(y[1])], s) for f, y, s in zip(first, labels, sets, strict=True)
            ]
        else:
            first = []
            chosen = [self._cross_validate(x, target, s, seed) for target, s in zip(both, sets, strict=True)]
        final, picks = first, [pick for pick, _ in chosen]
        if self.refit:
            final = self._solve(x, both, [[self.grid[pick]] for pick in picks])
            picks = [0] * len(names)
        found = {}
        for i, name in enumerate(names):
            fit, pick, used = final[i], picks[i], (joined if self.refit else [y[0] for y in labels])[i]
            protocol = {
                self.knob: self.grid[chosen[i][0]],
                "selection_score": chosen[i][1],
                "n_train": len(all_rows(used)),
                **fit.records[pick],
            }
            head = LinearHead(fit.weights[pick].clone(), fit.intercepts[pick].clone(), normalise=self.normalise)
            found[name] = (head, protocol)
        return found

    def _cross_validate(self, x: Sequence[Tensor], target: Target, s: LabelSet, seed: int) -> tuple[int, float]:
        """Return which value of the grid has the best mean over folds, and that; all folds share the passes."""
        held = k_folds(target.labels, self.n_folds, seed)
        targets = []
        for out in held:
            weight = torch.ones(len(target.labels))
            weight[out] = 0
            targets.append(replace(target, weight=weight))
        fits = self._solve(x, targets, [self.grid] * len(held))
        return self._best([(fit, target.labels) for fit in fits], x, held, s)

    def _best(
        self, fits: Sequence[tuple[Candidates, Tensor]], x: Sequence[Tensor], held: Sequence[Tensor], s: LabelSet
    ) -> tuple[int, float]:
        """Return which candidate is best on the held-out rows, every item counting alike, and its score."""
        scores, truth = [], []
        for (fit, labels), rows in zip(fits, held, strict=True):
            out = []
            for b in blocks(len(rows), _BLOCK):
                block = take(x, rows[b]).to(fit.weights)
                block = nn.functional.normalize(block, dim=1) if self.normalise else block
                out.append(block @ fit.weights.transpose(1, 2) + fit.intercepts[:, None])
            scores.append(torch.cat(out, 1))
            truth.append(labels[rows])
        return select(torch.cat(scores, 1), torch.cat(truth), s, squared=self.squared)


class LinearProbe(GridProbe):
    """Linear probe: multinomial logistic regression on frozen embeddings (method.md, section 8).

    The objective is scikit-learn's, ``C·Σ log-loss + ½‖W‖²`` with an unpenalised intercept, solved to a stated
    tolerance. C is the most accurate of a grid on held-out items (log-loss decides among equals), then the fit is
    repeated with that C on training and validation items together. All label sets of a modality share the passes over
    the data. Items without a label in a set take no part in it. A multilabel set gets one logistic regression a
    class, and C by mean average precision. Figures and heads: see :class:`HeadProbe`.

    Args:
        grid: values of C.
        selection: ``"val"``, on the validation split, or ``"k-fold"``, over training and validation items.
        n_folds: of ``"k-fold"``; stratified, shuffled by the run's seed.
        refit: fit anew on training and validation items with the C chosen; with ``"k-fold"`` it must.
        tol: bound on the gradient's largest entry, relative to that at zero weights.
        max_iter: steps at most, for each C.
        path: solve the grid C by C, each from the last; else all at once, with fewer passes over the data.
        normalise: scale embeddings to Euclidean norm 1.
        label_sets: names, or None for all.
        modalities: of the items that are probed, where the space has them with labels.
        split: the split that is tested.
        extra_splits: further splits on which the same heads are tested.
        block_rows: rows read at once; None is some 64 MB of them.
        device: where to solve; None is where the embeddings are.
    """

    name = "linear_probe"
    knob = "C"
    squared = False

    def __init__(
        self,
        *,
        grid: Sequence[float] = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3),
        selection: str = "val",
        n_folds: int = 5,
        refit: bool = True,
        tol: float = 1e-3,
        max_iter: int = 1000,
        path: bool = True,
        normalise: bool = False,
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image", "text"),
        split: str = TEST,
        extra_splits: Sequence[str] = (),
        block_rows: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            grid=grid,
            selection=selection,
            n_folds=n_folds,
            refit=refit,
            normalise=normalise,
            block_rows=block_rows,
            device=device,
            label_sets=label_sets,
            modalities=modalities,
            split=split,
            extra_splits=extra_splits,
        )
        check_positive("tol", tol)
        check_positive("max_iter", max_iter, integer=True)
        self.tol, self.max_iter, self.path = tol, max_iter, path

    def _protocol(self) -> dict[str, Any]:
        return {"classifier": "logistic regression", **super()._protocol(), "tol": self.tol, "max_iter": self.max_iter}

    def _solve(
        self, x: Sequence[Tensor], targets: Sequence[Target], grids: Sequence[Sequence[float]]
    ) -> list[Candidates]:
        fits = fit_logistic(
            x,
            [replace(target, C=grid) for target, grid in zip(targets, grids, strict=True)],
            C=grids[0],
            tol=self.tol,
            max_iter=self.max_iter,
            path=self.path,
            normalise=self.normalise,
            block_rows=self.block_rows,
            device=self.device,
        )
        out = []
        for fit in fits:
            reached = zip(fit.iterations.tolist(), fit.gradient.tolist(), fit.converged.tolist(), strict=True)
            records = [{"iterations": i, "gradient": g, "converged": c} for i, g, c in reached]
            out.append(Candidates(fit.weights, fit.intercepts, records))
        return out


# What the probes of linear heads and the kernel probe share.


def check_grid(name: str, grid: Sequence[float]) -> list[float]:
    """Return the values of ``grid``, ascending, without repeats.

    Raises:
        ConfigError: it is empty, or a value is not positive.
    """
    if not isinstance(grid, Sequence) or not len(grid):
        raise ConfigError(f"{name}={grid!r} must be a list of positive numbers that is not empty")
    for value in grid:
        check_positive(name, value)
    return sorted({float(value) for value in grid})


def item_labels(space: EmbeddingSpace, part: Part, name: str) -> Tensor:
    """Return the labels of a part: (n,) int64 with -1, or (n, classes) bool where multilabel.

    Raises:
        DataError: they are missing, of another number than the rows, or out of range.
    """
    if not space.info.label_sets[name].multilabel:
        return part_labels(space, part.split, part.modality, name)
    labels = space.info.labels(name, part)
    expected = (len(space[part]), len(space.info.label_sets[name].classes))
    if tuple(labels.shape) != expected:
        raise DataError(f"label set {name!r} has labels {tuple(labels.shape)} for {part}, but it must be {expected}")
    return labels


def all_rows(labels: Tensor) -> Tensor:
    """Return the rows that have a label; in a multilabel set all have.

    >>> all_rows(torch.tensor([0, -1, 2])).tolist()
    [0, 2]
    """
    return torch.arange(len(labels)) if labels.ndim == 2 else (labels >= 0).nonzero().flatten()


def check_label_set(space: EmbeddingSpace, name: str, train: Part) -> None:
    """Check that there are two classes or more (one, if multilabel), each with a training item.

    Raises:
        DataError: there are not.
    """
    s, labels = space.info.label_sets[name], item_labels(space, train, name)
    if s.multilabel:
        missing = [s.classes[i] for i in torch.nonzero(~labels.bool().any(0)).flatten().tolist()]
        if missing:
            raise DataError(f"label set {name!r}: classes {missing} have no training items in {train}")
        return
    if len(s.classes) < 2:
        raise DataError(f"label set {name!r} has one class, {s.classes[0]!r}: there is nothing to tell apart")
    check_every_class(labels[labels >= 0], s.classes)


def selection_parts(space: EmbeddingSpace, modality: Modality, names: Sequence[str], *, required: bool) -> list[Part]:
    """Return the training part and, where every label set has labels there, the validation part; check both for NaN.

    Raises:
        DataError: a value is NaN, or there are no validation items with labels and they are required.
    """
    parts = [Part(TRAIN, modality), Part(VAL, modality)]
    if parts[1] not in space or not all(VAL in space.info.label_sets[name].labels for name in names):
        if required:
            raise DataError(
                f"{space.info.name!r} has no {modality} items with labels in the split {VAL!r} to select on; "
                "say selection=k-fold"
            )
        del parts[1]
    for name in names if required else []:
        labels = item_labels(space, parts[1], name)
        if not bool((labels.any() if labels.ndim == 2 else labels >= 0).any()):
            raise DataError(f"no item of {parts[1]} has a label in {name!r} to select on; say selection=k-fold")
    for part in parts:
        for b in blocks(len(space[part]), _BLOCK):
            finite_rows(space[part][b], part, rows=torch.arange(b.start, b.stop))
    return parts


def k_folds(labels: Tensor, n_folds: int, seed: int) -> list[Tensor]:
    """Return the held-out rows of each fold, ascending: stratified by class (not if multilabel), shuffled by ``seed``.

    Raises:
        DataError: a class has fewer items than there are folds.
    """
    rows = all_rows(labels)
    strata = labels[rows] if labels.ndim == 1 else torch.zeros(len(rows), dtype=torch.int64)
    counts = torch.bincount(strata)
    least = int(counts[counts > 0].min())
    if least < n_folds:
        raise DataError(f"a class has {least} items to select on, fewer than n_folds={n_folds}; take fewer folds")
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, strata)
    return [rows[torch.from_numpy(test)] for _, test in folds]


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


def select(scores: Tensor, labels: Tensor, label_set: LabelSet, *, squared: bool) -> tuple[int, float]:
    """Return which of several classifiers is best on held-out items, and its accuracy (multilabel: mAP) there.

    Args:
        scores: (classifiers, n, classes).
        labels: (n,) int64, or (n, classes) bool.
        label_set: what is labelled.
        squared: whether the squared error to targets ±1 decides among equally accurate ones, or the log-loss.
    """
    if label_set.multilabel:
        found = [mean_average_precision(own, labels) for own in scores]
        best = max(range(len(found)), key=found.__getitem__)
        return best, found[best]
    return best_of(scores, labels, squared=squared)


@torch.no_grad()
def head_measurements(
    space: EmbeddingSpace, name: str, part: Part, head: LinearHead, protocol: dict[str, Any]
) -> list[Measurement]:
    """Return the measurements of a head on a part."""
    label_set = space.info.label_sets[name]
    if label_set.multilabel:
        rows, labels = torch.arange(len(space[part])), item_labels(space, part, name)
    else:
        rows, labels = labelled(space, part.split, part.modality, name)
    scores = [head(finite_rows(space[part][rows[b]], part, rows=rows[b])) for b in blocks(len(rows), _BLOCK)]
    return score_measurements(torch.cat(scores), labels, label_set, name, part, protocol)


def score_measurements(
    scores: Tensor, labels: Tensor, label_set: LabelSet, name: str, part: Part, protocol: dict[str, Any]
) -> list[Measurement]:
    """Return the measurements of (n, classes) scores of the labelled items of a part."""
    classes = len(label_set.classes)
    shared = {**protocol, "split": part.split, "n_test": len(labels), "n_classes": classes}
    if label_set.multilabel:
        precision = mean_average_precision(scores, labels)
        return [Measurement("mean_average_precision", precision, part.modality, name, shared)]
    above = (scores > scores.gather(1, labels[:, None])).sum(1)
    return accuracy_measurements(
        scores.argmax(1) == labels,
        labels,
        modality=part.modality,
        label_set=name,
        protocol=shared,
        in_top5=above < 5 if classes > 5 else None,
    )


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes with a positive item of the average precision, as torchmetrics computes it.

    Args:
        scores: (n, classes).
        labels: (n, classes) bool.
    """
    from torchmetrics.functional.classification import multilabel_average_precision

    # torchmetrics would squash scores by a sigmoid, which saturates into ties; ranks within [0, 1) it leaves alone.
    columns = [torch.unique(column, return_inverse=True)[1] for column in scores.T]
    ranks = torch.stack(columns, 1).double() / len(scores)
    present = labels.bool().any(0)
    by_class = multilabel_average_precision(
        ranks[:, present], labels[:, present].long(), num_labels=int(present.sum()), average=None
    )
    return float(by_class.mean())
