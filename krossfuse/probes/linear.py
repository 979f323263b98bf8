"""Linear probe: multinomial logistic regression, C chosen on held-out items, refitted on all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from krossfuse.data.base import TEST, TRAIN, VAL, LabelSet, Modality, Part
from krossfuse.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.probes.base import EmbeddingSpace, Figure, Probe, ProbeResult
from krossfuse.probes.rows import (
    accuracy_figures,
    best_of,
    blocks,
    check_every_class,
    check_modalities,
    check_names,
    finite_rows,
    labelled,
    part_labels,
)
from krossfuse.probes.solvers import LogisticFit, Target, fit_logistic

SELECTIONS = ("val", "k-fold")
IN_MEMORY = 512 << 20
"""Bytes up to which training and validation rows are joined in memory; above, in an unnamed temporary file."""


class LinearHead(nn.Module):
    """Class scores Wz + b of embeddings z.

    Args:
        weight: (classes, dim).
        bias: (classes,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return (n, classes) scores of (n, dim) embeddings."""
        return embeddings.to(self.weight.dtype) @ self.weight.T + self.bias


def stack_rows(tensors: Sequence[Tensor], *, in_memory: int = IN_MEMORY) -> Tensor:
    """Return the rows of several (n_i, d) tensors below one another, memory-mapped where they are large.

    >>> stack_rows([torch.zeros(2, 3), torch.ones(1, 3)]).sum(1).tolist()
    [0.0, 0.0, 3.0]
    """
    if len(tensors) == 1:
        return tensors[0]
    rows, dim = sum(len(t) for t in tensors), tensors[0].shape[1]
    if rows * dim * tensors[0].element_size() <= in_memory:
        return torch.cat(list(tensors))
    dtype = torch.empty(0, dtype=tensors[0].dtype).numpy().dtype
    with tempfile.TemporaryFile(prefix="krossfuse-") as file:
        mapped = np.memmap(file, dtype=dtype, mode="w+", shape=(rows, dim))
    joined, start = torch.from_numpy(mapped), 0
    for tensor in tensors:
        for block in blocks(len(tensor), 4096):
            joined[start + block.start : start + block.stop] = tensor[block]
        start += len(tensor)
    return joined


class LinearProbe(Probe):
    """Linear probe: multinomial logistic regression on frozen embeddings (method.md, section 8).

    The objective is scikit-learn's, ``C·Σ log-loss + ½‖W‖²`` with an unpenalised intercept. C is the most accurate of
    a grid on held-out items (log-loss decides among equals), then the fit is repeated with that C on training and
    validation items together. All label sets of a modality share the passes over the data. Items without a label in a
    set take no part in it. A multilabel set gets one logistic regression a class, and C by mean average precision.

    Figures, by label set, modality and split: ``accuracy``, ``mean_per_class_accuracy`` (over the classes present),
    ``top5_accuracy`` where there are more than five classes; ``mean_average_precision`` where multilabel. Heads are
    named ``<label set>/<modality>``.

    Args:
        grid: values of C.
        selection: ``"val"``, on the validation split, or ``"k-fold"``, over training and validation items.
        n_folds: of ``"k-fold"``; stratified, shuffled by the run's seed.
        refit: fit anew on training and validation items with the C chosen; with ``"k-fold"`` it must.
        tol: bound on the gradient's largest entry, relative to that at zero weights.
        max_iter: steps at most, for each C.
        label_sets: names, or None for all.
        modalities: of the items that are probed, where the space has them with labels.
        split: the split that is tested.
        extra_splits: further splits on which the same heads are tested.
        block_rows: rows read at once; None is some 64 MB of them.
        device: where to solve; None is where the embeddings are.
    """

    name = "linear_probe"

    def __init__(
        self,
        *,
        grid: Sequence[float] = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4),
        selection: str = "val",
        n_folds: int = 5,
        refit: bool = True,
        tol: float = 1e-3,
        max_iter: int = 1000,
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image", "text"),
        split: str = TEST,
        extra_splits: Sequence[str] = (),
        block_rows: int | None = None,
        device: str | None = None,
    ) -> None:
        if isinstance(grid, str) or not len(grid):
            raise ConfigError(f"grid={grid!r} must be a list of values of C")
        for value in grid:
            check_positive("grid", value)
        self.grid = sorted({float(value) for value in grid})
        self.selection = check_choice("selection", selection, SELECTIONS)
        check_positive("n_folds", n_folds, integer=True)
        if n_folds < 2:
            raise ConfigError(f"n_folds={n_folds} must be 2 or more")
        if selection == "k-fold" and not refit:
            raise ConfigError("selection='k-fold' has no fit of its own to test: refit must be true")
        check_positive("tol", tol)
        check_positive("max_iter", max_iter, integer=True)
        if block_rows is not None:
            check_positive("block_rows", block_rows, integer=True)
        self.n_folds, self.refit, self.tol, self.max_iter = n_folds, refit, tol, max_iter
        self.label_sets = None if label_sets is None else check_names("label_sets", label_sets)
        self.modalities = check_modalities(modalities)
        self.splits = [split, *extra_splits]
        self.block_rows, self.device = block_rows, device

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
        """Measure; ``seed`` shuffles the folds of ``"k-fold"`` and is otherwise without effect.

        Raises:
            DataError: a class without training items, a set with one class, no validation split to choose C on, a
                label out of range, or features with NaN.
        """
        figures: list[Figure] = []
        heads: dict[str, nn.Module] = {}
        for modality, names in self._pairs(space).items():
            if not names:
                continue
            fitted = self._fit(space, modality, names, seed)
            for name, (head, protocol) in fitted.items():
                heads[f"{name}/{modality}"] = head
                for split in self.splits:
                    if Part(split, modality) in space and split in space.info.label_sets[name].labels:
                        figures += self._test(space, name, Part(split, modality), head, protocol)
        protocol = {
            "classifier": "logistic regression",
            "grid": self.grid,
            "selection": self.selection,
            "refit": "train+val" if self.refit else "",
            "tol": self.tol,
        }
        return ProbeResult(figures, protocol, heads)

    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        train, val = Part(TRAIN, modality), Part(VAL, modality)
        has_val = val in space and all(VAL in space.info.label_sets[name].labels for name in names)
        if not has_val and self.selection == "val":
            raise DataError(
                f"{space.info.name!r} has no validation split for {modality} to choose C on; say selection=k-fold"
            )
        sets = {name: space.info.label_sets[name] for name in names}
        parts = [train, val] if has_val else [train]
        for part in parts:
            for block in blocks(len(space[part]), 4096):
                at = torch.arange(block.start, block.stop)
                finite_rows(space[part][block], part, rows=at)
        labels = {part: {name: _labels(space, part, name) for name in names} for part in parts}
        for name, label_set in sets.items():
            _check_classes(name, label_set, labels[train][name])
        joined = {name: torch.cat([labels[part][name] for part in parts]) for name in names}
        x = stack_rows([space[part] for part in parts]) if self.refit else space[train]

        if self.selection == "val":
            targets = [Target(labels[train][n], len(s.classes), s.multilabel) for n, s in sets.items()]
            first = self._solve(space[train], targets, self.grid)
            chosen = {
                name: _best(fit, space[val], labels[val][name], sets[name])
                for name, fit in zip(names, first, strict=True)
            }
        else:
            first = []
            chosen = {name: self._cross_validate(x, joined[name], sets[name], seed) for name in names}

        if self.refit:
            final = [
                self._solve(x, [Target(joined[n], len(s.classes), s.multilabel)], [self.grid[chosen[n][0]]])[0]
                for n, s in sets.items()
            ]
            picks = [0] * len(final)
        else:
            final, picks = first, [chosen[name][0] for name in names]
        found = {}
        for name, fit, pick in zip(names, final, picks, strict=True):
            rows = joined[name] if self.refit else labels[train][name]
            found[name] = (
                LinearHead(fit.weights[pick], fit.intercepts[pick]),
                {
                    "C": self.grid[chosen[name][0]],
                    "selection_score": chosen[name][1],
                    "n_train": len(rows) if sets[name].multilabel else int((rows >= 0).sum()),
                    "iterations": int(fit.iterations[pick]),
                    "gradient": float(fit.gradient[pick]),
                    "converged": bool(fit.converged[pick]),
                },
            )
        return found

    def _solve(self, x: Tensor, targets: list[Target], grid: Sequence[float]) -> list[LogisticFit]:
        return fit_logistic(
            x,
            targets,
            C=grid,
            tol=self.tol,
            max_iter=self.max_iter,
            block_rows=self.block_rows,
            device=self.device,
        )

    def _cross_validate(self, x: Tensor, labels: Tensor, label_set: LabelSet, seed: int) -> tuple[int, float]:
        """Return which C has the highest mean score over the folds, and that score; all folds share the passes."""
        rows = torch.arange(len(labels)) if label_set.multilabel else (labels >= 0).nonzero().flatten()
        strata = torch.zeros(len(rows)) if label_set.multilabel else labels[rows]
        counts = torch.bincount(strata.long())
        if int(counts[counts > 0].min()) < self.n_folds:
            least = int(counts[counts > 0].min())
            raise DataError(f"a class has {least} items to choose C on, fewer than n_folds={self.n_folds}")
        folds = StratifiedKFold(self.n_folds, shuffle=True, random_state=seed).split(rows, strata)
        held = [rows[torch.from_numpy(test)] for _, test in folds]
        targets = []
        for out in held:
            weight = torch.ones(len(labels))
            weight[out] = 0
            targets.append(Target(labels, len(label_set.classes), label_set.multilabel, weight))
        fits = self._solve(x, targets, self.grid)
        scores = torch.tensor(
            [
                [_score(fit, c, x[out], labels[out], label_set) for c in range(len(self.grid))]
                for fit, out in zip(fits, held, strict=True)
            ]
        ).mean(0)
        best = int(scores.argmax())
        return best, float(scores[best])

    @torch.no_grad()
    def _test(
        self, space: EmbeddingSpace, name: str, part: Part, head: LinearHead, protocol: dict[str, Any]
    ) -> list[Figure]:
        label_set = space.info.label_sets[name]
        head = head.to(space[part].device)
        if label_set.multilabel:
            truth = space.info.labels(name, part)
            scores = torch.cat([head(finite_rows(space[part][b], part)) for b in blocks(len(truth), 4096)])
            shared = {**protocol, "split": part.split, "n_test": len(truth), "n_classes": len(label_set.classes)}
            precision = mean_average_precision(scores, truth)
            return [Figure("mean_average_precision", precision, part.modality, name, shared)]
        rows, labels = labelled(space, part.split, part.modality, name)
        correct, top5 = [], []
        for block in blocks(len(rows), 4096):
            scores = head(finite_rows(space[part][rows[block]], part, rows=rows[block]))
            correct.append(scores.argmax(1) == labels[block])
            own = scores.gather(1, labels[block][:, None])
            top5.append((scores > own).sum(1) < 5)
        classes = len(label_set.classes)
        return accuracy_figures(
            torch.cat(correct),
            labels,
            modality=part.modality,
            label_set=name,
            protocol={**protocol, "split": part.split, "n_test": len(rows), "n_classes": classes},
            in_top5=torch.cat(top5) if classes > 5 else None,
        )


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes with a positive item of the average precision, as in torchmetrics.

    Args:
        scores: (n, classes).
        labels: (n, classes) bool.
    """
    from torchmetrics.functional.classification import multilabel_average_precision

    present = labels.any(0)
    by_class = multilabel_average_precision(
        scores[:, present], labels[:, present].long(), num_labels=int(present.sum()), average=None
    )
    return float(by_class.mean())


def _labels(space: EmbeddingSpace, part: Part, name: str) -> Tensor:
    if space.info.label_sets[name].multilabel:
        return space.info.labels(name, part)
    return part_labels(space, part.split, part.modality, name)


def _check_classes(name: str, label_set: LabelSet, train: Tensor) -> None:
    if label_set.multilabel:
        missing = [label_set.classes[i] for i in torch.nonzero(~train.any(0)).flatten().tolist()]
        if missing:
            raise DataError(f"label set {name!r}: classes {missing} have no training items")
        return
    if len(label_set.classes) < 2:
        raise DataError(f"label set {name!r} has one class, {label_set.classes[0]!r}: there is nothing to tell apart")
    check_every_class(train[train >= 0], label_set.classes)


def _score(fit: LogisticFit, pick: int, x: Tensor, labels: Tensor, label_set: LabelSet) -> float:
    scores = LinearHead(fit.weights[pick], fit.intercepts[pick])(x)
    if label_set.multilabel:
        return mean_average_precision(scores, labels)
    return float((scores.argmax(1) == labels).double().mean())


def _best(fit: LogisticFit, x: Tensor, labels: Tensor, label_set: LabelSet) -> tuple[int, float]:
    """Return which C does best on held-out items, and its score there."""
    n = len(fit.weights)
    if label_set.multilabel:
        found = [_score(fit, pick, x, labels, label_set) for pick in range(n)]
        return int(np.argmax(found)), max(found)
    rows = (labels >= 0).nonzero().flatten()
    if not len(rows):
        raise DataError("no validation item has a label to choose C on; say selection=k-fold")
    by_block = [
        torch.stack([LinearHead(w, b)(x[rows[block]]) for w, b in zip(fit.weights, fit.intercepts, strict=True)])
        for block in blocks(len(rows), 4096)
    ]
    return best_of(torch.cat(by_block, 1), labels[rows])
