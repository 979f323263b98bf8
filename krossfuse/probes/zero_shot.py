"""Zero-shot classification: the class whose text is nearest, with named prompt sets and their ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError, check_choice, check_positive
from krossfuse.core.parts import TEST, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.class_texts import ClassTexts, class_texts
from krossfuse.probes.options import SIMILARITIES, check_device, solving_device
from krossfuse.probes.rows import similarity_rows, unit_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.scoring import accuracy_measurements
from krossfuse.probes.space import EmbeddingSpace

TIE = 1e-6
"""Scores nearer than this, relative to the row's largest magnitude, are equal: the lowest class index wins.

It is above float32 rounding of an embedding and below any difference that means something, so classes with the same
text tie in every space, and a fused space with exact alignment decides as its cross-modal encoder does.
"""


def decide(scores: Tensor) -> Tensor:
    """Return the (n,) decisions on (n, classes) scores: the highest score, the lowest index of those tied.

    >>> decide(torch.tensor([[0.1, 0.7, 0.7 + 1e-9], [0.3, 0.1, 0.2]]))
    tensor([1, 0])
    """
    top = scores.amax(dim=1, keepdim=True)
    return (scores >= top - TIE * scores.abs().amax(dim=1, keepdim=True)).int().argmax(dim=1)


def rank_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the (n,) rank, 0 the best, of each row's label: scores above it, and tied ones of a lower index."""
    own = scores.gather(1, labels[:, None])
    tie = TIE * scores.abs().amax(dim=1, keepdim=True)
    before = torch.arange(scores.shape[1], device=scores.device)[None, :] < labels[:, None]
    return ((scores > own + tie) | (((scores - own).abs() <= tie) & before)).sum(dim=1)


class ZeroShotHead(nn.Module):
    """Scores of classes: the similarity of an embedding to the class's text.

    Args:
        texts: (n_texts, dim) embeddings of the class texts.
        owner: (n_texts,) int64, the class of each.
        n_classes: number of classes, each with one text or more.
        average: ``"embeddings"``: a class is the mean of its texts, scaled to norm 1; ``"similarities"``: it is their
            mean as it is, so that a score is the mean of the similarities to them.
        similarity: ``"dot"`` or ``"cosine"`` (each text and, for ``"embeddings"``, each mean is scaled to norm 1).
        cross_modal: (n_texts, d_ψ) the same texts in the cross-modal space. With ``"dot"``, the norm of a class's
            mean is taken there: an expert lengthens the fused texts, but has no say in image-text similarity.
        name: of the texts, in messages.
        classes: (n_classes,) int64, the label of each class, where they are not all classes of a label set; None:
            0, 1, 2, ...

    Attributes:
        weight: (n_classes, dim) float64 buffer.
        classes: (n_classes,) int64.

    Raises:
        DataError: a class has no text, or its normalised texts cancel out.
    """

    weight: Tensor
    classes: Tensor

    def __init__(
        self,
        texts: Tensor,
        owner: Tensor,
        *,
        n_classes: int,
        average: Literal["embeddings", "similarities"] = "embeddings",
        similarity: Literal["dot", "cosine"] = "dot",
        cross_modal: Tensor | None = None,
        name: str = "the class texts",
        classes: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_choice("average", average, ["embeddings", "similarities"])
        check_choice("similarity", similarity, SIMILARITIES)
        if len(texts) != len(owner):
            raise DataError(f"{len(texts)} embedded class texts for {len(owner)} owners")
        counts = torch.bincount(owner, minlength=n_classes)
        if len(counts) != n_classes or not bool((counts > 0).all()):
            missing = (counts == 0).nonzero().flatten().tolist()
            raise DataError(f"prompts must cover {n_classes} classes, but classes {missing} have no text")
        weight = _means(similarity_rows(texts, name, similarity), owner, counts)
        if average == "embeddings":
            lengths = weight
            if similarity == "dot" and cross_modal is not None:
                lengths = _means(unit_rows(cross_modal, f"{name}, cross-modal,"), owner, counts)
            norms = lengths.norm(dim=1, keepdim=True)
            if not bool((norms > 0).all()):
                raise DataError("the texts of a class cancel out: their mean is zero")
            weight = weight / norms
        self.register_buffer("weight", weight)
        classes = torch.arange(n_classes) if classes is None else classes
        self.register_buffer("classes", classes.to(weight.device), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return (n, n_classes) scores of (n, dim) embeddings, which are scaled to norm 1: it changes no decision."""
        embeddings = embeddings.to(self.weight.device)  # a stream may bring them on a GPU
        return unit_rows(embeddings, "the embeddings", dtype=self.weight.dtype) @ self.weight.T

    @torch.no_grad()
    def decide(self, embeddings: Tensor, *, block_rows: int = 4096) -> Tensor:
        """Return the (n,) int64 decisions, classes, on (n, dim) embeddings, read in blocks."""
        parts = [self.classes[decide(self(embeddings[block]))] for block in blocks(len(embeddings), block_rows)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _means(texts: Tensor, owner: Tensor, counts: Tensor) -> Tensor:
    sums = texts.new_zeros(len(counts), texts.shape[1]).index_add_(0, owner.to(texts.device), texts)
    return sums / counts.to(sums)[:, None]


def zero_shot_heads(
    space: EmbeddingSpace,
    texts: ClassTexts,
    *,
    average: Literal["embeddings", "similarities"] = "embeddings",
    similarity: Literal["dot", "cosine"] = "dot",
) -> tuple[ZeroShotHead, ZeroShotHead | None]:
    """Return the head of an embedding's class texts, and the cross-modal encoder's own where the space has it."""
    cross_modal, name, n_classes = None, " and ".join(map(str, texts.parts)), len(texts.classes)
    if all(part in space.reference for part in texts.parts):
        cross_modal = torch.cat([space.reference[part] for part in texts.parts])
    head = ZeroShotHead(
        torch.cat([space[part] for part in texts.parts]),
        texts.owner,
        n_classes=n_classes,
        average=average,
        similarity=similarity,
        cross_modal=cross_modal,
        name=name,
        classes=texts.classes,
    )
    if cross_modal is None:
        return head, None
    reference = ZeroShotHead(
        cross_modal,
        texts.owner,
        n_classes=n_classes,
        average=average,
        similarity="cosine",
        name=f"reference {name}",
        classes=texts.classes,
    )
    return head, reference


class ZeroShot(Probe):
    """Zero-shot classification by the nearest class text (CLIP, arXiv 2103.00020).

    Measurements, by label set, prompt set, split and modality: ``accuracy``, ``mean_per_class_accuracy`` (mean over the
    classes present), ``top5_accuracy`` where there are more than five classes, and ``agreement``, the share of
    decisions that are the cross-modal encoder's own, where the space has the reference. Heads are named
    ``<label set>/<prompt set>``. Items without a label and multilabel sets are left out, and so are items whose class
    has no text: the records then hold the number of such classes and items beside that of the classes told apart.

    Args:
        label_sets: names, or None for every single-label set that has prompts.
        prompt_sets: names, or None for each that a label set has; ``"a+b"`` is the ensemble of ``a`` and ``b``
            (every text of both counts once).
        average: what is averaged over a class's texts, see :class:`ZeroShotHead`.
        similarity: of items and texts: ``"dot"``, which is the fused kernel, or ``"cosine"`` of the fused
            embeddings. Equal where all texts have the same norm. The reference is always compared by cosine.
        modalities: of the items that are classified.
        split: the split that is classified.
        extra_splits: further splits on which the same heads are tested (out-of-distribution sets); a label set that
            has no labels for one of them is not tested there.
        block_rows: rows read at once.
        device: where similarities are computed; None is where the embeddings are, ``"auto"`` a CUDA device where there
            is one.
    """

    name = "zero_shot"

    def __init__(
        self,
        *,
        label_sets: Sequence[str] | None = None,
        prompt_sets: Sequence[str] | None = None,
        average: Literal["embeddings", "similarities"] = "embeddings",
        similarity: Literal["dot", "cosine"] = "dot",
        modalities: Sequence[Modality] = ("image",),
        split: str = TEST,
        extra_splits: Sequence[str] = (),
        block_rows: int = 4096,
        device: str | None = None,
    ) -> None:
        check_choice("average", average, ["embeddings", "similarities"])
        check_choice("similarity", similarity, SIMILARITIES)
        check_positive("block_rows", block_rows, integer=True)
        self.scope = Scope(
            label_sets=label_sets,
            modalities=modalities,
            splits=[split, *extra_splits],
            prompts=True,
            prompt_sets=prompt_sets,
        )
        self.average = average
        self.similarity = similarity
        self.block_rows = block_rows
        self.device = check_device(device)

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from items to classify and, in the same space, class texts."""
        return self.scope.why_not(space)

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; nothing is random, so ``seed`` changes nothing.

        Raises:
            ConfigError: a label set or prompt set that the dataset does not have.
            DataError: no item's class has a text, a split is not there, or features have NaN.
        """
        self.check(space.info, space.parts)
        modalities = self.scope.modalities
        for split in self.scope.splits:
            space[Part(split, next((m for m in modalities if Part(split, m) in space), modalities[0]))]
        measurements: list[Measurement] = []
        heads: dict[str, nn.Module] = {}
        for name in dict.fromkeys(name for _, name in self.scope.pairs(space)):
            label_set = space.info.label_sets[name]
            for prompt_set in self.scope.prompt_sets or list(label_set.prompts):
                texts = class_texts(space, name, prompt_set)
                head, reference = zero_shot_heads(space, texts, average=self.average, similarity=self.similarity)
                heads[f"{name}/{prompt_set}"] = head
                for split, modality in product(self.scope.splits, modalities):
                    if Part(split, modality) in space and split in label_set.labels:
                        measurements += self._measurements(space, texts, split, modality, head, reference)
        protocol = {
            "average": self.average,
            "similarity": self.similarity,
            "ties": f"lowest class index within {TIE:g} relative",
        }
        return ProbeResult(measurements, protocol, heads)

    @torch.no_grad()
    def _measurements(
        self,
        space: EmbeddingSpace,
        texts: ClassTexts,
        split: str,
        modality: Modality,
        head: ZeroShotHead,
        reference: ZeroShotHead | None,
    ) -> list[Measurement]:
        part, name = Part(split, modality), texts.label_set
        rows, labels, counts = texts.items(space, split, modality)
        correct, top5, same = [], [], []
        compare = reference is not None and part in space.reference
        device = solving_device(self.device) or space[part].device
        weight, truth = head.weight.to(device), labels.to(device)
        for block in blocks(len(rows), self.block_rows):
            at = rows[block]
            scores = unit_rows(space[part][at].to(device), part, rows=at) @ weight.T
            decisions = decide(scores)
            correct.append(decisions == truth[block])
            top5.append(rank_of(scores, truth[block]) < 5)
            if reference is not None and compare:
                theirs = unit_rows(space.reference[part][at].to(device), f"reference {part}", rows=at)
                same.append(decisions == decide(theirs @ reference.weight.to(device).T))
        shared: dict[str, Any] = {**texts.protocol, "split": split, "n_test": len(rows), **counts}
        measurements = accuracy_measurements(
            torch.cat(correct).cpu(),
            labels,
            modality=modality,
            label_set=name,
            protocol=shared,
            in_top5=torch.cat(top5).cpu() if len(texts.classes) > 5 else None,
        )
        if compare:
            kept = torch.cat(same).float().cpu()
            measurements.append(Measurement("agreement", float(kept.double().mean()), modality, name, shared, kept))
        return measurements
