"""Ridge probe: the closed-form ridge classifier, every regulariser from one decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.parts import TEST, Modality
from krossfuse.probes.head_probe import GridProbe, head_scope
from krossfuse.probes.heads import Candidates
from krossfuse.probes.selection import Selection
from krossfuse.probes.solvers import Target, fit_ridge


def signs(target: Target) -> Tensor:
    """Return the (n, K) float64 targets of ridge classification: 1 of a row's classes, −1 of the others.

    >>> signs(Target(torch.tensor([1, 0]), 2)).tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    """
    hot = target.labels
    if not target.multilabel:
        hot = target.labels[:, None] == torch.arange(target.n_classes, device=target.labels.device)
    return 2.0 * hot.double() - 1


def mask(target: Target) -> Tensor:
    """Return the (n,) float64 weights of a target's rows, 0 of those without a label."""
    weight = torch.ones(len(target.labels), dtype=torch.float64)
    if target.weight is not None:
        weight = target.weight.double()
    return weight if target.multilabel else weight * (target.labels >= 0)


class RidgeProbe(GridProbe):
    """Ridge classifier, scikit-learn's ``RidgeClassifier``: squared error to ±1 targets, plus ``alpha·‖W‖²``.

    One eigendecomposition, of XᵀX or XXᵀ, whichever is smaller, serves every alpha and every label set whose labels
    cover the same items. Alpha is the most accurate of a grid on held-out items (squared error decides among equals),
    then the fit is repeated on training and validation items together. Measurements and heads:
    see :class:`~krossfuse.probes.head_probe.HeadProbe`.

    Args:
        grid: values of alpha.
        selection: ``"val"``, on the validation split, or ``"k-fold"``, over training and validation items.
        n_folds: of ``"k-fold"``; stratified, shuffled by the run's seed.
        refit: fit anew on training and validation items with the alpha chosen; with ``"k-fold"`` it must.
        normalise: scale embeddings to Euclidean norm 1.
        label_sets: names, or None for all.
        modalities: of the items that are probed, where the space has them with labels.
        split: the split that is tested.
        extra_splits: further splits on which the same heads are tested.
        block_rows: rows read at once; None is some 64 MB of them.
        device: where to solve; None is where the embeddings are, ``"auto"`` a CUDA device where there is one.
    """

    name = "ridge_probe"
    knob = "alpha"
    squared = True

    def __init__(
        self,
        *,
        grid: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3),
        selection: str = "val",
        n_folds: int = 5,
        refit: bool = True,
        normalise: bool = False,
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image", "text"),
        split: str = TEST,
        extra_splits: Sequence[str] = (),
        block_rows: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            head_scope(label_sets, modalities, split, extra_splits),
            Selection(grid=grid, selection=selection, n_folds=n_folds, refit=refit),
            normalise=normalise,
            block_rows=block_rows,
            device=device,
        )

    def _protocol(self) -> dict[str, Any]:
        return {"classifier": "ridge", **super()._protocol()}

    def _solve(
        self,
        x: Sequence[Tensor],
        targets: Sequence[Target],
        grids: Sequence[Sequence[float]],
        device: torch.device | None,
    ) -> list[Candidates]:
        alike: dict[bytes, list[int]] = {}
        for i, target in enumerate(targets):
            alike.setdefault(mask(target).numpy().tobytes(), []).append(i)
        out: dict[int, Candidates] = {}
        for group in alike.values():
            alphas = sorted({alpha for i in group for alpha in grids[i]})
            fit = fit_ridge(
                x,
                torch.cat([signs(targets[i]) for i in group], 1),
                alphas=alphas,
                weight=mask(targets[group[0]]),
                normalise=self.normalise,
                block_rows=self.block_rows,
                device=device,
            )
            sizes = [targets[i].n_classes for i in group]
            columns = zip(
                fit.weights.split_with_sizes(sizes, 1), fit.intercepts.split_with_sizes(sizes, 1), strict=True
            )
            for i, (weights, intercepts) in zip(group, columns, strict=True):
                kept = [alphas.index(alpha) for alpha in grids[i]]
                dtype = torch.promote_types(x[0].dtype, torch.float32)
                out[i] = Candidates(weights[kept].to(dtype), intercepts[kept].to(dtype), [{} for _ in kept])
        return [out[i] for i in range(len(targets))]
