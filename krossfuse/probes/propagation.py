"""Label propagation: class texts spread over the neighbour graph of unlabelled images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_positive, check_range
from krossfuse.probes.graph import attach, edges, graph_record, normalised_graph, spread, undirected
from krossfuse.probes.label_free import Array, Images, LabelFreeProbe


def start_distribution(
    similarities: Tensor, *, centre: Tensor, spread_of: Tensor, gain: float, centring: float
) -> Tensor:
    """Return softmax(gain·x/sd) of x = s − centring·m, (n, classes) like the similarities s.

    Args:
        similarities: s (n, classes) to the class texts.
        centre: m (classes,), the mean similarity of unlabelled images to each class text.
        spread_of: (m, classes) the similarities of these images; sd is the mean over them of the standard deviation of
            x over the classes.
        gain: sharpness, in units of sd.
        centring: share of m that is taken off.

    Raises:
        DataError: all classes have the same similarities, so there is no sd.
    """
    sd = (spread_of - centring * centre).std(1, unbiased=False).mean()
    scale = spread_of.abs().amax()
    if not bool(sd > torch.finfo(sd.dtype).eps * scale):
        raise DataError("every image is equally similar to all class texts, so there is nothing to spread")
    return (gain * (similarities - centring * centre) / sd).softmax(1)


class Propagation(LabelFreeProbe):
    """Class texts spread over the graph of unlabelled images, so that images that are alike are classified alike.

    With s the similarities of images and class texts, m their means over the graph's images and sd the mean spread of
    s − c·m over the classes (label-free units, which no encoder's temperature enters),

        F₀ = softmax(g·(s − c·m)/sd),    (I − α·S)·F = (1 − α)·F₀,

    where S is the symmetric normalised graph of the k nearest neighbours under ``kernel``, weighted by the positive
    part of their similarity to the power p (Zhou et al., NeurIPS 2003). It is solved by conjugate gradients. In
    inductive mode an image x outside the graph gets (1 − α)·F₀(x) + α·Σ w_j F_j over its k nearest images j in it,
    weights summing to 1. The decision is the largest score. Section 8 of docs/mathematics.md. What the other options
    mean, and what is measured, stands in :class:`~krossfuse.probes.label_free.LabelFreeProbe`.

    The constants are one setting for all data sets, with which no label is needed. They were chosen by us on two
    (Caltech-101 under OpenAI's CLIP, OpenMoji under the bundled one), with the labels of both, so gains there are those
    of the setting that was found on them; docs/mathematics.md has the figures.

    Args:
        neighbours: k.
        power: p.
        alpha: α in [0, 1): the weight of the neighbours against the image's own start; 0 spreads nothing.
        gain: g.
        centring: c, from 0 to 1. A class text that is near all images attracts them whatever they show; 1 assumes that
            classes are equally frequent, and harms where many are absent.
        tol: of conjugate gradients, relative.
        max_iter: iterations at most.
        others: of :class:`~krossfuse.probes.label_free.LabelFreeProbe`.
    """

    name = "propagation"

    def __init__(
        self,
        *,
        neighbours: int = 5,
        power: float = 3.0,
        alpha: float = 0.7,
        gain: float = 2.0,
        centring: float = 0.5,
        tol: float = 1e-10,
        max_iter: int = 1000,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        for name, count in {"neighbours": neighbours, "max_iter": max_iter}.items():
            check_positive(name, count, integer=True)
        for name, value in {"power": power, "gain": gain, "tol": tol}.items():
            check_positive(name, value)
        if alpha != 0:
            check_range("alpha", alpha, 0.0, 0.999, "it is the weight of the neighbours, and 1 leaves no start")
        if centring != 0:
            check_range("centring", centring, 0.0, 1.0, "it is the share of the class's mean that is taken off")
        for name, value in {"alpha": alpha, "centring": centring}.items():
            if isinstance(value, bool):
                raise ConfigError(f"{name}={value!r} must be a number")
        self.neighbours, self.power, self.alpha = neighbours, float(power), float(alpha)
        self.gain, self.centring, self.tol, self.max_iter = float(gain), float(centring), float(tol), max_iter

    def options(self) -> dict[str, Any]:
        """Return the constants."""
        return {
            "neighbours": self.neighbours,
            "power": self.power,
            "alpha": self.alpha,
            "gain": self.gain,
            "centring": self.centring,
            "tol": self.tol,
        }

    def classify(self, images: Images, start: Tensor, graph_start: Tensor) -> tuple[Array, dict[str, Any]]:
        """Return the spread distributions; see :meth:`LabelFreeProbe.classify`."""
        centre = graph_start.mean(0)
        setting: dict[str, Any] = {"centre": centre, "spread_of": graph_start, "gain": self.gain}
        initial = start_distribution(graph_start, centring=self.centring, **setting).numpy()
        graph = undirected(edges(images.within(self.neighbours), images.n_graph, power=self.power))
        solved = spread(
            normalised_graph(graph), (1 - self.alpha) * initial, alpha=self.alpha, tol=self.tol, max_iter=self.max_iter
        )
        record = {**graph_record(graph), "cg_iterations": solved.iterations, "cg_residual": solved.residual}
        if self.mode == "transductive":
            return solved.values, record
        own = start_distribution(start, centring=self.centring, **setting).numpy()
        directed = edges(images.outside(self.neighbours), images.n_graph, power=self.power)
        return (1 - self.alpha) * own + self.alpha * attach(directed, solved.values), record
