"""TransCLIP: a mixture of Gaussians over the images, tied to the texts and to neighbours, a baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.probes.graph import edges
from krossfuse.probes.graph_kernels import FUSED
from krossfuse.probes.label_free import Array, Images, LabelFreeProbe
from krossfuse.probes.space import READ_ROWS

Z_STEPS = 5
"""Assignments are updated so often between two updates of the mixture."""

SCALE = 50.0
"""Log-likelihoods count 1/SCALE of what they are, in the assignments' update."""


class TransCLIP(LabelFreeProbe):
    """TransCLIP-ZS (Zanella, Gérin, Ben Ayed, NeurIPS 2024, arXiv 2406.01837), a baseline; transductive only.

    Images x_i are drawn from a Gaussian a class, of mean μ_c (norm 1) and one diagonal covariance σ; W holds the
    positive part of the similarities to each image's k nearest, and ŷ = softmax(τ·cosine) is zero-shot. Updated in
    turn are

        z_i ∝ ŷ_i · exp((log N(x_i; μ, σ) + (50/2k)·Σ_j (W_ij + W_ji)·z_j)/50),    five times,
        μ_c ∝ Σ_i z_ic·x_i,    σ = Σ_ic z_ic·(x_i − μ_c)²/n,

    starting from z = ŷ, μ the mean of each class's eight most confident images (weighted by z), σ = 1/dim. The decision
    is the largest z. Equations, start and constants are those of the authors' repository
    (MaxZanella/transduction-for-vlms, zero-shot), which was read and not run: nothing was compared with its output. It
    is the published method on the cross-modal encoder alone (``fusion=cross_modal``). Measurements and other options
    are those of :class:`~krossfuse.probes.label_free.LabelFreeProbe`; the kernel is the embedding's.

    Args:
        neighbours: k.
        iterations: of the mixture.
        temperature: τ.
        confident: images that a class's mean starts from.
        similarity: of images and class texts, ``"cosine"`` or ``"dot"``.
        others: of :class:`~krossfuse.probes.label_free.LabelFreeProbe`.
    """

    name = "transclip"

    def __init__(
        self,
        *,
        neighbours: int = 3,
        iterations: int = 10,
        temperature: float = 100.0,
        confident: int = 8,
        similarity: Any = "cosine",
        **others: Any,
    ) -> None:
        super().__init__(similarity=similarity, **others)
        if self.mode != "transductive" or self.kernel != FUSED:
            raise ConfigError(
                f"mode={self.mode!r}, kernel={self.kernel!r}: TransCLIP is a mixture of the tested embeddings "
                f"themselves, so mode=transductive and kernel={FUSED}"
            )
        counts = {"neighbours": neighbours, "iterations": iterations, "confident": confident}
        for name, value in counts.items():
            check_positive(name, value, integer=True)
        check_positive("temperature", temperature)
        self.neighbours, self.iterations, self.confident = neighbours, iterations, confident
        self.temperature = float(temperature)

    def options(self) -> dict[str, Any]:
        """Return the constants."""
        return {
            "neighbours": self.neighbours,
            "iterations": self.iterations,
            "temperature": self.temperature,
            "confident": self.confident,
        }

    def classify(self, images: Images, start: Tensor, graph_start: Tensor) -> tuple[Array, dict[str, Any]]:
        """Return the assignments; see :meth:`LabelFreeProbe.classify`."""
        n, classes = start.shape
        prior = (self.temperature * start).softmax(1).numpy()
        nearest = images.within(self.neighbours)
        graph = edges(nearest, n)
        both = (graph + graph.T).tocsr()
        dim = images.kernel.vectors(slice(0, 1)).shape[1]
        assigned, mean = prior.copy(), np.zeros((classes, dim))
        top = torch.from_numpy(assigned).topk(min(self.confident, n), dim=0).indices.numpy()
        chosen = np.zeros_like(assigned)
        np.put_along_axis(chosen, top, np.take_along_axis(assigned, top, 0), 0)
        for block, x in self._vectors(images):
            mean += chosen[block].T @ x
        mean, variance = _unit(mean, mean), np.full(dim, 1 / dim)
        for step in range(self.iterations + 1):
            likelihood = np.empty_like(assigned)
            for block, x in self._vectors(images):
                likelihood[block] = -0.5 * (
                    (x**2 / variance).sum(1)[:, None] - 2 * (x / variance) @ mean.T + (mean**2 / variance).sum(1)
                )
            for _ in range(Z_STEPS):
                exponent = likelihood + SCALE / (2 * nearest.scores.shape[1]) * (both @ assigned)
                exponent -= exponent.max(1, keepdims=True)
                assigned = prior * np.exp(exponent / SCALE)
                assigned /= np.maximum(assigned.sum(1, keepdims=True), np.finfo(np.float64).tiny)
            if step < self.iterations:
                mean, variance = self._mixture(images, assigned, mean)
        return assigned, {"n_graph": n}

    def _mixture(self, images: Images, assigned: Array, before: Array) -> tuple[Array, Array]:
        """Return the means (classes, dim) and the variance (dim,) of assigned images; an empty class keeps its mean."""
        weighted, squares = np.zeros_like(before), np.zeros(before.shape[1])
        for block, x in self._vectors(images):
            weighted += assigned[block].T @ x
            squares += assigned[block].sum(1) @ x**2
        mean = _unit(weighted, before)
        spread = squares - 2 * (weighted * mean).sum(0) + assigned.sum(0) @ mean**2
        return mean, np.maximum(spread / assigned.sum(), 1e-12)

    def _vectors(self, images: Images) -> Any:
        for block in blocks(images.n_graph, READ_ROWS):
            yield block, images.kernel.vectors(block).double().cpu().numpy()


def _unit(means: Array, otherwise: Array) -> Array:
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    unit: Array = np.where(norms > 0, means / np.where(norms > 0, norms, 1.0), otherwise)
    return unit
