"""Tip-Adapter: the shots as a cache whose keys are images and whose values are their classes (arXiv 2111.03930).

Built from the paper's equations (its section 3, the cache model and its fine-tuning); the released code was not run
beside it, and no figure of the paper is claimed. With unit embeddings f, the cache's keys F (the shots) and values L
(their one-hot labels), and the class texts' scores t(f),

    logits = α·φ(f·Fᵀ)·L + t(f),    φ(A) = exp(−β(1 − A)).

Departures: t(f) is in units in which its spread within an item is 2 (the paper's is 100·cos of OpenAI's CLIP, and other
encoders have other temperatures); α and β are chosen on the validation shots, from lists; a shot is cached as it is
(the paper averages ten augmentations of it). Tip-Adapter-F trains the keys (``tip_training.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krossfuse.probes.few_shot.images import Images
from krossfuse.probes.few_shot.residual import LOGIT_SPREAD, in_units
from krossfuse.probes.zero_shot import ZeroShotHead


def activation(affinity: Tensor, beta: float) -> Tensor:
    """Return φ(A) = exp(−β(1 − A))."""
    return torch.exp(-beta * (1 - affinity))


def text_logits(scores: Tensor, unit: float) -> Tensor:
    """Return the class texts' scores with the spread of logits."""
    return LOGIT_SPREAD * in_units(scores, unit)


@dataclass(frozen=True)
class TipAdapter:
    """A cache model over class texts.

    Attributes:
        keys: (n, dim) F, the shots or what was trained from them.
        values: (n, K) L, one-hot.
        texts: of the classes.
        text_spread: spread of the texts' scores on unlabelled images.
        alpha: α.
        beta: β.
    """

    keys: Tensor
    values: Tensor
    texts: ZeroShotHead
    text_spread: float
    alpha: float
    beta: float

    def scores(self, images: Images) -> Tensor:
        """Return the (n, K) logits of images."""
        cache = activation((images.unit @ self.keys.T).double(), self.beta) @ self.values.double()
        return self.alpha * cache + text_logits(images.text_scores(self.texts), self.text_spread)


def candidates(
    keys: Tensor,
    values: Tensor,
    texts: ZeroShotHead,
    text_spread: float,
    *,
    alphas: Sequence[float],
    betas: Sequence[float],
) -> list[TipAdapter]:
    """Return a model for each β and α."""
    return [TipAdapter(keys, values, texts, text_spread, alpha, beta) for beta in betas for alpha in alphas]
