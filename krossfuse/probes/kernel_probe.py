"""Kernel probe: ridge and logistic regression in the dual, on the exact kernel behind an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import TEST, TRAIN, Modality, Part
from krossfuse.probes.base import EmbeddingSpace, Measurement, Probe, ProbeResult
from krossfuse.probes.linear import (
    SELECTIONS,
    Candidates,
    all_rows,
    check_grid,
    check_label_set,
    item_labels,
    k_folds,
    score_measurements,
    select,
    selection_parts,
)
from krossfuse.probes.ridge import signs
from krossfuse.probes.rows import check_modalities, check_names, labelled
from krossfuse.probes.solvers import Target, fit_kernel_logistic, fit_kernel_ridge

CLASSIFIERS = ("logistic", "ridge")
_BLOCK = 1024


class KernelProbe(Probe):
    """Ridge and logistic regression on the exact kernel of a fusion method, without the error of any sketch.

    In the dual, scores are ``Σᵢ aᵢ·k(·, xᵢ) + b``; the objectives are those of
    :class:`~krossfuse.probes.RidgeProbe` and :class:`~krossfuse.probes.LinearProbe` in the kernel's feature space, so
    for a linear kernel they are equal. Time grows with n³ and memory with n², hence ``max_items``. Figures, by
    classifier (in the protocol): as of the linear probe.

    Args:
        classifiers: of ``"logistic"`` and ``"ridge"``.
        C: grid of ``"logistic"``, weight of the sum of losses against half the squared norm.
        alphas: grid of ``"ridge"``.
        selection: ``"val"``, on the validation split, or ``"k-fold"``, over training and validation items. The
            classifier is then fitted on both with the value chosen.
        n_folds: of ``"k-fold"``; stratified, shuffled by the run's seed.
        tol: of ``"logistic"``, bound on the gradient relative to that at zero weights.
        max_iter: of ``"logistic"``, steps at most for each C.
        max_items: training and validation items at most; more is an error.
        label_sets: names, or None for all.
        modalities: of the items that are probed, where the space has them with labels.
        split: the split that is tested.
    """

    name = "kernel_probe"

    def __init__(
        self,
        *,
        classifiers: Sequence[str] = CLASSIFIERS,
        C: Sequence[float] = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3),
        alphas: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3),
        selection: str = "val",
        n_folds: int = 5,
        tol: float = 1e-3,
        max_iter: int = 1000,
        max_items: int = 5000,
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image", "text"),
        split: str = TEST,
    ) -> None:
        self.classifiers = check_names("classifiers", classifiers, CLASSIFIERS)
        self.grids = {"logistic": check_grid("C", C), "ridge": check_grid("alphas", alphas)}
        self.selection = check_choice("selection", selection, SELECTIONS)
        for name, value in {"n_folds": n_folds, "max_iter": max_iter, "max_items": max_items}.items():
            check_positive(name, value, integer=True)
        check_positive("tol", tol)
        if n_folds < 2:
            raise ConfigError(f"n_folds={n_folds} must be 2 or more")
        self.n_folds, self.tol, self.max_iter, self.max_items = n_folds, tol, max_iter, max_items
        self.label_sets = None if label_sets is None else check_names("label_sets", label_sets)
        self.modalities = check_modalities(modalities)
        self.split = split

    def _pairs(self, space: EmbeddingSpace) -> list[tuple[Modality, str]]:
        sets = space.info.label_sets
        for name in self.label_sets or []:
            if name not in sets:
                raise DataError(f"dataset {space.info.name!r} has no label set {name!r}; it has {list(sets)}")
        return [
            (modality, name)
            for modality in self.modalities
            for name in self.label_sets or sets
            if all(Part(s, modality) in space and s in sets[name].labels for s in (TRAIN, self.split))
        ]

    def applies(self, space: EmbeddingSpace) -> bool:
        """Whether it has an exact kernel, and labelled training and test items."""
        return space.kernel is not None and bool(self._pairs(space))

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; ``seed`` shuffles the folds of ``"k-fold"`` and is otherwise without effect.

        Raises:
            DataError: the space has no exact kernel, more items than ``max_items``, a class without training items, a
                set with one class, no validation split to select on, or NaN.
        """
        if space.kernel is None:
            raise DataError("this embedding has no exact kernel behind it; use the linear probe")
        measurements: list[Measurement] = []
        for modality, name in self._pairs(space):
            measurements += self._evaluate(space, space.kernel, modality, name, seed)
        protocol = {
            "grid_C": self.grids["logistic"],
            "grid_alpha": self.grids["ridge"],
            "selection": self.selection if self.selection == "val" else f"{self.n_folds}-fold",
            "refit": "train+val",
            "tol": self.tol,
            "max_iter": self.max_iter,
        }
        return ProbeResult(measurements, protocol)

    def _evaluate(
        self,
        space: EmbeddingSpace,
        kernel: Callable[[Part, Tensor, Part, Tensor], Tensor],
        modality: Modality,
        name: str,
        seed: int,
    ) -> list[Measurement]:
        label_set = space.info.label_sets[name]
        check_label_set(space, name, Part(TRAIN, modality))
        parts = selection_parts(space, modality, [name], required=self.selection == "val")
        rows = {part: all_rows(item_labels(space, part, name)) for part in parts}
        labels = torch.cat([item_labels(space, part, name)[own] for part, own in rows.items()])
        n = len(labels)
        if n > self.max_items:
            raise DataError(
                f"the kernel probe of {name!r} has {n} {modality} items to fit, above max_items={self.max_items}; "
                "raise it (time grows with the cube) or use the linear probe"
            )
        gram = torch.cat([torch.cat([kernel(a, rows[a], b, rows[b]) for b in parts], 1) for a in parts]).double()
        if not bool(torch.isfinite(gram).all()):
            raise DataError(f"the exact kernel of {[str(p) for p in parts]} has NaN or infinite values")
        target = Target(labels, len(label_set.classes), label_set.multilabel)
        if self.selection == "val":
            rounds = [(torch.arange(len(rows[parts[0]])), torch.arange(len(rows[parts[0]]), n))]
        else:
            held = k_folds(labels, self.n_folds, seed)
            every = torch.arange(n)
            rounds = [(every[~torch.isin(every, out)], out) for out in held]
        test = Part(self.split, modality)
        if label_set.multilabel:
            tested, truth = torch.arange(len(space[test])), item_labels(space, test, name)
        else:
            tested, truth = labelled(space, self.split, modality, name)
        final, protocols = {}, {}
        for kind in self.classifiers:
            grid = self.grids[kind]
            scores, answers = [], []
            for fitted, out in rounds:
                fit = self._solve(kind, gram[fitted][:, fitted], replace(target, labels=labels[fitted]), grid)
                scores.append(gram[out][:, fitted] @ fit.weights.transpose(1, 2) + fit.intercepts[:, None])
                answers.append(labels[out])
            best, score = select(torch.cat(scores, 1), torch.cat(answers), label_set, squared=kind == "ridge")
            final[kind] = self._solve(kind, gram, target, [grid[best]])
            protocols[kind] = {
                "classifier": f"kernel {kind}",
                "C" if kind == "logistic" else "alpha": grid[best],
                "selection_score": score,
                "n_train": n,
                **final[kind].records[0],
            }
        by_kind: dict[str, list[Tensor]] = {kind: [] for kind in self.classifiers}
        for b in blocks(len(tested), _BLOCK):
            across = torch.cat([kernel(test, tested[b], part, rows[part]) for part in parts], 1).double()
            for kind, fit in final.items():
                by_kind[kind].append(across @ fit.weights[0].T + fit.intercepts[0])
        return [
            measurement
            for kind, scores in by_kind.items()
            for measurement in score_measurements(torch.cat(scores), truth, label_set, name, test, protocols[kind])
        ]

    def _solve(self, kind: str, gram: Tensor, target: Target, grid: Sequence[float]) -> Candidates:
        """Return the dual coefficients (n_grid, classes, n) for each value of the grid."""
        if kind == "ridge":
            ridge = fit_kernel_ridge(gram, signs(target), alphas=grid)
            return Candidates(ridge.weights, ridge.intercepts, [{} for _ in grid])
        fit = fit_kernel_logistic(gram, target, C=grid, tol=self.tol, max_iter=self.max_iter)
        reached = zip(fit.iterations.tolist(), fit.gradient.tolist(), fit.converged.tolist(), strict=True)
        records: list[dict[str, Any]] = [{"iterations": i, "gradient": g, "converged": c} for i, g, c in reached]
        return Candidates(fit.weights, fit.intercepts, records)
