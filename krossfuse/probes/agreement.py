"""How far a fused space keeps the cross-modal one: similarities, decisions, modality gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError, check_choice, check_positive
from krossfuse.core.parts import TEST, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.options import SIMILARITIES, check_device, solving_device
from krossfuse.probes.rows import similarity_rows, unit_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.zero_shot import ZeroShot

PROMPTS = "prompts/"
_BLOCK = 4096


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Return the distance between the mean normalised image and the mean normalised text (Liang et al. 2022).

    >>> round(modality_gap(torch.eye(2), torch.tensor([[0.0, 3.0]])), 4)
    0.7071
    """

    def mean(x: Tensor, what: str) -> Tensor:
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for b in blocks(len(x), _BLOCK):
            total += unit_rows(x[b], what, rows=torch.arange(b.start, b.stop)).sum(0)
        return total / len(x)

    return float((mean(images, "the images") - mean(texts, "the texts")).norm())


def row_spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n,) Spearman correlations of the rows of two (n, m) arrays; NaN where a row is constant."""
    from scipy.stats import rankdata

    x, y = (rankdata(v, axis=1) for v in (a, b))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        out: NDArray[np.float64] = (x * y).sum(1) / norms
    return out


class Agreement(Probe):
    """Agreement of an embedding with the cross-modal encoder's own (``space.reference``).

    Measurements: ``spearman``, the rank correlation of image-text similarities in the two spaces: ``image-text`` over
    all pairs together, ``image->text`` the mean over images of the correlation over texts, ``text->image`` the other
    way; ``zero_shot_agreement``, the share of equal zero-shot decisions, by label set and prompt set; ``modality_gap``
    of the fused (``space: fused``) and the cross-modal embedding (``space: cross_modal``), see :func:`modality_gap`.
    Texts are those of the split or, where it has none, all class texts.

    Args:
        similarity: in the fused space, ``"dot"`` (the fused kernel) or ``"cosine"``; in the reference always cosine.
        split: whose items are compared.
        max_items: at most this many images and as many texts, drawn by the seed, enter the rank correlations.
        device: where similarities are computed; None is where the embeddings are, ``"auto"`` a CUDA device where there
            is one. Ranks are the CPU's.
    """

    name = "agreement"

    def __init__(
        self,
        *,
        similarity: Literal["dot", "cosine"] = "dot",
        split: str = TEST,
        max_items: int = 1000,
        device: str | None = None,
    ) -> None:
        check_choice("similarity", similarity, SIMILARITIES)
        check_positive("max_items", max_items, integer=True)
        self.similarity = similarity
        self.scope = Scope(modalities=["image", "text"], splits=[split])
        self.max_items = max_items
        self.device = check_device(device)
        self.zero_shot = ZeroShot(similarity=similarity, split=split, device=device)

    def _texts(self, space: EmbeddingSpace) -> list[Part]:
        texts = Part(self.scope.split, "text")
        if texts in space and texts in space.reference:
            return [texts]
        return sorted(p for p in space.parts if p.split.startswith(PROMPTS) and p in space.reference)

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from images and texts both in this space and in the reference."""
        images = Part(self.scope.split, "image")
        if images in space and images in space.reference and self._texts(space):
            return None
        return (
            f"agreement needs images and texts of {self.scope.split!r} in the fused and in the cross-modal space; "
            f"fused has {[str(p) for p in sorted(space.parts)]}, cross-modal "
            f"{[str(p) for p in sorted(space.reference)]}"
        )

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; ``seed`` decides which items enter the rank correlations.

        Raises:
            DataError: the space has no reference, or features have NaN.
        """
        reason = self.why_not(space)
        if reason is not None:
            raise DataError(reason)
        images, texts = Part(self.scope.split, "image"), self._texts(space)
        generator = torch.Generator().manual_seed(seed)
        device = solving_device(self.device) or space[images].device
        n_texts = sum(len(space[part]) for part in texts)
        image_rows = _sample(len(space[images]), self.max_items, generator)
        text_rows = _sample(n_texts, self.max_items, generator)

        def similarities(parts: Mapping[Part, Tensor], similarity: str) -> NDArray[np.float64]:
            x = similarity_rows(parts[images][image_rows].to(device), images, similarity, rows=image_rows)
            t = similarity_rows(
                torch.cat([parts[p] for p in texts])[text_rows].to(device),
                " and ".join(map(str, texts)),
                similarity,
                rows=text_rows,
            )
            values: NDArray[np.float64] = (x @ t.T).cpu().numpy()
            return values

        if len(text_rows) < 2 or len(image_rows) < 2:
            raise DataError(
                f"a rank correlation needs two images and two texts or more, but {self.scope.split!r} has "
                f"{len(image_rows)} and {len(text_rows)} (max_items={self.max_items})"
            )
        fused, reference = similarities(space.parts, self.similarity), similarities(space.reference, "cosine")
        _check_varied(fused, "fused")
        _check_varied(reference, "cross-modal")
        shared: dict[str, Any] = {"split": self.scope.split, "n_images": len(image_rows), "n_texts": len(text_rows)}
        together = float(row_spearman(fused.reshape(1, -1), reference.reshape(1, -1))[0])
        measurements = [Measurement("spearman", together, "image-text", protocol=shared)]
        for direction, a, b in (("image->text", fused, reference), ("text->image", fused.T, reference.T)):
            each = torch.from_numpy(row_spearman(a, b))
            measurements.append(
                Measurement("spearman", float(each.mean()), direction, protocol=shared, per_item=each.float())
            )
        for name, parts in (("fused", space.parts), ("cross_modal", space.reference)):
            gap = modality_gap(parts[images], torch.cat([parts[p] for p in texts]))
            measurements.append(
                Measurement("modality_gap", gap, "image-text", protocol={"split": self.scope.split, "space": name})
            )
        if self.zero_shot.applies(space):
            measurements += [
                Measurement("zero_shot_agreement", m.value, m.modality, m.label_set, m.protocol, m.per_item)
                for m in self.zero_shot.evaluate(space, seed=seed).measurements
                if m.metric == "agreement"
            ]
        texts_are = "split" if texts == [Part(self.scope.split, "text")] else "class texts"
        return ProbeResult(
            measurements, {"similarity": self.similarity, "texts": texts_are, "max_items": self.max_items}
        )


def _check_varied(similarities: NDArray[np.float64], space: str) -> None:
    """Refuse similarities of an item that are all equal: they have no ranks.

    Raises:
        DataError: there is such an image or text.
    """
    for what, values in (("image", similarities), ("text", similarities.T)):
        constant = np.flatnonzero(np.ptp(values, axis=1) == 0)
        if len(constant):
            other = "texts" if what == "image" else "images"
            raise DataError(
                f"{what} {constant[0]} of those compared is equally similar to all {other} in the {space} space "
                f"({len(constant)} of {len(values)} are), so there is no rank correlation"
            )


def _sample(n: int, most: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[:most].sort().values
