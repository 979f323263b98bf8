"""ZLaP: label propagation with the class texts as nodes of the graph, a baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from krossfuse.core.errors import check_positive, check_range
from krossfuse.probes.graph import Sparse, edges, graph_record, normalised_graph, spread
from krossfuse.probes.label_free import Array, Images, LabelFreeProbe
from krossfuse.probes.neighbours import Neighbours


class ZLaP(LabelFreeProbe):
    """Zero-shot label propagation (Stojnić, Kalantidis, Tolias, CVPR 2024, arXiv 2404.04072), a baseline.

    Images and class texts are the nodes of one graph. An image has edges to its k nearest images, itself among them,
    weighted by the positive part of their similarity, and to its k nearest class texts, weighted by that of theirs to
    the power γ; texts have no edges among themselves. With W the sum of these edges and of their mirror images, without
    loops, and Z the columns of (I − α·D^(−1/2)·W·D^(−1/2))⁻¹ at the class nodes, a node scores Z. In inductive mode an
    image scores Σ w_j Z_j over its k nearest images and class texts, weighted as edges are.

    Equations, edge cases and the constants k = 5, γ = 5, α = 0.3 are those of the authors' repository
    (vladan-stojnic/ZLaP, text classifier), which was read and not run: nothing here was compared with its output. It is
    the published method on the cross-modal encoder alone (``fusion=cross_modal``, ``kernel=fused``, where the
    similarities are its cosines); other embeddings and kernels are variants of it. Measurements and other options are
    those of :class:`~krossfuse.probes.label_free.LabelFreeProbe`.

    Args:
        neighbours: k.
        gamma: γ.
        alpha: α in (0, 1).
        tol: of conjugate gradients, relative.
        max_iter: iterations at most.
        similarity: of images and class texts, ``"cosine"`` or ``"dot"``.
        others: of :class:`~krossfuse.probes.label_free.LabelFreeProbe`.
    """

    name = "zlap"

    def __init__(
        self,
        *,
        neighbours: int = 5,
        gamma: float = 5.0,
        alpha: float = 0.3,
        tol: float = 1e-10,
        max_iter: int = 1000,
        similarity: Any = "cosine",
        **others: Any,
    ) -> None:
        super().__init__(similarity=similarity, **others)
        for name, count in {"neighbours": neighbours, "max_iter": max_iter}.items():
            check_positive(name, count, integer=True)
        check_positive("gamma", gamma)
        check_positive("tol", tol)
        check_range("alpha", alpha, 0.0, 0.999, "it is the weight of the neighbours, and 1 leaves no start")
        self.neighbours, self.gamma, self.alpha = neighbours, float(gamma), float(alpha)
        self.tol, self.max_iter = float(tol), max_iter

    def options(self) -> dict[str, Any]:
        """Return the constants."""
        return {"neighbours": self.neighbours, "gamma": self.gamma, "alpha": self.alpha, "tol": self.tol}

    def classify(self, images: Images, start: Tensor, graph_start: Tensor) -> tuple[Array, dict[str, Any]]:
        """Return the nodes' scores; see :meth:`LabelFreeProbe.classify`."""
        from scipy.sparse import block_array, csr_array

        n, classes = graph_start.shape
        others = max(1, self.neighbours - 1)  # an image's nearest is itself, which is no edge
        of_images = edges(images.within(others), n)
        of_texts = self._texts(graph_start)
        directed = block_array([[csr_array((classes, classes)), None], [of_texts, of_images]], format="csr")
        graph = (directed + directed.T).tocsr()
        at_classes = np.eye(n + classes, classes)
        solved = spread(normalised_graph(graph), at_classes, alpha=self.alpha, tol=self.tol, max_iter=self.max_iter)
        record = {**graph_record(graph), "cg_iterations": solved.iterations, "cg_residual": solved.residual}
        record["n_graph"] = n
        if self.mode == "transductive":
            return solved.values[classes:], record
        nearest = edges(images.outside(self.neighbours), n)
        scores: Array = nearest @ solved.values[classes:] + self._texts(start) @ solved.values[:classes]
        return scores, record

    def _texts(self, similarities: Tensor) -> Sparse:
        classes = similarities.shape[1]
        nearest = similarities.topk(min(self.neighbours, classes), dim=1)
        return edges(Neighbours(nearest.values, nearest.indices), classes, power=self.gamma)
