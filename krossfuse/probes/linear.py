"""Linear probe: multinomial logistic regression, its C chosen on held-out items, refitted on all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import check_positive
from krossfuse.core.parts import TEST, Modality
from krossfuse.probes.head_probe import GridProbe, head_scope
from krossfuse.probes.heads import Candidates, LinearHead
from krossfuse.probes.selection import Selection
from krossfuse.probes.solvers import LogisticFit, Target, fit_logistic
from krossfuse.probes.space import EmbeddingSpace

log = logging.getLogger(__name__)

CONSTANT = "constant features"
"""What ``ended`` of a protocol says where features do not vary at all, so that the weights are zero."""


class LinearProbe(GridProbe):
    """Linear probe: multinomial logistic regression on frozen embeddings.

    The objective is scikit-learn's, ``C·Σ log-loss + ½‖W‖²`` with an unpenalised intercept, solved to a stated
    tolerance. C is the most accurate of a grid on held-out items (log-loss decides among equals), then the fit is
    repeated with that C on training and validation items together. All label sets of a modality share the passes over
    the data. Items without a label in a set take no part in it. A multilabel set gets one logistic regression a
    class, and C by mean average precision. Measurements and heads: see
    :class:`~krossfuse.probes.head_probe.HeadProbe`. The protocol says ``selected_at_edge`` where the best C is the
    first or last of the grid, and ``ended`` where something else than the tolerance ended a fit.

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
        device: where to solve; None is where the embeddings are, ``"auto"`` a CUDA device where there is one.
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
            head_scope(label_sets, modalities, split, extra_splits),
            Selection(grid=grid, selection=selection, n_folds=n_folds, refit=refit),
            normalise=normalise,
            block_rows=block_rows,
            device=device,
        )
        check_positive("tol", tol)
        check_positive("max_iter", max_iter, integer=True)
        self.tol, self.max_iter, self.path = tol, max_iter, path

    def _protocol(self) -> dict[str, Any]:
        return {"classifier": "logistic regression", **super()._protocol(), "tol": self.tol, "max_iter": self.max_iter}

    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        heads = super()._fit(space, modality, names, seed)
        for name, (_, protocol) in heads.items():
            constant = protocol.get("ended") == CONSTANT
            if constant or (protocol.get("ended") == "rounding" and protocol["gradient"] > self.tol):
                log.warning(
                    "%s of %r, %r, %s: the features %s: %s",
                    self.name,
                    space.info.name,
                    name,
                    modality,
                    "are constant" if constant else "hardly vary beside their mean",
                    "the weights are zero" if constant else "the fit ended where the gradient is only rounding",
                )
        return heads

    def _solve(
        self,
        x: Sequence[Tensor],
        targets: Sequence[Target],
        grids: Sequence[Sequence[float]],
        device: torch.device | None,
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
            device=device,
        )
        return [Candidates(fit.weights, fit.intercepts, fit_records(fit)) for fit in fits]


def fit_records(fit: LogisticFit) -> list[dict[str, Any]]:
    """Return of each C what its fit says of itself; ``ended`` where it was not the tolerance that ended it."""
    reached = zip(fit.iterations.tolist(), fit.gradient.tolist(), fit.converged.tolist(), strict=True)
    records: list[dict[str, Any]] = [{"iterations": i, "gradient": g, "converged": c} for i, g, c in reached]
    for record, ended, weights in zip(records, fit.ended(), fit.weights, strict=True):
        ended = ended if bool(weights.any()) else CONSTANT
        if ended != "tolerance":
            record["ended"] = ended
    return records
