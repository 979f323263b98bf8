"""Clustering against the labels: k-means on the embedding, spectral and kernel k-means on the exact kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import SPLITS, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.labelled import labelled
from krossfuse.probes.options import check_names
from krossfuse.probes.rows import unit_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.space import EmbeddingSpace

METHODS = ("kmeans", "spectral", "kernel_kmeans")
_BLOCK = 2048

Array = NDArray[np.float64]
ExactKernel = Callable[[Part, Tensor, Part, Tensor], Tensor]


def clustering_scores(truth: Any, clusters: Any) -> dict[str, float]:
    """Return NMI (arithmetic mean), AMI, ARI, and the accuracy of the best matching of clusters to classes.

    >>> clustering_scores([0, 0, 1, 1, 2], [2, 2, 0, 0, 0])["matched_accuracy"]
    0.8
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(truth, clusters)
    return {
        "nmi": float(normalized_mutual_info_score(truth, clusters)),
        "ami": float(adjusted_mutual_info_score(truth, clusters)),
        "ari": float(adjusted_rand_score(truth, clusters)),
        "matched_accuracy": float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum()),
    }


def unit_kernel(gram: Array) -> Array:
    """Return the kernel of the normalised feature maps, K_ij/√(K_ii·K_jj).

    Raises:
        DataError: an item has no positive similarity to itself.
    """
    scale = np.diagonal(gram)
    if not (np.isfinite(gram).all() and (scale > 0).all()):
        raise DataError("a kernel matrix must be finite with a positive diagonal, but this one is not")
    root = np.sqrt(scale)
    out: Array = gram / root / root[:, None]
    return out


def affinity(gram: Array, kind: Literal["rbf", "clip"]) -> Array:
    """Return non-negative affinities of a kernel matrix (n, n), normalised to a unit diagonal first.

    ``"rbf"``: exp(−d²/m) with the kernel distance d² = 2 − 2·K and m the median of d² over pairs of different items.
    ``"clip"``: max(K, 0).
    """
    unit = unit_kernel(gram)
    if kind == "clip":
        clipped: Array = np.maximum(unit, 0)
        return clipped
    squared = np.maximum(2 - 2 * unit, 0)
    middle = float(np.median(squared[np.triu_indices(len(unit), 1)]))
    near: Array = np.exp(-squared / (middle or 1.0))
    return near


def kernel_points(gram: Array) -> Array:
    """Return points (n, rank) whose inner products are the kernel, so that k-means on them is kernel k-means."""
    values, vectors = np.linalg.eigh(unit_kernel(gram))
    keep = values > 1e-10 * values[-1]
    points: Array = vectors[:, keep] * np.sqrt(values[keep])
    return points


class Clustering(Probe):
    """Clustering into as many clusters as there are classes.

    Measurements ``nmi``, ``ami``, ``ari`` and ``matched_accuracy``, one a method and start; starts differ in
    ``subset_seed``. ``space`` says what was clustered: ``embedding/kmeans``, ``kernel/spectral`` or
    ``kernel/kmeans``. Where the space has no exact kernel, that of its normalised embeddings is used, and ``kernel``
    says so. Labels only score the outcome, so by default all splits are clustered together.

    Args:
        methods: of ``"kmeans"`` (on the normalised embedding), ``"spectral"`` and ``"kernel_kmeans"`` (on the kernel).
        affinity: of spectral clustering, ``"rbf"`` of the kernel distance or ``"clip"``, see :func:`affinity`.
        label_sets: names, or None for every single-label set.
        modalities: of the items.
        splits: whose items are clustered together.
        n_seeds: number of starts.
        n_init: runs of k-means within a start, of which the best is taken.
        max_items: larger sets are represented by a random subset of this size, drawn by the seed.
    """

    name = "clustering"

    def __init__(
        self,
        *,
        methods: Sequence[str] = ("kmeans", "spectral"),
        affinity: Literal["rbf", "clip"] = "rbf",
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image",),
        splits: Sequence[str] = SPLITS,
        n_seeds: int = 5,
        n_init: int = 3,
        max_items: int = 3000,
    ) -> None:
        check_choice("affinity", affinity, ["rbf", "clip"])
        for name, value in (("n_seeds", n_seeds), ("n_init", n_init), ("max_items", max_items)):
            check_positive(name, value, integer=True)
        self.methods = check_names("methods", methods, METHODS)
        self.affinity = affinity
        self.scope = Scope(label_sets=label_sets, modalities=modalities, splits=splits, joined=True)
        self.n_seeds = n_seeds
        self.n_init = n_init
        self.max_items = max_items

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from labelled items of any of the modalities."""
        return self.scope.why_not(space)

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; ``seed`` decides the starts and the subset of a large set.

        Raises:
            ConfigError: a label set that the dataset does not have, or with several labels an item.
            DataError: fewer than two classes are present, or features have NaN.
        """
        self.check(space.info, space.parts)
        kernel = space.exact_kernel()
        measurements: list[Measurement] = []
        for modality, name in self.scope.pairs(space):
            splits = self.scope.splits_with(space, modality, name)
            measurements += self._evaluate(space, kernel, name, modality, splits, seed)
        return ProbeResult(
            measurements,
            {
                "splits": list(self.scope.splits),
                "affinity": self.affinity,
                "n_init": self.n_init,
                "kernel": "embedding" if kernel is None else "exact",
                "nmi": "arithmetic",
            },
        )

    def _evaluate(
        self,
        space: EmbeddingSpace,
        kernel: ExactKernel | None,
        name: str,
        modality: Modality,
        splits: list[str],
        seed: int,
    ) -> list[Measurement]:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        parts = [Part(split, modality) for split in splits]
        items = [labelled(space, split, modality, name) for split in splits]
        every = torch.cat([y for _, y in items])
        if self.max_items < (present := len(torch.unique(every))):
            raise ConfigError(f"max_items={self.max_items} is fewer than the {present} classes of {name!r}; raise it")
        rows, labels = _draw([r for r, _ in items], every, self.max_items, seed)
        clusters = int((torch.bincount(labels) > 0).sum())
        if clusters < 2:
            raise DataError(f"clustering needs two classes or more, but the items of {name!r} have {clusters}")
        shared = {"n_items": len(labels), "n_clusters": clusters}
        measurements = []
        for what, points in self._points(space, kernel, parts, rows, clusters, seed):
            for start in range(self.n_seeds):
                state = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
                # One thread: sums over threads come in any order, and the same seed must give the same bits.
                with threadpool_limits(1):
                    guess = KMeans(clusters, n_init=self.n_init, random_state=state).fit_predict(points)
                protocol = {**shared, "space": what, "subset_seed": start}
                measurements += [
                    Measurement(metric, value, modality, name, protocol)
                    for metric, value in clustering_scores(labels.numpy(), guess).items()
                ]
        return measurements

    def _points(
        self,
        space: EmbeddingSpace,
        kernel: ExactKernel | None,
        parts: list[Part],
        rows: list[Tensor],
        clusters: int,
        seed: int,
    ) -> list[tuple[str, Array]]:
        """Return the points that k-means then clusters, by what they are."""
        from sklearn.manifold import spectral_embedding

        out = []
        if "kmeans" in self.methods:
            units = [unit_rows(space[p][r], p, rows=r, dtype=torch.float32) for p, r in zip(parts, rows, strict=True)]
            out.append(("embedding/kmeans", torch.cat(units).numpy()))
        if len(out) == len(self.methods):
            return out
        gram = _gram(space, kernel, parts, rows)
        if "spectral" in self.methods:
            maps = spectral_embedding(
                affinity(gram, self.affinity), n_components=clusters, random_state=seed, drop_first=False
            )
            out.append(("kernel/spectral", maps))
        if "kernel_kmeans" in self.methods:
            out.append(("kernel/kmeans", kernel_points(gram)))
        return out


def _draw(rows: list[Tensor], labels: Tensor, max_items: int, seed: int) -> tuple[list[Tensor], Tensor]:
    if len(labels) <= max_items:
        return rows, labels
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(labels), generator=generator)[:max_items].sort().values
    ends = torch.tensor([len(r) for r in rows]).cumsum(0)
    chosen = [
        r[kept[(kept >= end - len(r)) & (kept < end)] - (end - len(r))] for r, end in zip(rows, ends, strict=True)
    ]
    return chosen, labels[kept]


def _gram(space: EmbeddingSpace, kernel: ExactKernel | None, parts: list[Part], rows: list[Tensor]) -> Array:
    """Return the (n, n) kernel matrix of the rows of several parts, one after the other."""
    ends = np.cumsum([len(r) for r in rows])
    gram = np.empty((ends[-1], ends[-1]))
    pieces = [
        (int(end) - len(r) + b.start, part, r[b])
        for part, r, end in zip(parts, rows, ends, strict=True)
        for b in blocks(len(r), _BLOCK)
    ]
    for i, (at_a, part_a, rows_a) in enumerate(pieces):
        for at_b, part_b, rows_b in pieces[i:]:
            if kernel is not None:
                tile = kernel(part_a, rows_a, part_b, rows_b).double()
            else:
                a = unit_rows(space[part_a][rows_a], part_a, rows=rows_a)
                tile = a @ unit_rows(space[part_b][rows_b], part_b, rows=rows_b).T
            values = tile.cpu().numpy()
            gram[at_a : at_a + len(rows_a), at_b : at_b + len(rows_b)] = values
            gram[at_b : at_b + len(rows_b), at_a : at_a + len(rows_a)] = values.T
    return gram
