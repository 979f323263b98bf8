"""k-nearest-neighbour classification, uniform or weighted by similarity, in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, check_choice, check_positive
from krossfuse.core.parts import TEST, TRAIN, VAL, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.labelled import check_every_class, labelled
from krossfuse.probes.neighbours import Neighbours, nearest_in_tiles
from krossfuse.probes.options import check_counts, check_device, solving_device
from krossfuse.probes.rows import check_range, finite_rows, largest, unit_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.scoring import accuracy_measurements
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.zero_shot import decide

METRICS = ("cosine", "euclidean")


@torch.no_grad()
def nearest(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    query_rows: Tensor | None = None,
    gallery_rows: Tensor | None = None,
    block_rows: int = 2048,
    device: torch.device | None = None,
    names: tuple[object, object] = ("the queries", "the gallery"),
) -> Neighbours:
    """Return the scores and positions, both (n, k), of the k nearest gallery items of each query, nearest first.

    The score is the cosine similarity, or −½·‖x − y‖² (of unit vectors: cosine − 1). Equal scores keep the order of the
    gallery.

    Args:
        queries: (·, dim), may lie over a memory map.
        gallery: (·, dim), the same.
        k: at most as many as there are gallery items.
        metric: ``"cosine"`` or ``"euclidean"``.
        query_rows: (n,) the rows of ``queries`` that are asked, None for all.
        gallery_rows: (m,) the rows of ``gallery`` that answer, None for all; positions count within them.
        block_rows: rows of each in one tile of scores.
        device: where to compute; None is where the embeddings are.
        names: of queries and gallery, in messages.

    Raises:
        DataError: k is larger than the gallery, or features have NaN or, for ``"euclidean"``, squares that overflow.
    """
    query_rows = torch.arange(len(queries)) if query_rows is None else query_rows
    gallery_rows = torch.arange(len(gallery)) if gallery_rows is None else gallery_rows
    dtype = torch.promote_types(torch.promote_types(queries.dtype, gallery.dtype), torch.float32)

    def read(source: Tensor, rows: Tensor, what: object) -> Tensor:
        block = source[rows] if device is None else source[rows].to(device)
        if metric == "cosine":
            return unit_rows(block, what, rows=rows, dtype=dtype)
        size = largest(finite_rows(block, what, rows=rows))
        check_range(size, (1, block.shape[1]), dtype, what, way_out="scale the embeddings, or say metric=cosine")
        return block.to(dtype)

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        scores = x @ y.T
        if metric != "cosine":
            scores -= x.square().sum(1, keepdim=True) / 2 + y.square().sum(1) / 2
        return scores

    return nearest_in_tiles(
        lambda block: read(queries, query_rows[block], names[0]),
        lambda block: read(gallery, gallery_rows[block], names[1]),
        similarity,
        (len(query_rows), len(gallery_rows)),
        k,
        block_rows=block_rows,
    )


def vote(scores: Tensor, labels: Tensor, n_classes: int, *, temperature: float | None) -> Tensor:
    """Return (n, n_classes) float64 votes of neighbours with (n, k) scores and labels.

    Args:
        scores: of the neighbours.
        labels: of the neighbours, int64.
        n_classes: number of classes.
        temperature: each neighbour votes exp(score/temperature), as in DINO; None: each votes 1.
    """
    if temperature is None:
        weights = torch.ones_like(scores, dtype=torch.float64)
    else:
        weights = ((scores - scores.amax(1, keepdim=True)).double() / temperature).exp()
    return torch.zeros(len(scores), n_classes, dtype=torch.float64).scatter_add_(1, labels, weights)


class KNN(Probe):
    """k-nearest-neighbour classification.

    Measurements: ``<k>nn_accuracy`` for every k; and with the k that is best on the validation split (the smallest of
    equally good ones), or the only one, ``accuracy`` and ``mean_per_class_accuracy``; it is recorded as ``selected_k``.
    Ties between classes go to the lowest class index, between neighbours to the earlier row.

    Args:
        ks: numbers of neighbours.
        temperature: neighbours vote exp(similarity/temperature); None: all alike.
        metric: ``"cosine"`` or ``"euclidean"``.
        refit: whether the validation items join the gallery once k is chosen.
        label_sets: names, or None for every single-label set.
        modalities: of the items.
        split: the split that is classified.
        extra_splits: further splits that are classified with the same gallery and k.
        block_rows: rows of queries and gallery in one tile.
        device: where neighbours are found; None is where the embeddings are, ``"auto"`` a CUDA device where there is
            one.
    """

    name = "knn"

    def __init__(
        self,
        *,
        ks: Sequence[int] = (1, 5, 10, 20),
        temperature: float | None = 0.07,
        metric: Literal["cosine", "euclidean"] = "cosine",
        refit: bool = True,
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image",),
        split: str = TEST,
        extra_splits: Sequence[str] = (),
        block_rows: int = 2048,
        device: str | None = None,
    ) -> None:
        if temperature is not None:
            check_positive("temperature", temperature)
        check_choice("metric", metric, METRICS)
        check_positive("block_rows", block_rows, integer=True)
        self.ks = check_counts("ks", ks)
        self.temperature = temperature
        self.metric = metric
        self.refit = refit
        self.scope = Scope(label_sets=label_sets, modalities=modalities, splits=[split, *extra_splits], fitted=[TRAIN])
        self.device = check_device(device)
        self.block_rows = block_rows

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from labelled training and test items of any of the modalities."""
        return self.scope.why_not(space)

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; nothing is random, so ``seed`` changes nothing.

        Raises:
            ConfigError: a label set that the dataset does not have, or with several labels an item.
            DataError: a class has no training item, k is larger than the gallery, or features have NaN.
        """
        self.check(space.info, space.parts)
        measurements: list[Measurement] = []
        for modality, name in self.scope.pairs(space):
            measurements += self._evaluate(space, name, modality)
        return ProbeResult(
            measurements,
            {
                "metric": self.metric,
                "weights": "uniform" if self.temperature is None else "softmax",
                "temperature": "" if self.temperature is None else self.temperature,
                "grid": self.ks,
                "refit": self.refit,
                "ties": "lowest class index; earlier neighbour",
            },
        )

    def _evaluate(self, space: EmbeddingSpace, name: str, modality: Modality) -> list[Measurement]:
        label_set = space.info.label_sets[name]
        rows, labels = labelled(space, TRAIN, modality, name)
        check_every_class(labels, label_set.classes)
        gallery, called = space[Part(TRAIN, modality)], str(Part(TRAIN, modality))
        protocol: dict[str, Any] = {"n_train": len(rows), "n_classes": len(label_set.classes)}
        selected, has_val = self.ks[0], Part(VAL, modality) in space and VAL in label_set.labels
        if len(self.ks) > 1:
            if not has_val:
                raise DataError(
                    f"k is chosen among {self.ks} on the validation split, but {space.info.name!r} has no {modality} "
                    f"items there with labels of {name!r}; give one k"
                )
            correct, truth = self._correct(space, VAL, modality, name, gallery, rows, labels, called)
            hits = {k: int(c.sum()) for k, c in correct.items()}
            selected = max(self.ks, key=lambda k: (hits[k], -k))
            protocol |= {"selected_on": VAL, "val_accuracy": hits[selected] / len(truth)}
        protocol["selected_k"] = selected
        if self.refit and has_val:
            more, more_labels = labelled(space, VAL, modality, name)
            gallery = torch.cat([gallery[rows], space[Part(VAL, modality)][more]])
            rows, labels = torch.arange(len(gallery)), torch.cat([labels, more_labels])
            protocol["n_train"] = len(rows)
            called = f"the gallery (labelled rows of {called}, then of {Part(VAL, modality)})"
        measurements: list[Measurement] = []
        for split in self.scope.splits_with(space, modality, name):
            correct, truth = self._correct(space, split, modality, name, gallery, rows, labels, called)
            shared = {**protocol, "split": split, "n_test": len(truth)}
            measurements += accuracy_measurements(
                correct[selected], truth, modality=modality, label_set=name, protocol=shared
            )
            for k, right in correct.items():
                hits_of_k = right.float()
                value = float(hits_of_k.double().mean())
                measurements.append(Measurement(f"{k}nn_accuracy", value, modality, name, shared, hits_of_k))
        return measurements

    def _correct(
        self,
        space: EmbeddingSpace,
        split: str,
        modality: Modality,
        name: str,
        gallery: Tensor,
        gallery_rows: Tensor,
        gallery_labels: Tensor,
        gallery_name: str,
    ) -> tuple[dict[int, Tensor], Tensor]:
        rows, truth = labelled(space, split, modality, name)
        scores, places = nearest(
            space[Part(split, modality)],
            gallery,
            self.ks[-1],
            metric=self.metric,
            query_rows=rows,
            gallery_rows=gallery_rows,
            block_rows=self.block_rows,
            device=solving_device(self.device),
            names=(Part(split, modality), gallery_name),
        )
        neighbours = gallery_labels[places]
        classes = len(space.info.label_sets[name].classes)
        return {
            k: decide(vote(scores[:, :k], neighbours[:, :k], classes, temperature=self.temperature)) == truth
            for k in self.ks
        }, truth
