"""Retrieval between images and texts, both ways, with several captions an image, in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError, check_choice, check_positive
from krossfuse.core.parts import TEST, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.options import SIMILARITIES, check_counts, check_device, solving_device
from krossfuse.probes.rows import similarity_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.space import EmbeddingSpace

TIE = 1e-7
"""Similarities nearer than this, relative to the RMS of the true pairs', are equal: the earlier row comes first."""


@dataclass(frozen=True)
class RetrievalRanks:
    """Where the true items come in each ranking, 0 the first.

    Attributes:
        of_text: (n_texts,) int64, the rank of each text among all texts, for its own image as the query.
        of_image: (n_texts,) int64, the rank of its image among all images, for each text as the query.
    """

    of_text: Tensor
    of_image: Tensor


@torch.no_grad()
def retrieval_ranks(
    images: Tensor,
    texts: Tensor,
    caption_of: Tensor,
    *,
    similarity: Literal["dot", "cosine"] = "dot",
    block_rows: int = 1024,
    device: torch.device | None = None,
    names: tuple[object, object] = ("the images", "the texts"),
) -> RetrievalRanks:
    """Rank every image against every text; at most ``block_rows`` squared similarities exist at once.

    Args:
        images: (n_images, dim).
        texts: (n_texts, dim).
        caption_of: (n_texts,) int64, the image of each text.
        similarity: ``"dot"`` or ``"cosine"``.
        block_rows: rows of images and of texts in one tile.
        device: where to compute; None is where the images are. The ranks are on the CPU.
        names: of images and texts, in messages.

    Raises:
        DataError: features have NaN.
    """
    n_images, n_texts = len(images), len(texts)
    device = images.device if device is None else device
    caption_of = caption_of.cpu()

    def read(x: Tensor, which: int, rows: Tensor | slice) -> Tensor:
        numbers = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop)
        return similarity_rows(x[rows].to(device), names[which], similarity, rows=numbers)

    matched = torch.empty(n_texts, dtype=torch.float64, device=device)
    for t in blocks(n_texts, block_rows):
        matched[t] = (read(images, 0, caption_of[t]) * read(texts, 1, t)).sum(1)
    tie = TIE * matched.square().mean().sqrt()
    of_text = torch.zeros(n_texts, dtype=torch.int64, device=device)
    of_image = torch.zeros(n_texts, dtype=torch.int64, device=device)
    # Captions sorted by image: those of one block of images are one slice.
    order = torch.argsort(caption_of, stable=True)
    first = torch.searchsorted(caption_of[order], torch.arange(n_images + 1))
    order, caption_of = order.to(device), caption_of.to(device)
    for i in blocks(n_images, block_rows):
        image_rows = torch.arange(i.start, i.stop, device=device)
        x = read(images, 0, i)
        mine = order[int(first[i.start]) : int(first[i.stop])]
        for t in blocks(n_texts, block_rows):
            text_rows = torch.arange(t.start, t.stop, device=device)
            s = x @ read(texts, 1, t).T
            of_image[t] += _before(s, matched[t][None, :], tie, image_rows[:, None] < caption_of[t][None, :]).sum(0)
            for m in blocks(len(mine), block_rows):
                pairs = mine[m]
                row = s[caption_of[pairs] - i.start]
                of_text[pairs] += _before(row, matched[pairs][:, None], tie, text_rows[None, :] < pairs[:, None]).sum(1)
    return RetrievalRanks(of_text.cpu(), of_image.cpu())


def _before(s: Tensor, matched: Tensor, tie: Tensor, earlier: Tensor) -> Tensor:
    return (s > matched + tie) | ((s >= matched - tie) & earlier)


class Retrieval(Probe):
    """Image-text retrieval: ``recall@k``, ``median_rank`` and ``map`` (mean average precision) both ways.

    ``image->text``: the query is an image that has a caption, the gallery all texts of the split; a hit is any of its
    captions among the first k (the rule of Flickr30k and MSCOCO), its rank that of the first. ``text->image``: the
    query is a text, the gallery all images. Equally similar items rank in the order of their rows. Ranks start at 1.

    Args:
        ks: of recall@k.
        similarity: ``"dot"`` (the fused kernel) or ``"cosine"``.
        split: the split whose images and texts are ranked.
        block_rows: rows of images and of texts in one tile of similarities.
        device: where similarities are computed; None is where the embeddings are, ``"auto"`` a CUDA device where there
            is one.
    """

    name = "retrieval"

    def __init__(
        self,
        *,
        ks: Sequence[int] = (1, 5, 10),
        similarity: Literal["dot", "cosine"] = "dot",
        split: str = TEST,
        block_rows: int = 1024,
        device: str | None = None,
    ) -> None:
        check_choice("similarity", similarity, SIMILARITIES)
        check_positive("block_rows", block_rows, integer=True)
        self.ks = check_counts("ks", ks)
        self.similarity = similarity
        self.scope = Scope(modalities=["image", "text"], splits=[split])
        self.block_rows = block_rows
        self.device = check_device(device)

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from images and texts of the split in this space, and which describes which."""
        split = self.scope.split
        missing = [str(part) for part in (Part(split, "image"), Part(split, "text")) if part not in space]
        if missing:
            return (
                f"there are no embeddings of {' and '.join(missing)} in this space; "
                f"there are {[str(p) for p in sorted(space.parts)]}"
            )
        if split not in space.info.caption_of:
            return f"dataset {space.info.name!r} does not say which text of {split!r} describes which image"
        return None

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; nothing is random, so ``seed`` changes nothing.

        Raises:
            DataError: a caption has no image, k is larger than the gallery, or features have NaN.
        """
        reason = self.why_not(space)
        if reason is not None:
            raise DataError(reason)
        split = self.scope.split
        images, texts = space[Part(split, "image")], space[Part(split, "text")]
        caption_of = space.info.caption_of[split].long()
        if len(caption_of) != len(texts):
            raise DataError(
                f"{space.info.name!r} says for {len(caption_of)} texts of {split!r} which image they describe, "
                f"but the embedding has {len(texts)}"
            )
        lost = ((caption_of < 0) | (caption_of >= len(images))).nonzero().flatten()
        if len(lost):
            raise DataError(
                f"text {int(lost[0])} of {split!r} describes image {int(caption_of[lost[0]])}, but there are "
                f"images 0 ... {len(images) - 1} ({len(lost)} captions without an image)"
            )
        for gallery, n in (("images", len(images)), ("texts", len(texts))):
            if self.ks[-1] > n:
                raise DataError(f"recall@{self.ks[-1]} needs a gallery of as many {gallery}, but {split!r} has {n}")
        ranks = retrieval_ranks(
            images,
            texts,
            caption_of,
            similarity=self.similarity,
            block_rows=self.block_rows,
            device=solving_device(self.device),
            names=(Part(split, "image"), Part(split, "text")),
        )
        shared = {"split": split, "n_images": len(images), "n_texts": len(texts)}
        first, precision = _by_image(ranks.of_text, caption_of, len(images))
        measurements = [
            *self._measurements(first, precision, "image->text", {**shared, "n_test": len(first)}),
            *self._measurements(
                ranks.of_image, 1 / (1 + ranks.of_image.double()), "text->image", {**shared, "n_test": len(texts)}
            ),
        ]
        return ProbeResult(measurements, {"similarity": self.similarity, "ties": "the earlier row first"})

    def _measurements(
        self, first: Tensor, precision: Tensor, direction: str, protocol: dict[str, Any]
    ) -> list[Measurement]:
        measurements = []
        for k in self.ks:
            hits = (first < k).float()
            measurements.append(
                Measurement(f"recall@{k}", float(hits.double().mean()), direction, protocol=protocol, per_item=hits)
            )
        middle = float((first.double() + 1).quantile(0.5))
        return [
            *measurements,
            Measurement("median_rank", middle, direction, protocol=protocol),
            Measurement("map", float(precision.mean()), direction, protocol=protocol, per_item=precision.float()),
        ]


def _by_image(rank: Tensor, caption_of: Tensor, n_images: int) -> tuple[Tensor, Tensor]:
    """Return, for each image with a caption, the rank of its first caption and the average precision of all."""
    order = rank.argsort(stable=True)
    order = order[caption_of[order].argsort(stable=True)]
    image, rank = caption_of[order], rank[order]
    counts = torch.bincount(image, minlength=n_images)
    start = counts.cumsum(0) - counts
    nth = torch.arange(len(image)) - start[image]
    precision = torch.zeros(n_images, dtype=torch.float64)
    precision.index_add_(0, image, (nth + 1) / (rank.double() + 1))
    queries = counts > 0
    return rank[start[queries]], precision[queries] / counts[queries]
