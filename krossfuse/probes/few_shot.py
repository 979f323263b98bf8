"""Few-shot classification from images, images and class texts, or texts alone; all problems solved together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import TEST, TRAIN, VAL, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.labelled import labelled, part_labels
from krossfuse.probes.options import check_counts, check_grid, check_names
from krossfuse.probes.rows import check_range, finite_rows, largest, unit_rows
from krossfuse.probes.scope import Scope
from krossfuse.probes.scoring import mean_per_class
from krossfuse.probes.selection import best_of
from krossfuse.probes.solvers import fit_logistic_batch, fit_ridge_batch
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.subsets import FewShotSubset, draw_few_shot

FORMS = ("I", "I+T", "T")
GRID = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_BATCH_VALUES = 1 << 24
_BLOCK = 4096


@dataclass(frozen=True)
class _Problem:
    """One training set: rows of the training images and rows of a text part."""

    subset: FewShotSubset
    form: str
    images: Tensor
    text_part: Part
    texts: Tensor


@dataclass(frozen=True)
class _Chosen:
    """The solution that is best on the validation shots."""

    C: float
    val_accuracy: float
    weight: Tensor
    bias: Tensor


class FewShot(Probe):
    """Few-shot classification after cross-modal adaptation (Lin et al., CVPR 2023).

    Subsets of the training split are drawn by subset seeds 1 ... ``n_seeds``, the same for every method and run
    (:func:`~krossfuse.probes.subsets.draw_few_shot`). The regularisation is the one that is best on the validation
    shots, by accuracy and among equals by log-loss (squared error for ridge), and the classifier trained on the shots
    alone is tested on all of the test split. Measurements: ``accuracy`` and ``mean_per_class_accuracy``, one a
    number of shots, form and ``subset_seed``. Forms that need texts are left out where the space has none.

    Args:
        shots: images a class.
        forms: what is trained on: ``"I"`` the shots, ``"I+T"`` the shots and the class texts, ``"T"`` the class texts.
        n_seeds: number of subsets for each number of shots.
        classifier: ``"logistic"`` (multinomial) or ``"ridge"`` (targets ±1, closed form).
        grid: values of C (weight of the sum of losses against ½‖W‖²; ridge: alpha = 1/C).
        tol: bound on the logistic gradient, relative to that at zero weights.
        texts: ``"prompts"``, every text of the prompt set, or ``"captions"``, the texts that describe the shots.
        prompt_set: name, or None for the first that a label set has.
        text_weight: weight of a class's texts together, in images: a number, or ``"balanced"``, as many as it has shots
            (half of every batch in Lin et al.). They share it equally. None: 1 a text.
        normalise: whether embeddings are scaled to norm 1 first. Fused texts and images differ in norm.
        label_sets: names; None for every single-label set with enough items of each class for the most shots.
        split: the split that is tested.
    """

    name = "few_shot"

    def __init__(
        self,
        *,
        shots: Sequence[int] = (1, 2, 4, 8, 16),
        forms: Sequence[str] = ("I", "I+T"),
        n_seeds: int = 5,
        classifier: Literal["logistic", "ridge"] = "logistic",
        grid: Sequence[float] = GRID,
        tol: float = 1e-3,
        texts: Literal["prompts", "captions"] = "prompts",
        prompt_set: str | None = None,
        text_weight: float | Literal["balanced"] | None = "balanced",
        normalise: bool = True,
        label_sets: Sequence[str] | None = None,
        split: str = TEST,
    ) -> None:
        check_positive("n_seeds", n_seeds, integer=True)
        check_choice("classifier", classifier, ["logistic", "ridge"])
        check_positive("tol", tol)
        check_choice("texts", texts, ["prompts", "captions"])
        if isinstance(text_weight, str):
            check_choice("text_weight", text_weight, ["balanced"])
        elif text_weight is not None:
            check_positive("text_weight", text_weight)
        if split in (TRAIN, VAL):
            raise ConfigError(f"split={split!r} is where the shots come from; test on another")
        self.shots = check_counts("shots", shots)
        self.forms = check_names("forms", forms, FORMS)
        self.n_seeds = n_seeds
        self.classifier = classifier
        self.grid = check_grid("grid", grid)
        self.tol = tol
        self.texts = texts
        self.prompt_set = prompt_set
        self.text_weight = text_weight
        self.normalise = normalise
        self.scope = Scope(
            label_sets=label_sets,
            splits=[split],
            fitted=[TRAIN],
            prompt_sets=[prompt_set] if prompt_set is not None and texts == "prompts" else None,
        )

    def why_not(self, space: EmbeddingSpace) -> str | None:
        """Return what keeps it from labelled images to draw from and to test on, or from the texts of its forms."""
        reason = self.scope.why_not(space, self._lacks)
        if reason is None and not self._chosen(space):
            reason = f"forms={self.forms} need {self.texts}, which are not in this space"
        return reason

    def _chosen(self, space: EmbeddingSpace) -> list[str]:
        return [name for _, name in self.scope.pairs(space, self._lacks) if self._forms(space, name)]

    def _lacks(self, space: EmbeddingSpace, modality: Modality, name: str) -> str | None:
        try:
            self._draw(space, name, self.shots[-1], 1)
        except DataError as error:
            return str(error)
        return None

    def _forms(self, space: EmbeddingSpace, name: str) -> list[str]:
        part, owner = self._texts(space, name)
        return [form for form in self.forms if form == "I" or (len(owner) and part in space)]

    def subsets(self, space: EmbeddingSpace, label_set: str) -> list[FewShotSubset]:
        """Return the subsets that :meth:`evaluate` trains and validates on, by shots and seed.

        Raises:
            DataError: a class has too few items.
        """
        return [self._draw(space, label_set, k, s) for k in self.shots for s in range(1, self.n_seeds + 1)]

    def _draw(self, space: EmbeddingSpace, name: str, shots: int, seed: int) -> FewShotSubset:
        label_set = space.info.label_sets[name]
        val = None
        if Part(VAL, "image") in space and VAL in label_set.labels:
            val = part_labels(space, VAL, "image", name)
        labels = part_labels(space, TRAIN, "image", name)
        return draw_few_shot(labels, shots, seed, classes=label_set.classes, val_labels=val)

    def evaluate(self, space: EmbeddingSpace, *, seed: int) -> ProbeResult:
        """Measure; the subsets have seeds of their own, so ``seed`` changes nothing.

        Raises:
            ConfigError: a label set or prompt set that the dataset does not have.
            DataError: a class has fewer items than shots, or features have NaN.
        """
        self.check(space.info, space.parts)
        measurements: list[Measurement] = []
        drawn: dict[str, Any] = {}
        for name in self._chosen(space):
            prompts = space.info.label_sets[name].prompts
            if self.texts == "prompts" and self.prompt_set is not None and self.prompt_set not in prompts:
                raise DataError(f"label set {name!r} has no prompt set {self.prompt_set!r}; it has {sorted(prompts)}")
            measurements += self._evaluate(space, name)
            drawn[name] = [subset.written_down() for subset in self.subsets(space, name)]
        return ProbeResult(
            measurements,
            {
                "classifier": self.classifier,
                "grid": list(self.grid),
                "tol": self.tol,
                "selected_on": "validation shots, min(4, shots) a class",
                "texts": self.texts,
                "text_weight": self.text_weight,
                "normalise": self.normalise,
                "n_subsets": self.n_seeds,
            },
            drawn=drawn,
        )

    def _evaluate(self, space: EmbeddingSpace, name: str) -> list[Measurement]:
        labels = part_labels(space, TRAIN, "image", name)
        n_classes = len(space.info.label_sets[name].classes)
        problems = self._problems(space, name)
        chosen = []
        for batch in _batches(problems, space[Part(TRAIN, "image")].shape[1]):
            x, y, weight = self._padded(space, name, batch, labels)
            if self.classifier == "ridge":
                weights, biases = fit_ridge_batch(x, y, weight, self.grid, n_classes)
            else:
                fit = fit_logistic_batch(x, y, n_classes=n_classes, C=self.grid, weight=weight, tol=self.tol)
                weights, biases = fit.weights, fit.intercepts
            for problem, w, b in zip(batch, weights, biases, strict=True):
                chosen.append(self._select(space, name, problem, w, b))
        return self._test(space, name, problems, chosen)

    def _problems(self, space: EmbeddingSpace, name: str) -> list[_Problem]:
        part, owner = self._texts(space, name)
        problems = []
        for subset in self.subsets(space, name):
            texts = torch.arange(len(owner))
            if self.texts == "captions":
                texts = torch.isin(space.info.caption_of[TRAIN], subset.train).nonzero().flatten()
            for form in self._forms(space, name):
                images = subset.train if "I" in form else subset.train[:0]
                problems.append(_Problem(subset, form, images, part, texts if "T" in form else texts[:0]))
        return problems

    def _texts(self, space: EmbeddingSpace, name: str) -> tuple[Part, Tensor]:
        """Return the part of the texts that may be trained on, and their classes."""
        if self.texts == "captions":
            part = Part(TRAIN, "text")
            there = part in space and TRAIN in space.info.caption_of
            return part, part_labels(space, TRAIN, "text", name) if there else torch.zeros(0, dtype=torch.int64)
        prompts = space.info.label_sets[name].prompts
        prompt_set = self.prompt_set or next(iter(prompts), "")
        owner = prompts[prompt_set].owner if prompt_set in prompts else torch.zeros(0, dtype=torch.int64)
        return Part.prompts(name, prompt_set), owner

    def _padded(
        self, space: EmbeddingSpace, name: str, batch: Sequence[_Problem], labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples (P, n, dim), labels (P, n) and weights (P, n), where padding has weight 0."""
        _, owner = self._texts(space, name)
        longest = max(len(p.images) + len(p.texts) for p in batch)
        image_part = Part(TRAIN, "image")
        x = torch.zeros(len(batch), longest, space[image_part].shape[1], dtype=self._dtype(space))
        y, weight = torch.zeros(len(batch), longest, dtype=torch.int64), torch.zeros(len(batch), longest, dtype=x.dtype)
        for i, p in enumerate(batch):
            n, end = len(p.images), len(p.images) + len(p.texts)
            x[i, :n], y[i, :n], weight[i, :n] = self._read(space, image_part, p.images), labels[p.images], 1.0
            if not len(p.texts):
                continue
            classes = owner[p.texts]
            x[i, n:end], y[i, n:end], weight[i, n:end] = self._read(space, p.text_part, p.texts), classes, 1.0
            if self.text_weight is not None:
                together = p.subset.shots if isinstance(self.text_weight, str) else self.text_weight
                weight[i, n:end] = together / torch.bincount(classes)[classes].to(x.dtype)
        return x, y, weight

    def _dtype(self, space: EmbeddingSpace) -> torch.dtype:
        return torch.promote_types(space[Part(TRAIN, "image")].dtype, torch.float32)

    def _read(self, space: EmbeddingSpace, part: Part, rows: Tensor) -> Tensor:
        block = space[part][rows].to(self._dtype(space))
        if self.normalise:
            return unit_rows(block, part, dtype=None, rows=rows)
        if len(finite_rows(block, part, rows=rows)):
            way_out = "scale the embeddings, or say normalise=true"
            check_range(largest(block), (1, block.shape[1]), block.dtype, part, way_out=way_out)
        return block

    def _select(self, space: EmbeddingSpace, name: str, problem: _Problem, w: Tensor, b: Tensor) -> _Chosen:
        """Return the solution, of w (n_C, K, dim) and b (n_C, K), that is best on the validation shots."""
        subset = problem.subset
        labels = part_labels(space, subset.val_split, "image", name)[subset.val]
        x = self._read(space, Part(subset.val_split, "image"), subset.val)
        scores = torch.einsum("nd,ckd->cnk", x, w) + b[:, None]
        best, accuracy = best_of(scores, labels, squared=self.classifier == "ridge")
        return _Chosen(self.grid[best], accuracy, w[best], b[best])

    def _test(
        self, space: EmbeddingSpace, name: str, problems: Sequence[_Problem], chosen: Sequence[_Chosen]
    ) -> list[Measurement]:
        part = Part(self.scope.split, "image")
        rows, labels = labelled(space, self.scope.split, "image", name)
        weights, biases = torch.stack([c.weight for c in chosen]), torch.stack([c.bias for c in chosen])
        right = torch.empty(len(chosen), len(rows))
        for block in blocks(len(rows), _BLOCK):
            scores = self._read(space, part, rows[block]) @ weights.flatten(0, 1).T + biases.flatten()
            decisions = scores.reshape(-1, *biases.shape).argmax(2)
            right[:, block] = (decisions == labels[block, None]).float().T
        measurements = []
        for problem, choice, hits in zip(problems, chosen, right, strict=True):
            subset = problem.subset
            protocol: dict[str, Any] = {
                "shots": subset.shots,
                "form": problem.form,
                "subset_seed": subset.seed,
                "subset_digest": subset.digest,
                "selected_C": choice.C,
                "val_accuracy": choice.val_accuracy,
                "val_split": subset.val_split,
                "n_val": len(subset.val),
                "n_texts": len(problem.texts),
                "prompt_set": "" if self.texts == "captions" else problem.text_part.split.rsplit("/", 1)[-1],
                "split": self.scope.split,
                "n_test": len(rows),
            }
            per_class = mean_per_class(hits, labels)
            measurements += [
                Measurement("accuracy", float(hits.double().mean()), "image", name, protocol, hits),
                Measurement("mean_per_class_accuracy", per_class, "image", name, protocol),
            ]
        return measurements


def _batches(problems: list[_Problem], dim: int) -> Iterator[list[_Problem]]:
    """Cut the problems, in order, into batches of samples that fit in memory when padded."""
    longest = max(len(p.images) + len(p.texts) for p in problems)
    for block in blocks(len(problems), max(1, _BATCH_VALUES // (longest * dim))):
        yield problems[block]
