"""The contrastive training of the bundled CLIP's image tower and text projection."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.pretrain.data import Batch, Captions
from krossfuse.encoders.bundled import Tokenizer, build_clip, minilm_state_dict

FROZEN = "text.transformer."
"""Prefix of the tensors that come from MiniLM's own package and are neither trained nor saved."""


class Contrastive(pl.LightningModule):
    """CLIP's symmetric contrastive loss over names, plus the same over category captions.

    An image is matched with its own name among the names of the batch (both ways), and with its group's and its
    subgroup's caption among those of all groups and subgroups. MiniLM is frozen, so its pooled features of all
    captions are computed once.

    Args:
        model: open_clip's configuration, see :func:`krossfuse.encoders.bundled.build_clip`.
        captions: texts of the training emoji.
        max_lr: peak learning rate (AdamW; linear warm-up, then cosine to zero).
        warmup: share of the steps that warm up.
        weight_decay: of matrices and filters.
        category_weight: weight of each category loss.
        text_noise: standard deviation of the noise on text features, over their own.
        init_scale: initial inverse temperature.
        max_scale: its upper bound.
        seed: of the noise and the choice of category templates.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        captions: Captions,
        max_lr: float,
        warmup: float,
        weight_decay: float,
        category_weight: Mapping[str, float],
        text_noise: float,
        init_scale: float,
        max_scale: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.network: Any = build_clip(model)
        self.network.text.transformer.load_state_dict(minilm_state_dict())
        self.network.text.transformer.requires_grad_(False).eval()
        with torch.no_grad():
            self.network.logit_scale.fill_(math.log(init_scale))
        # Not in train mode (dropout) and once only: frozen features of every caption.
        self.names = torch.stack([self._text_features(texts) for texts in captions.names])
        self.categories = {
            kind: torch.stack([self._text_features(texts) for texts in by_template])
            for kind, by_template in captions.categories.items()
        }
        self.labels = dict(captions.labels)
        self.max_lr, self.warmup, self.weight_decay = max_lr, warmup, weight_decay
        self.category_weight, self.text_noise = dict(category_weight), text_noise
        self.max_scale = max_scale
        self.generator = torch.Generator().manual_seed(seed)
        self.network.visual.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _text_features(self, texts: Iterable[str], batch_size: int = 256) -> Tensor:
        tokenize, text, texts = Tokenizer(77), self.network.text, list(texts)
        pooled = []
        for start in range(0, len(texts), batch_size):
            tokens = tokenize(texts[start : start + batch_size])
            pooled.append(text.pooler(text.transformer(**tokens), tokens["attention_mask"]))
        return torch.cat(pooled)

    def _project(self, features: Tensor) -> Tensor:
        if self.text_noise:
            noise = torch.randn(features.shape, generator=self.generator).to(features)
            features = features + self.text_noise * features.std() * noise
        return F.normalize(self.network.text.proj(features).float(), dim=-1)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of one batch."""
        images = F.normalize(self.network.visual(batch.images).float(), dim=-1)
        scale = self.network.logit_scale.exp().clamp(max=self.max_scale)
        with torch.autocast(self.device.type, enabled=False):
            texts = self._project(self.names[batch.templates.cpu(), batch.rows.cpu()].to(self.device))
            logits = scale * images @ texts.T
            own = torch.arange(len(images), device=self.device)
            losses = {"names": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}
            for kind, features in self.categories.items():
                template = int(torch.randint(len(features), (), generator=self.generator))
                classes = self._project(features[template].to(self.device))
                target = self.labels[kind][batch.rows.cpu()].to(self.device)
                losses[kind] = F.cross_entropy(scale * images @ classes.T, target)
        loss = losses["names"] + sum(self.category_weight[kind] * losses[kind] for kind in self.categories)
        self.log_dict({f"loss/{kind}": value.detach() for kind, value in losses.items()})
        self.log_dict({"loss": loss.detach(), "scale": scale.detach()}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW (no decay on norms and scalars) with warm-up and cosine decay by step."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.max_lr,
        )
        total = int(self.trainer.estimated_stepping_batches)
        rising = max(1, round(self.warmup * total))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / rising) * (0.5 + 0.5 * math.cos(math.pi * step / total))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Keep the frozen tower's dropout off."""
        self.network.text.transformer.eval()


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write what was trained, in half precision, to a safetensors file, all or nothing.

    Args:
        network: open_clip's CustomTextCLIP.
        path: of the file; a file that is there is replaced.
        metadata: JSON-able; stored under ``krossfuse`` in the file's header.
    """
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().half().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith(FROZEN) and not name.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, partial, metadata={"krossfuse": json.dumps(dict(metadata), sort_keys=True)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
