"""Kernel probe: ridge and logistic regression in the dual, on the exact kernel behind an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError, check_positive
from krossfuse.core.parts import TEST, TRAIN, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.head_probe import head_scope
from krossfuse.probes.heads import Candidates
from krossfuse.probes.labelled import all_rows, check_label_set, item_labels, labelled_items
from krossfuse.probes.linear import fit_records
from krossfuse.probes.options import check_device, check_names, solving_device
from krossfuse.probes.ridge import signs
from krossfuse.probes.scoring import measurements_of_scores
from krossfuse.probes.selection import Selection, best_for, k_folds, selection_parts
from krossfuse.probes.solvers import Target, fit_kernel_logistic, fit_kernel_ridge
from krossfuse.probes.space import EmbeddingSpace

CLASSIFIERS = ("logistic", "ridge")
NO_KERNEL = "this embedding has no exact kernel behind it; use the linear probe, on the embedding itself"
_BLOCK = 1024


class KernelProbe(Probe):
    """Ridge and logistic regression on the exact kernel of a fusion method, without the error of any sketch.

    In the dual, scores are ``Σᵢ aᵢ·k(·, xᵢ) + b``; the objectives are those of
    :class:`~krossfuse.probes.RidgeProbe` and :class:`~krossfuse.probes.LinearProbe` in the kernel's feature space, so
    for a linear kernel they are equal. Time grows with n³ and memory with n², hence ``max_items``. Measurements, by
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
        device: where to solve; None is where the embeddings are, ``"auto"`` a CUDA device where there is one.
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
        device: str | None = None,
    ) -> None:
        self.classifiers = check_names("classifiers", classifiers, CLASSIFIERS)
        self.selections = {
            kind: Selection(grid=grid, selection=selection, n_folds=n_folds, name=name)
            for kind, grid, name in (("logistic", C, "C"), ("ridge", alphas, "alphas"))
        }
        for name, value in {"max_iter": max_iter, "max_items": max_items}.items():
            check_positive(name, value, integer=True)
        check_positive("tol", tol)
        self.tol, self.max_iter, self.max_items = tol, max_iter, max_items
        self.scope = head_scope(label_sets, modalities, split)
        self.device = check_device(device)

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from an exact kernel, and from labelled training and test items."""
        return NO_KERNEL if space.exact_kernel() is None else self.scope.why_not(space)

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; ``seed`` shuffles the folds of ``"k-fold"`` and is otherwise without effect.

        Raises:
            DataError: the space has no exact kernel, more items than ``max_items``, a class without training items, a
                set with one class, no validation split to select on, or NaN.
        """
        kernel = space.exact_kernel()
        if kernel is None:
            raise DataError(NO_KERNEL)
        self.check(space.info, space.parts)
        measurements: list[Measurement] = []
        for modality, name in self.scope.pairs(space):
            measurements += self._evaluate(space, kernel, modality, name, seed)
        logistic, ridge = self.selections["logistic"], self.selections["ridge"]
        protocol = {
            "grid_C": list(logistic.grid),
            "grid_alpha": list(ridge.grid),
            **logistic.described(),
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
        selection = self.selections[self.classifiers[0]]
        parts = selection_parts(space, modality, [name], required=selection.on_val)
        rows = {part: all_rows(item_labels(space, part, name)) for part in parts}
        labels = torch.cat([item_labels(space, part, name)[chosen] for part, chosen in rows.items()])
        n = len(labels)
        if n > self.max_items:
            raise DataError(
                f"the kernel probe of {name!r} has {n} {modality} items to fit, above max_items={self.max_items}; "
                "raise it (time grows with the cube) or use the linear probe"
            )
        gram = torch.cat([torch.cat([kernel(a, rows[a], b, rows[b]) for b in parts], 1) for a in parts]).double()
        device = solving_device(self.device)
        gram = gram if device is None else gram.to(device)
        if not bool(torch.isfinite(gram).all()):
            raise DataError(f"the exact kernel of {[str(p) for p in parts]} has NaN or infinite values")
        target = Target(labels, len(label_set.classes), label_set.multilabel)
        if selection.on_val:
            rounds = [(torch.arange(len(rows[parts[0]])), torch.arange(len(rows[parts[0]]), n))]
        else:
            held = k_folds(labels, selection.n_folds, seed, classes=label_set.classes)
            every = torch.arange(n)
            rounds = [(every[~torch.isin(every, out)], out) for out in held]
        test = Part(self.scope.split, modality)
        tested, truth = labelled_items(space, test, name)
        final, protocols = {}, {}
        for kind in self.classifiers:
            grid = self.selections[kind].grid
            scores, answers = [], []
            for fitted, out in rounds:
                fit = self._solve(kind, gram[fitted][:, fitted], replace(target, labels=labels[fitted]), grid)
                scores.append(gram[out][:, fitted] @ fit.weights.transpose(1, 2) + fit.intercepts[:, None])
                answers.append(labels[out])
            best, score = best_for(torch.cat(scores, 1), torch.cat(answers), label_set, squared=kind == "ridge")
            knob = "C" if kind == "logistic" else "alpha"
            final[kind] = self._solve(kind, gram, target, [grid[best]])
            protocols[kind] = {
                "classifier": f"kernel {kind}",
                knob: grid[best],
                "selection_score": score,
                "n_train": n,
                **final[kind].records[0],
                **self.selections[kind].edge(best, knob, f"{self.name} of {space.info.name!r}, {name!r}, {modality}"),
            }
        by_kind: dict[str, list[Tensor]] = {kind: [] for kind in self.classifiers}
        for b in blocks(len(tested), _BLOCK):
            across = (
                torch.cat([kernel(test, tested[b], part, rows[part]) for part in parts], 1).double().to(gram.device)
            )
            for kind, fit in final.items():
                by_kind[kind].append((across @ fit.weights[0].T + fit.intercepts[0]).to(truth.device))
        return [
            measurement
            for kind, scores in by_kind.items()
            for measurement in measurements_of_scores(torch.cat(scores), truth, label_set, name, test, protocols[kind])
        ]

    def _solve(self, kind: str, gram: Tensor, target: Target, grid: Sequence[float]) -> Candidates:
        """Return the dual coefficients (n_grid, classes, n) for each value of the grid, where the kernel matrix is."""
        records: list[dict[str, Any]] = [{} for _ in grid]
        if kind == "ridge":
            ridge = fit_kernel_ridge(gram, signs(target), alphas=grid)
            weights, intercepts = ridge.weights, ridge.intercepts
        else:
            fit = fit_kernel_logistic(gram, target, C=grid, tol=self.tol, max_iter=self.max_iter)
            weights, intercepts, records = fit.weights, fit.intercepts, fit_records(fit)
        return Candidates(weights, intercepts, records)
