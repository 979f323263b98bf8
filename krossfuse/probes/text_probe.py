"""Linear probe of text features by k-fold cross-validation, as in SentEval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Modality, Part
from krossfuse.data.common import stratified_split
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.labelled import check_every_class, part_labels
from krossfuse.probes.options import check_device, solving_device
from krossfuse.probes.rows import check_range, finite_rows, largest, unit_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.scoring import accuracy_measurements
from krossfuse.probes.selection import Selection, best_of, k_folds
from krossfuse.probes.solvers import Target, fit_logistic
from krossfuse.probes.space import EmbeddingSpace

PROTOCOLS = ("auto", "k-fold", "splits")


@dataclass(frozen=True)
class Round:
    """One round of fitting for each C, choosing C, refitting on both, and testing.

    Attributes:
        label_set: its name.
        labels: (n,) int64 of all rows.
        n_classes: number of classes K.
        fit: rows fitted for each C.
        select: rows on which C is chosen.
        test: rows that are tested.
    """

    label_set: str
    labels: Tensor
    n_classes: int
    fit: Tensor
    select: Tensor
    test: Tensor


@dataclass(frozen=True)
class Choice:
    """The chosen C and the refitted classifier: weight (K, dim), intercept (K,)."""

    C: float
    weight: Tensor
    intercept: Tensor


def folds_with_holdout(
    labels: Tensor, *, n_folds: int, holdout: float, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Cut the labelled rows into stratified folds, each the test rows once.

    Args:
        labels: (n,) int64, -1 where a row has no label (it is in no fold).
        n_folds: number of folds.
        holdout: share of a fold's training rows on which C is chosen, of every class alike.
        seed: of folds and held-out rows.

    Returns:
        The rows of each fold to fit, to select and to test on.
    """
    rows = (labels >= 0).nonzero().flatten()
    folds = []
    for index, test in enumerate(k_folds(labels, n_folds, seed)):
        others = rows[~torch.isin(rows, test)]
        parts = stratified_split(labels[others], {VAL: holdout}, seed=seed * n_folds + index)
        folds.append((others[parts[TRAIN]], others[parts[VAL]], test))
    return folds


def select_and_refit(x: Tensor, rounds: Sequence[Round], grid: Sequence[float], *, tol: float) -> list[Choice]:
    """Fit every round at every C, choose C by accuracy (log-loss among equals), and refit on both parts.

    All rounds share each pass over the features: a round is its labels with the rows that it must not see taken out.

    Args:
        x: (n, dim) features of all rows.
        rounds: what to fit, select and refit.
        grid: values of C.
        tol: of the solver.
    """
    fits = fit_logistic(x, [_target(r, r.fit) for r in rounds], C=grid, tol=tol)
    chosen = []
    for r, fit in zip(rounds, fits, strict=True):
        scores = torch.einsum("nd,ckd->cnk", x[r.select], fit.weights) + fit.intercepts[:, None]
        chosen.append(best_of(scores, r.labels[r.select])[0])
    values = sorted({grid[c] for c in chosen})
    refits = fit_logistic(x, [_target(r, torch.cat([r.fit, r.select])) for r in rounds], C=values, tol=tol)
    out = []
    for c, fit in zip(chosen, refits, strict=True):
        at = fit.at(values.index(grid[c]))
        out.append(Choice(grid[c], at.weights, at.intercepts))
    return out


def compared_features(u: Tensor, v: Tensor, *, unit: bool) -> Tensor:
    """Return the features of pairs of texts: |u − v| and u ∘ v (SentEval, arXiv 1803.05449).

    Args:
        u: (n, dim) features of the first texts.
        v: (n, dim) of the second ones.
        unit: whether rows have norm 1. Then entries are of the size 1/√dim and their products of 1/dim; products are
            multiplied by √dim, so that the penalty weighs both halves alike.

    Returns:
        (n, 2·dim).

    Examples:
        >>> compared_features(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]]), unit=False).tolist()
        [[2.0, 1.0, 3.0, 2.0]]
    """
    return torch.cat([(u - v).abs(), u * v * (u.shape[1] ** 0.5 if unit else 1.0)], dim=1)


def _target(r: Round, rows: Tensor) -> Target:
    labels = torch.full_like(r.labels, -1)
    labels[rows] = r.labels[rows]
    return Target(labels, r.n_classes)


class TextProbe(Probe):
    """Logistic regression on frozen text features, C chosen inside the training rows (SentEval, arXiv 1803.05449).

    By ``k-fold``, rows of all splits are joined and cut into stratified folds by the run's seed; in each, C is chosen
    on a held-out part of the training folds, and the classifier refitted on all of them. By ``splits``, C is chosen
    on the validation split, the classifier refitted on train and validation, and tested on the test split. All folds,
    values of C and label sets share each pass over the features.

    Where the labels are of pairs of texts u and v (MRPC), a pair's features are |u − v| and u ∘ v beside one another,
    as in SentEval; see :func:`compared_features`.

    Measurements: ``accuracy`` (over all tested items) and ``mean_per_class_accuracy``; by ``k-fold`` also
    ``fold_accuracy``, one a fold with the fold as ``subset_seed``.

    Args:
        protocol: ``"k-fold"``, ``"splits"``, or ``"auto"``: what the dataset says (``protocol`` in its fingerprint, so
            that sets with official splits use them), else k-fold.
        n_folds: number of folds.
        holdout: share of the training folds on which C is chosen.
        grid: values of C, the weight of the sum of losses against ½‖W‖².
        tol: bound on the gradient, relative to that at zero weights.
        normalise: whether features are scaled to norm 1 first.
        label_sets: names, or None for every single-label set whose classes all have enough items for the folds.
        device: where to solve; None is where the embeddings are, ``"auto"`` a CUDA device where there is one.
    """

    name = "text_probe"

    def __init__(
        self,
        *,
        protocol: Literal["auto", "k-fold", "splits"] = "auto",
        n_folds: int = 5,
        holdout: float = 0.1,
        grid: Sequence[float] = (0.1, 1.0, 10.0, 100.0, 1000.0),
        tol: float = 1e-3,
        normalise: bool = True,
        label_sets: Sequence[str] | None = None,
        device: str | None = None,
    ) -> None:
        check_choice("protocol", protocol, PROTOCOLS)
        check_positive("tol", tol)
        check_positive("holdout", holdout)
        if holdout >= 1:
            raise ConfigError(f"holdout={holdout} must be less than 1")
        selection = Selection(grid=grid, selection="k-fold", n_folds=n_folds)
        self.protocol = protocol
        self.n_folds = n_folds
        self.holdout = holdout
        self.grid = selection.grid
        self.tol = tol
        self.normalise = normalise
        self.device = check_device(device)
        self.scope = Scope(label_sets=label_sets, modalities=["text"], splits=[TRAIN], compared=True)

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from labelled texts to train on, enough of each class for the folds."""
        return self.scope.why_not(space, self._lacks)

    def _protocol(self, space: EmbeddingSpace) -> str:
        if self.protocol != "auto":
            return self.protocol
        return "splits" if space.info.fingerprint.get("protocol") == "splits" else "k-fold"

    def _lacks(self, space: EmbeddingSpace, modality: Modality, name: str) -> str | None:
        if self._protocol(space) == "splits":
            return None
        labels = torch.cat(list(self._labels(space, name).values()))
        try:
            check_every_class(
                labels[labels >= 0], space.info.label_sets[name].classes, at_least=self.n_folds, what="labelled"
            )
        except DataError as error:
            return f"{error}, one a fold; take fewer folds (n_folds), or a coarser label set"
        return None

    def _labels(self, space: EmbeddingSpace, name: str) -> dict[str, Tensor]:
        """Return the labels of each split's texts, -1 throughout where the label set leaves the split out."""
        splits = [split for split in SPLITS if Part(split, "text") in space]
        if space.info.compared:
            return {split: space.info.label_sets[name].labels[split] for split in splits}
        return {
            split: part_labels(space, split, "text", name)
            if split in space.info.label_sets[name].labels
            else torch.full((len(space[Part(split, "text")]),), -1)
            for split in splits
        }

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; ``seed`` decides the folds.

        Raises:
            ConfigError: a label set that the dataset does not have, or with several labels an item.
            DataError: a class has fewer items than folds, or none to train on; features have NaN.
        """
        self.check(space.info, space.parts)
        protocol = self._protocol(space)
        names = [name for _, name in self.scope.pairs(space, self._lacks)]
        rounds = [r for name in names for r in self._rounds(space, name, protocol, seed)]
        x = self._features(space)
        chosen = select_and_refit(x, rounds, self.grid, tol=self.tol)
        hits = [
            (x[r.test] @ c.weight.T + c.intercept).argmax(1).cpu() == r.labels[r.test]
            for r, c in zip(rounds, chosen, strict=True)
        ]
        measurements: list[Measurement] = []
        for name in names:
            of_set = [i for i, r in enumerate(rounds) if r.label_set == name]
            measurements += _measurements(
                [rounds[i] for i in of_set],
                [chosen[i].C for i in of_set],
                [hits[i] for i in of_set],
                protocol,
            )
        return ProbeResult(
            measurements,
            {
                "evaluation": protocol,
                "grid": list(self.grid),
                "tol": self.tol,
                "normalise": self.normalise,
                "selected_on": f"{self.holdout:g} of the training folds" if protocol == "k-fold" else VAL,
                "refit": True,
            },
        )

    def _features(self, space: EmbeddingSpace) -> Tensor:
        parts = [Part(split, "text") for split in SPLITS if Part(split, "text") in space]
        device = solving_device(self.device)
        read = [space[part].to(device, torch.promote_types(space[part].dtype, torch.float32)) for part in parts]
        both = zip(read, parts, strict=True)
        if space.info.compared:
            return torch.cat([self._compared(x, space.info.compared[part.split], part) for x, part in both])
        if self.normalise:
            return torch.cat([unit_rows(x, part, dtype=None) for x, part in both])
        for x, part in both:
            shape, way_out = (len(x), x.shape[1]), "scale the embeddings, or say normalise=true"
            check_range(largest(finite_rows(x, part)), shape, x.dtype, part, way_out=way_out)
        return torch.cat(read)

    def _compared(self, x: Tensor, rows: Tensor, part: Part) -> Tensor:
        texts = unit_rows(x, part, dtype=None) if self.normalise else finite_rows(x, part)
        made = compared_features(texts[rows[:, 0]], texts[rows[:, 1]], unit=self.normalise)
        what = f"pairs of {part}"
        check_range(largest(made), (len(made), made.shape[1]), made.dtype, what, way_out="say normalise=true")
        return made

    def _rounds(self, space: EmbeddingSpace, name: str, protocol: str, seed: int) -> list[Round]:
        label_set = space.info.label_sets[name]
        by_split = self._labels(space, name)
        labels = torch.cat(list(by_split.values()))
        n_classes = len(label_set.classes)
        if protocol == "splits":
            sizes = torch.tensor([len(y) for y in by_split.values()])
            first = dict(zip(by_split, (sizes.cumsum(0) - sizes).tolist(), strict=True))
            rows = {split: (y >= 0).nonzero().flatten() + first[split] for split, y in by_split.items()}
            for split in SPLITS:
                if not len(rows.get(split, [])):
                    raise DataError(f"no item of {Part(split, 'text')} of {space.info.name!r} has a label in {name!r}")
            check_every_class(labels[rows[TRAIN]], label_set.classes)
            return [Round(name, labels, n_classes, rows[TRAIN], rows[VAL], rows[TEST])]
        check_every_class(labels[labels >= 0], label_set.classes, at_least=self.n_folds, what="labelled")
        folds = folds_with_holdout(labels, n_folds=self.n_folds, holdout=self.holdout, seed=seed)
        return [Round(name, labels, n_classes, *fold) for fold in folds]


def _measurements(rounds: list[Round], selected: list[float], hits: list[Tensor], protocol: str) -> list[Measurement]:
    """Return the measurements of one label set, the items in the order of their rows whatever fold tested them."""
    name, labels = rounds[0].label_set, rounds[0].labels
    rows, order = torch.cat([r.test for r in rounds]).sort()
    accuracies = [float(h.double().mean()) for h in hits]
    shared: dict[str, Any] = {"n_test": len(rows), "n_train": len(rounds[0].fit) + len(rounds[0].select)}
    if protocol == "splits":
        shared |= {"split": TEST, "selected_C": selected[0]}
    else:
        shared |= {"folds": len(rounds), "selected_C": selected, "fold_accuracies": accuracies}
    measurements = accuracy_measurements(
        torch.cat(hits)[order], labels[rows], modality="text", label_set=name, protocol=shared
    )
    if protocol == "k-fold":
        for fold, (value, r, C, right) in enumerate(zip(accuracies, rounds, selected, hits, strict=True)):
            of_fold = {"subset_seed": fold, "selected_C": C, "n_test": len(r.test)}
            measurements.append(Measurement("fold_accuracy", value, "text", name, of_fold, right.float()))
    return measurements
