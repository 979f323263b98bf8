"""Form I+T: the head of the shots plus a multiple of the class texts' scores (docs/mathematics.md, section 9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, check_choice, check_positive
from krossfuse.probes.few_shot.images import Images
from krossfuse.probes.few_shot.linear import Linear
from krossfuse.probes.zero_shot import ZeroShotHead

CHOSEN_FROM = 8
"""The least number of shots at which τ may be chosen: with fewer, validation shots are too few to choose by."""

LOGIT_SPREAD = 2.0
"""Log-losses are those of scores of this spread within an item, which decisions do not depend on.

Scores of spread 1 are softer than the probabilities of any encoder that was looked at.
"""


def tau_rule(shots: int) -> float:
    """Return τ = 2/√shots: the error of a head falls with the root of its shots, that of the texts does not.

    >>> tau_rule(1), tau_rule(4)
    (2.0, 1.0)
    """
    return 2 / math.sqrt(shots)


def check_tau(tau: object) -> None:
    """Check that ``tau`` is ``"rule"``, ``"val"`` or a positive number.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(tau, str):
        check_choice("tau", tau, ["rule", "val"])
    else:
        check_positive("tau", tau)


def taus(tau: float | Literal["rule", "val"], shots: int) -> list[float]:
    """Return the values of τ to choose from.

    >>> taus("val", 16), taus("val", 4), taus(0.3, 4)
    ([0.5, 0.25, 1.0], [1.0], [0.3])
    """
    if not isinstance(tau, str):
        return [float(tau)]
    rule = tau_rule(shots)
    return [rule, rule / 2, 2 * rule] if tau == "val" and shots >= CHOSEN_FROM else [rule]


def spread(scores: Sequence[Tensor], among: Sequence[Tensor]) -> float:
    """Return the mean over items of the standard deviation (over n) of an item's scores: the unit of the scores.

    It needs no labels, and does not change when a constant is added to an item's scores.

    Args:
        scores: (n, K) each, the items in several tensors.
        among: (n,) bool each, which items count.

    Raises:
        DataError: it is not finite.

    >>> spread([torch.tensor([[0.0, 2.0], [5.0, 9.0]])], [torch.tensor([True, True])])
    1.5
    """
    each = [s[chosen].double().std(1, correction=0) for s, chosen in zip(scores, among, strict=True)]
    mean = float(torch.cat(each).mean())
    if not math.isfinite(mean):
        raise DataError("scores of the class texts, or of a head, are not finite; scale the embeddings")
    return mean


def in_units(scores: Tensor, unit: float) -> Tensor:
    """Return scores in float64, divided by their spread; zero where that is zero, for they tell no class."""
    return scores.double() / unit if unit > 0 else torch.zeros_like(scores, dtype=torch.float64)


@dataclass(frozen=True)
class Residual:
    """head(x)/σ_head + τ·k(x, class text)/σ_text, where σ are spreads (:func:`spread`) on unlabelled images.

    Attributes:
        head: fitted on the shots.
        texts: of the classes.
        head_spread: σ_head.
        text_spread: σ_text.
        tau: τ.
    """

    head: Linear
    texts: ZeroShotHead
    head_spread: float
    text_spread: float
    tau: float

    def scores(self, images: Images) -> Tensor:
        """Return the (n, K) scores of images."""
        own = in_units(self.head.scores(images), self.head_spread)
        return own + self.tau * in_units(images.text_scores(self.texts), self.text_spread)
