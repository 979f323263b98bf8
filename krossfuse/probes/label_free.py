"""Classification by class texts and unlabelled images: what every probe of this kind shares."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.metrics import Metric, declare
from krossfuse.core.parts import SPLITS, TEST, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.class_texts import ClassTexts, class_texts
from krossfuse.probes.graph_kernels import FUSED, KERNELS, GraphKernel, Items, graph_kernel, why_no_kernel
from krossfuse.probes.neighbours import Neighbours, check_index, nearest_by_faiss, nearest_in_tiles
from krossfuse.probes.options import SIMILARITIES, check_device, check_names, solving_device
from krossfuse.probes.rows import similarity_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.scoring import accuracy_measurements
from krossfuse.probes.space import READ_ROWS, EmbeddingSpace
from krossfuse.probes.zero_shot import decide, rank_of, zero_shot_heads
from krossfuse.results.significance import compare

log = logging.getLogger(__name__)

declare(Metric(name="zero_shot_accuracy", low=0.0, high=1.0))
declare(Metric(name="errors_removed", low=None, high=1.0))

MODES = ("transductive", "inductive")

Array = NDArray[np.float64]


@dataclass
class Images:
    """The items of one modality: first those of the graph, then, in inductive mode, the tested ones.

    Attributes:
        items: all of them.
        n_graph: how many are the graph's.
        kernel: between them.
        index: how neighbours are found.
        factory: of a faiss index.
        nprobe: of a faiss index.
        block_rows: rows of a tile.
    """

    items: Items
    n_graph: int
    kernel: GraphKernel
    index: str
    factory: str
    nprobe: int
    block_rows: int
    _cache: dict[tuple[int, bool], Neighbours] = field(default_factory=dict)

    def within(self, k: int) -> Neighbours:
        """Return the k nearest other items of each item of the graph (all others, if they are fewer)."""
        return self._search(min(k, self.n_graph - 1), own=True)

    def outside(self, k: int) -> Neighbours:
        """Return the k nearest items of the graph of each item that comes after it."""
        return self._search(min(k, self.n_graph), own=False)

    def _search(self, k: int, *, own: bool) -> Neighbours:
        if (k, own) not in self._cache:
            first, last = (0, self.n_graph) if own else (self.n_graph, len(self.items))
            sizes, start = (last - first, self.n_graph), 0 if own else None
            if self.index == "faiss":
                self._cache[k, own] = nearest_by_faiss(
                    lambda b: self.kernel.vectors(slice(b.start + first, b.stop + first)),
                    self.kernel.vectors,
                    sizes,
                    k,
                    first=start,
                    factory=self.factory,
                    nprobe=self.nprobe,
                )
            else:
                self._cache[k, own] = nearest_in_tiles(
                    lambda b: self.kernel.read(slice(b.start + first, b.stop + first)),
                    self.kernel.read,
                    self.kernel.tile,
                    sizes,
                    k,
                    first=start,
                    block_rows=self.block_rows,
                )
        return self._cache[k, own]


class LabelFreeProbe(Probe):
    """A probe that improves zero-shot classification with unlabelled images, and no label.

    Measurements, by label set and prompt set: ``accuracy``, ``mean_per_class_accuracy`` and, above five classes,
    ``top5_accuracy``; ``zero_shot_accuracy``, that of the nearest class text on the same items, which is where it
    starts (:class:`~krossfuse.probes.ZeroShot`); and ``errors_removed``, the share of zero-shot's errors that it has
    fewer. The record of each has the counts behind them (``corrected``, ``spoiled``), and the p-value of the paired
    comparison of before and after (:func:`krossfuse.results.significance.compare`), whose verdict is logged. Labels
    only score the outcome. Items whose class has no text are not measured, but are in the graph all the same.

    Args:
        mode: ``"transductive"``: the tested images are in the graph; ``"inductive"``: they come later, one by one.
        kernel: what makes neighbours, see :func:`~krossfuse.probes.graph_kernels.graph_kernel`.
        splits: whose labelled items are tested, together.
        graph_splits: whose images are the graph, labelled or not. None: every one of train, val and test;
            in inductive mode, of these, those that are not tested. The tested splits always join a transductive graph.
        label_sets: names, or None for every single-label set that has prompts.
        prompt_sets: names, or None for each that a label set has; ``"a+b"`` is the ensemble of two.
        average: what is averaged over a class's texts, see :class:`~krossfuse.probes.ZeroShotHead`.
        similarity: of images and class texts, ``"dot"`` (the fused kernel) or ``"cosine"`` of the embeddings.
        modalities: of the items.
        index: ``"exact"`` neighbours, or ``"faiss"``, for kernels that are inner products (not the product's).
        faiss_factory: which index, for ``faiss.index_factory``.
        faiss_nprobe: cells that an inverted file looks into.
        block_rows: rows in one tile of similarities.
        device: where neighbours are found; None is where the embeddings are, ``"auto"`` a CUDA device where there is
            one.
    """

    def __init__(
        self,
        *,
        mode: Literal["transductive", "inductive"] = "transductive",
        kernel: str = FUSED,
        splits: Sequence[str] = (TEST,),
        graph_splits: Sequence[str] | None = None,
        label_sets: Sequence[str] | None = None,
        prompt_sets: Sequence[str] | None = None,
        average: Literal["embeddings", "similarities"] = "embeddings",
        similarity: Literal["dot", "cosine"] = "dot",
        modalities: Sequence[Modality] = ("image",),
        index: str = "exact",
        faiss_factory: str = "IVF1024,Flat",
        faiss_nprobe: int = 16,
        block_rows: int = 2048,
        device: str | None = None,
    ) -> None:
        self.mode = check_choice("mode", mode, MODES)
        self.kernel = check_choice("kernel", kernel, KERNELS)
        check_choice("average", average, ["embeddings", "similarities"])
        check_choice("similarity", similarity, SIMILARITIES)
        check_positive("block_rows", block_rows, integer=True)
        self.average, self.similarity, self.block_rows = average, similarity, block_rows
        self.index = check_index(index, faiss_factory, faiss_nprobe)
        self.faiss_factory, self.faiss_nprobe = faiss_factory, faiss_nprobe
        if self.index == "faiss" and kernel in ("product", "expert"):
            raise ConfigError(
                f"index=faiss finds neighbours by inner products, which kernel={kernel} has not in so many dimensions; "
                "say index=exact, or one of kernel=fused, cross_modal, sum"
            )
        self.device = check_device(device)
        self.scope = Scope(
            label_sets=label_sets,
            modalities=modalities,
            splits=splits,
            joined=True,
            prompts=True,
            prompt_sets=prompt_sets,
        )
        self.graph_splits = None if graph_splits is None else tuple(check_names("graph_splits", graph_splits))
        both = sorted(set(self.graph_splits or ()) & set(self.scope.splits))
        if both and mode == "inductive":
            raise ConfigError(
                f"graph_splits and splits both name {both}, but in mode=inductive no tested image is in the graph"
            )

    @abstractmethod
    def classify(self, images: Images, start: Tensor, graph_start: Tensor) -> tuple[Array, dict[str, Any]]:
        """Return scores (n, classes) of all graph items, or in inductive mode of all tested ones, and a record.

        Args:
            images: the graph, and the tested images outside of it.
            start: (n, classes) float64, similarities to the class texts of the items that are classified.
            graph_start: (n_graph, classes) the same of the graph's; in transductive mode it is ``start``.
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the method's own constants, for the records."""

    def check(self, info: DatasetInfo, parts: Collection[Part] = ()) -> None:
        """Check the names of label sets, splits and prompt sets; see :meth:`Probe.check`."""
        super().check(info, parts)
        labelled = [split for s in info.label_sets.values() for split in s.labels]
        there = [part.split for part in parts if "/" not in part.split]
        for split in self.graph_splits or ():
            check_choice("graph_splits", split, dict.fromkeys([*SPLITS, *labelled, *info.caption_of, *there]))

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from class texts, labelled items to test, images for the graph, or its kernel."""
        reason = self.scope.why_not(space)
        if reason is not None:
            return reason
        modalities = dict.fromkeys(modality for modality, _ in self.scope.pairs(space))
        reasons = [self._lacks(space, modality) for modality in modalities]
        return None if None in reasons else "; ".join(str(reason) for reason in reasons)

    def _lacks(self, space: EmbeddingSpace, modality: Modality) -> str | None:
        graph, tested = self._parts(space, modality)
        missing = [part for part in graph if part not in space]
        if missing or not graph:
            names = [str(part) for part in missing] or "any split but the tested ones"
            only = " (it only streams)" if any(part in space.streams for part in missing) else ""
            return f"mode={self.mode}: there are no embeddings of {names}{only} to make the graph of"
        if sum(len(space[part]) for part in graph) < 2:
            return f"the graph needs two images at least, but {[str(part) for part in graph]} have one"
        return why_no_kernel(space, self.kernel, modality, [*graph, *tested])

    def _parts(self, space: EmbeddingSpace, modality: Modality) -> tuple[list[Part], list[Part]]:
        """Return the parts of the graph, and those that are tested without being in it."""
        tested = [part for split in self.scope.splits if (part := Part(split, modality)) in space]
        if self.graph_splits is not None:
            graph = [Part(split, modality) for split in self.graph_splits]
        else:
            every = (Part(split, modality) for split in SPLITS)
            graph = [p for p in every if (p in space or p in space.streams) and p.split not in self.scope.splits]
        if self.mode == "inductive":
            return graph, tested
        return sorted({*graph, *tested}, key=lambda p: (p.split not in SPLITS, [*SPLITS, p.split].index(p.split))), []

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; ``seed`` changes nothing, but which 50,000 images of more than that parents are centred on.

        Raises:
            ConfigError: a label set, prompt set or split that the dataset does not have.
            DataError: what it needs is not there (:meth:`why_not`), features have NaN, or class texts are alike.
        """
        self.check(space.info, space.parts)
        if (reason := self.why_not(space)) is not None:
            raise DataError(reason)
        measurements: list[Measurement] = []
        for modality, names in self.scope.label_sets_of(space).items():
            if self._lacks(space, modality) is not None:
                continue
            images = self._images(space, modality, seed)
            for name in names:
                for prompt_set in self.scope.prompt_sets or list(space.info.label_sets[name].prompts):
                    texts = class_texts(space, name, prompt_set)
                    measurements += self._measurements(space, images, modality, texts)
        protocol = {
            "mode": self.mode,
            "average": self.average,
            "similarity": self.similarity,
            "index": self.index,
            **({"faiss_factory": self.faiss_factory} if self.index == "faiss" else {}),
            **self.options(),
        }
        return ProbeResult(measurements, protocol)

    def _images(self, space: EmbeddingSpace, modality: Modality, seed: int) -> Images:
        graph, tested = self._parts(space, modality)
        parts = (*graph, *tested)
        items = Items(parts, tuple(len(space[part]) for part in parts))
        n_graph = sum(items.sizes[: len(graph)])
        device = solving_device(self.device)
        kernel = graph_kernel(space, self.kernel, items, n_fit=n_graph, seed=seed, device=device)
        return Images(items, n_graph, kernel, self.index, self.faiss_factory, self.faiss_nprobe, self.block_rows)

    @torch.no_grad()
    def _measurements(
        self, space: EmbeddingSpace, images: Images, modality: Modality, texts: ClassTexts
    ) -> list[Measurement]:
        head, _ = zero_shot_heads(space, texts, average=self.average, similarity=self.similarity)
        device = solving_device(self.device)
        weight = head.weight if device is None else head.weight.to(device)
        items, n_graph = images.items, images.n_graph
        of_graph = self._similarities(space, items, slice(0, n_graph), weight)
        start, first = of_graph, 0
        if self.mode == "inductive":
            start, first = self._similarities(space, items, slice(n_graph, len(items)), weight), n_graph
        scores, record = self.classify(images, start, of_graph)
        splits = self.scope.splits_with(space, modality, texts.label_set)
        rows, labels, counts = [], [], dict[str, Any]()
        for split in splits:
            own, truth, count = texts.items(space, split, modality)
            rows.append(own + items.first(Part(split, modality)) - first)
            labels.append(truth)
            counts = {key: value + counts.get(key, 0) if "items" in key else value for key, value in count.items()}
        at, truth = torch.cat(rows), torch.cat(labels)
        after = torch.from_numpy(scores)[at]
        correct, before = decide(after) == truth, decide(start[at]) == truth
        protocol = {
            **texts.protocol,
            **images.kernel.described,
            "split": "+".join(splits),
            "graph_splits": "+".join(part.split for part in items.parts[: len(self._parts(space, modality)[0])]),
            "n_test": len(at),
            **counts,
            **record,
        }
        changes, verdict = _before_and_after(before, correct)
        protocol |= changes
        classes = len(texts.classes)
        measurements = accuracy_measurements(
            correct,
            truth,
            modality=modality,
            label_set=texts.label_set,
            protocol=protocol,
            in_top5=rank_of(after, truth) < 5 if classes > 5 else None,
        )
        hits = before.float()
        value = float(hits.double().mean())
        measurements.append(Measurement("zero_shot_accuracy", value, modality, texts.label_set, protocol, hits))
        wrong = protocol["errors_before"]
        if wrong:
            share = (wrong - protocol["errors_after"]) / wrong
            measurements.append(Measurement("errors_removed", share, modality, texts.label_set, protocol))
        log.info(
            "%s of %r, %s, %s: zero-shot %.2f %%, %s %.2f %% (%d errors corrected, %d made; %s)",
            self.name,
            space.info.name,
            texts.label_set,
            texts.prompt_set,
            100 * value,
            self.mode,
            100 * float(correct.double().mean()),
            protocol["corrected"],
            protocol["spoiled"],
            verdict,
        )
        return measurements

    def _similarities(self, space: EmbeddingSpace, items: Items, block: slice, weight: Tensor) -> Tensor:
        """Return (rows, classes) float64 similarities of a block of items to (classes, dim) texts, where these are."""
        out = []
        for part, rows in items.pieces(block):
            for b in blocks(rows.stop - rows.start, READ_ROWS):
                at = torch.arange(rows.start + b.start, rows.start + b.stop)
                x = similarity_rows(space[part][at].to(weight.device), part, self.similarity, rows=at)
                out.append((x @ weight.T).cpu())
        return torch.cat(out)


def _before_and_after(before: Tensor, after: Tensor) -> tuple[dict[str, Any], str]:
    """Return the counts and the p-value of (n,) hits before and after, for the records, and the verdict in words."""
    comparison = compare(after.double().numpy(), before.double().numpy())
    return {
        "errors_before": int((~before).sum()),
        "errors_after": int((~after).sum()),
        "corrected": int((after & ~before).sum()),
        "spoiled": int((before & ~after).sum()),
        "p_value": comparison.p_value,
    }, comparison.verdict
