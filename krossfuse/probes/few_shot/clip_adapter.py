"""CLIP-Adapter: a bottleneck MLP blended into the image embedding, which class texts classify (arXiv 2110.04544).

With unit embeddings f of images and t_k of class texts, and A(f) = relu(W₂·relu(W₁·f)), W₁ to a quarter of the
dimensions,

    f' = (0.2·A(f) + 0.8·f)/‖...‖,    logits_k = g·f'·t_k,

as the authors' code has it (``clip_adapter.py``, read, not run beside this). Its length of f does not matter: A has no
biases. Departures: g makes the spread of the texts' scores 2, as in ``tip_adapter.py`` (theirs is CLIP's own
temperature), and the residual ratio is their code's for every dataset (the paper tunes it). ``adapter_training.py``
trains it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize, relu

from krossfuse.probes.few_shot.images import Images

RATIO, REDUCTION = 0.2, 4


def adapted(images: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return f' of unit embeddings, both (..., n, dim), with W₁ (..., hidden, dim) and W₂ (..., dim, hidden)."""
    new = relu(relu(images @ down.mT) @ up.mT)
    return normalize(RATIO * new + (1 - RATIO) * images, dim=-1)


@dataclass(frozen=True)
class ClipAdapter:
    """A trained adapter: W₁, W₂, and the class texts times g, (K, dim)."""

    down: Tensor
    up: Tensor
    texts: Tensor

    def scores(self, images: Images) -> Tensor:
        """Return the (n, K) logits of images."""
        return adapted(images.unit, self.down, self.up).to(self.texts) @ self.texts.T
