"""LP++: a linear probe whose class weights are visual prototypes plus multiples of the class texts (arXiv 2404.02285).

With unit embeddings f of images and t_k of class texts, l_k(f) = f·(w_k + α_k·t_k) + b_k, trained on all shots at once
by cross-entropy. As the authors' code has it (``linear_probe_p2.py``, read, not run beside this): w_k starts at the sum
of the class's shots, every α_k at 250 times the mean over classes of the mean f·t_k of a class's shots; 300 steps with
momentum 0.9 and step size 4n/λ_max(FᵀF); every tenth, α steps with n/(4·max_k Σ(f·t_k)²); the step that is best on the
validation shots counts, the last of equals. Nothing else is tuned.

Departures: b starts at zero, where theirs is drawn; α steps along the gradient of its step, as in the paper, where
their code adds up the gradients of all steps before; a shot is one feature, not augmented.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from krossfuse.probes.few_shot.images import Images

STEPS, MOMENTUM, TEXT_EVERY, TEXT_SCALE = 300, 0.9, 10, 250.0


@dataclass(frozen=True)
class LPPlusPlus:
    """Class weights w_k + α_k·t_k (K, dim) with b (K,), float64, and the step (from 0) that they are of."""

    weight: Tensor
    bias: Tensor
    step: int

    def scores(self, images: Images) -> Tensor:
        """Return the (n, K) logits of images."""
        return images.unit.double() @ self.weight.T + self.bias


def fit_lp_plus_plus(shots: Tensor, labels: Tensor, texts: Tensor, val: Tensor, val_labels: Tensor) -> LPPlusPlus:
    """Fit on the shots, and stop where the validation shots say.

    Args:
        shots: (n, dim) unit embeddings.
        labels: (n,) int64, every class of the K there.
        texts: (K, dim) unit embeddings of the class texts.
        val: (m, dim) unit embeddings; none: the last step counts.
        val_labels: (m,) int64.
    """
    f, t, val = shots.double(), texts.double(), val.double()
    y, n = one_hot(labels, len(t)).double(), len(f)
    of_texts, val_of_texts = f @ t.T, val @ t.T
    counts = y.sum(0)
    w, b = y.T @ f, torch.zeros(len(t), dtype=torch.float64, device=f.device)
    alpha = torch.full_like(b, TEXT_SCALE * float(((y * of_texts).sum(0) / counts).mean()))
    rate = 4 * n / float(torch.linalg.matrix_norm(f, 2)) ** 2
    text_rate = n / (4 * float(of_texts.square().sum(0).max()))
    w_moving, b_moving = torch.zeros_like(w), torch.zeros_like(b)
    best, most = LPPlusPlus(w + alpha[:, None] * t, b, -1), -1
    for step in range(STEPS):
        residual = (torch.softmax(f @ w.T + b + alpha * of_texts, 1) - y) / n
        w_moving = MOMENTUM * w_moving + residual.T @ f
        b_moving = MOMENTUM * b_moving + residual.sum(0)
        w, b = w - rate * w_moving, b - rate * b_moving
        if (step + 1) % TEXT_EVERY == 0:
            alpha = alpha - text_rate * (residual * of_texts).sum(0)
        right = int(((val @ w.T + b + alpha * val_of_texts).argmax(1) == val_labels).sum())
        if right >= most:
            best, most = LPPlusPlus(w + alpha[:, None] * t, b, step), right
    return best
