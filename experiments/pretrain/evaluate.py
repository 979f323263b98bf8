"""Zero-shot accuracy and retrieval of a cross-modal encoder on the emoji that it was not trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from krossfuse.core.parts import SPLITS, TEST, Part
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import Encoder, EncoderModule

Measured = dict[str, dict[str, float]]


def evaluate(encoder: Encoder, data: BaseDataModule, *, prompt_set: str = "default", k: int = 10) -> Measured:
    """Measure on all held-out items together (``held_out``: train, val and test) and on ``test`` alone.

    Each image's caption, and each caption's image, is sought among all of the same items. Zero-shot accuracy counts
    the items that have a label.

    Returns:
        By set of items: ``items``, ``zero_shot/<label set>``, ``image_to_text/recall@k``, ``text_to_image/recall@k``.
    """
    model = encoder.load()
    images = {split: encode_images(model, data, Part(split, "image")) for split in SPLITS}
    texts = {split: encode_texts(model, data, Part(split, "text")) for split in SPLITS}
    by_items: Measured = {}
    for where, splits in (("held_out", SPLITS), ("test", (TEST,))):
        x, t = torch.cat([images[s] for s in splits]), torch.cat([texts[s] for s in splits])
        measured: dict[str, float] = {"items": len(x)}
        for name, label_set in data.info.label_sets.items():
            prompts = label_set.prompts[prompt_set]
            of_prompt = encode_texts(model, data, Part.prompts(name, prompt_set))
            sums = torch.zeros(len(label_set.classes), x.shape[1]).index_add(0, prompts.owner, of_prompt)
            labels = torch.cat([label_set.labels[s] for s in splits])
            hits = (x @ F.normalize(sums, dim=-1).T).argmax(1) == labels
            measured[f"zero_shot/{name}"] = float(hits[labels >= 0].float().mean())
        scores = x @ t.T
        measured[f"image_to_text/recall@{k}"] = recall(scores, k)
        measured[f"text_to_image/recall@{k}"] = recall(scores.T, k)
        by_items[where] = measured
    return by_items


def recall(scores: Tensor, k: int) -> float:
    """Return the share of rows whose own column is among the k best; a tie counts against it.

    Examples:
        >>> recall(torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.3, 0.3]]), k=2)
        0.6666666865348816
    """
    ahead = (scores >= scores.diagonal()[:, None]).sum(1) - 1
    return float((ahead < k).float().mean())


@torch.inference_mode()
def encode_images(model: EncoderModule, data: BaseDataModule, part: Part, batch_size: int = 64) -> Tensor:
    """Return the unit-norm features of an image part."""
    items = data.items(part)
    batches = (range(start, min(start + batch_size, len(items))) for start in range(0, len(items), batch_size))
    encoded = [model.encode_image(torch.stack([model.prepare_image(items[i]) for i in b])) for b in batches]  # type: ignore[arg-type]
    return F.normalize(torch.cat(encoded), dim=-1)


@torch.inference_mode()
def encode_texts(model: EncoderModule, data: BaseDataModule, part: Part, batch_size: int = 256) -> Tensor:
    """Return the unit-norm features of a text part."""
    items = [str(text) for text in data.items(part)]
    batches = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
    return F.normalize(torch.cat([model.encode_text(model.prepare_text(batch)) for batch in batches]), dim=-1)
