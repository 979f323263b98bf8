"""Every problem of one label set: fitted, chosen on the validation shots, and tested."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import DataError
from krossfuse.core.parts import TRAIN, Part
from krossfuse.probes.base import Measurement
from krossfuse.probes.few_shot import tip_adapter
from krossfuse.probes.few_shot.clip_adapter import ClipAdapter
from krossfuse.probes.few_shot.forms import ADAPTER, LINEAR, LP, RESIDUAL, SAMPLES, TEXTS, TIP, TIP_F, Problem
from krossfuse.probes.few_shot.images import Images
from krossfuse.probes.few_shot.linear import Linear, TrainingSet
from krossfuse.probes.few_shot.lp_plus_plus import fit_lp_plus_plus
from krossfuse.probes.few_shot.residual import LOGIT_SPREAD, Residual, in_units, taus
from krossfuse.probes.few_shot.settings import Chosen, Classifier, Settings
from krossfuse.probes.few_shot.unlabelled import Unlabelled
from krossfuse.probes.labelled import labelled, part_labels
from krossfuse.probes.scoring import mean_per_class
from krossfuse.probes.selection import best_of
from krossfuse.probes.space import EmbeddingSpace

_BATCH_VALUES = 1 << 24
_BLOCK = 4096
_IMAGES = Part(TRAIN, "image")


_Classifier = TypeVar("_Classifier", bound=Classifier)
_Item = TypeVar("_Item")


class Task:
    """The problems of one label set.

    Args:
        settings: how they are fitted and chosen.
        space: the embedding.
        name: of the label set.
        prompt_set: whose texts are used, in the protocol.
    """

    def __init__(self, settings: Settings, space: EmbeddingSpace, name: str, prompt_set: str) -> None:
        self.settings, self.space, self.name, self.prompt_set = settings, space, name, prompt_set
        self.labels = part_labels(space, TRAIN, "image", name)
        self._unlabelled: dict[tuple[int, ...], Unlabelled] = {}

    def measurements(self, problems: Sequence[Problem]) -> list[Measurement]:
        """Return the measurements of all problems, in their order."""
        chosen: dict[Problem, Chosen] = {}
        self._linear(problems, chosen)
        self._caches(problems, chosen)
        self._probes_with_texts([problem for problem in problems if problem.form == LP], chosen)
        self._adapters([problem for problem in problems if problem.form == ADAPTER], chosen)
        return self._test(problems, [chosen[problem] for problem in problems])

    def _linear(self, problems: Sequence[Problem], chosen: dict[Problem, Chosen]) -> None:
        """Fit heads: problems of one training set share it, and sets of one number of classes are solved together."""
        sharing: dict[tuple[Any, ...], list[Problem]] = {}
        for problem in problems:
            if problem.form not in LINEAR:
                continue
            of_images, of_texts = problem.form != TEXTS, problem.form in (TEXTS, SAMPLES)
            key = (id(problem.subset), of_images, of_texts, tuple(problem.classes.tolist()))
            sharing.setdefault(key, []).append(problem)
        batches: dict[tuple[int, tuple[float, ...]], dict[TrainingSet, list[Problem]]] = {}
        for (_, of_images, of_texts, classes), members in sharing.items():
            grid = tuple(sorted(set().union(*(self._grid(problem.form) for problem in members))))
            training = self._training_set(members, of_images=of_images, of_texts=of_texts)
            batches.setdefault((len(classes), grid), {})[training] = members
        for (_, grid), batch in batches.items():
            for training, heads in self.settings.fit.heads(self.space, list(batch), grid):
                for problem in batch[training]:
                    own = [head for head in heads if head.C in self._grid(problem.form)]
                    chosen[problem] = self._choose_linear(problem, own)

    def _grid(self, form: str) -> tuple[float, ...]:
        if form == RESIDUAL and self.settings.head_C is not None:
            return (self.settings.head_C,)
        return self.settings.grid

    def _training_set(self, problems: Sequence[Problem], *, of_images: bool, of_texts: bool) -> TrainingSet:
        """Return the training set that some problems share."""
        subset, classes = problems[0].subset, problems[0].classes
        texts = next((problem.texts for problem in problems if problem.texts is not None), None)
        part = texts.part if texts is not None else _IMAGES
        rows, labels = self._rows(subset.train, self.labels, classes)
        if not of_images:
            rows, labels = rows[:0], labels[:0]
        if not of_texts or texts is None:
            return TrainingSet(subset, rows, labels, len(classes), part)
        return TrainingSet(subset, rows, labels, len(classes), part, texts.rows, texts.labels)

    @staticmethod
    def _rows(rows: Tensor, labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of some rows that are of the classes, and their numbers among these."""
        own = labels[rows]
        there = torch.isin(own, classes)
        return rows[there], torch.searchsorted(classes, own[there])

    def _choose_linear(self, problem: Problem, heads: Sequence[Linear]) -> Chosen:
        if problem.form != RESIDUAL:
            chosen, accuracy, n_val = self._best(problem, heads, squared=self.settings.fit.classifier == "ridge")
            return Chosen(chosen, accuracy, n_val, {"selected_C": chosen.C})
        assert problem.texts is not None
        texts, unlabelled = problem.texts.head, self._images_of(problem.classes)
        unit = unlabelled.spread(lambda images: images.text_scores(texts), problem.subset)
        several = [
            Residual(head, texts, own, unit, tau)
            for head, own in ((head, unlabelled.spread(head.scores, problem.subset)) for head in heads)
            for tau in taus(self.settings.tau, problem.subset.shots)
        ]
        best, accuracy, n_val = self._best(problem, several, scale=LOGIT_SPREAD)
        return Chosen(best, accuracy, n_val, {"selected_C": best.head.C, "tau": best.tau})

    def _caches(self, problems: Sequence[Problem], chosen: dict[Problem, Chosen]) -> None:
        keys = self._trained_keys([problem for problem in problems if problem.form == TIP_F])
        for problem in problems:
            if problem.form not in (TIP, TIP_F):
                continue
            assert problem.texts is not None
            shots, labels, unit = self._cache(problem)
            several = tip_adapter.candidates(
                keys.get(problem, shots.unit),
                one_hot(labels, len(problem.classes)),
                problem.texts.head,
                unit,
                alphas=self.settings.alpha,
                betas=self.settings.beta,
            )
            best, accuracy, n_val = self._best(problem, several)
            chosen[problem] = Chosen(best, accuracy, n_val, {"alpha": best.alpha, "beta": best.beta})

    def _cache(self, problem: Problem) -> tuple[Images, Tensor, float]:
        """Return the shots, their (n,) classes, and the spread of the texts' scores on unlabelled images."""
        assert problem.texts is not None
        head = problem.texts.head
        rows, labels = self._rows(problem.subset.train, self.labels, problem.classes)
        unit = self._images_of(problem.classes).spread(lambda images: images.text_scores(head), problem.subset)
        return Images(self.space, _IMAGES, rows, normalise=True), labels, unit

    def _trained_keys(self, problems: Sequence[Problem]) -> dict[Problem, Tensor]:
        """Return the trained keys of Tip-Adapter-F; caches of one size are trained side by side."""
        keys: dict[Problem, Tensor] = {}
        if not problems:
            return keys
        from krossfuse.probes.few_shot.tip_training import trained_keys  # imports Lightning

        for together in self._of_one_size(problems):
            caches, texts = [self._cache(problem) for problem in together], []
            for problem, (images, _, unit) in zip(together, caches, strict=True):
                assert problem.texts is not None
                texts.append(tip_adapter.text_logits(images.text_scores(problem.texts.head), unit))
            trained = trained_keys(
                torch.stack([images.unit for images, _, _ in caches]),
                torch.stack([labels for _, labels, _ in caches]),
                torch.stack(texts),
                seeds=[problem.subset.seed for problem in together],
                trainers=self.space.trainers,
            )
            keys |= dict(zip(together, trained, strict=True))
        return keys

    def _of_one_size(self, problems: Sequence[Problem]) -> Iterator[list[Problem]]:
        """Yield problems that can be trained side by side, as many as memory holds."""
        for together in _of_one(problems, lambda p: (p.subset.shots, len(p.classes))):
            size = together[0].subset.shots * len(together[0].classes) * self.space[_IMAGES].shape[1]
            for block in blocks(len(together), max(1, _BATCH_VALUES // size)):
                yield together[block]

    def _probes_with_texts(self, problems: Sequence[Problem], chosen: dict[Problem, Chosen]) -> None:
        """Fit LP++."""
        for problem in problems:
            shots, labels, texts, _ = self._unit_texts(problem)
            val, val_labels = self._val(problem)
            fit = fit_lp_plus_plus(shots.unit, labels, texts, val.unit, val_labels)
            best, accuracy, n_val = self._best(problem, [fit])
            chosen[problem] = Chosen(best, accuracy, n_val, {"step": best.step})

    def _adapters(self, problems: Sequence[Problem], chosen: dict[Problem, Chosen]) -> None:
        """Train CLIP-Adapter; adapters of one size are trained side by side."""
        if not problems:
            return
        from krossfuse.probes.few_shot.adapter_training import trained_adapters  # imports Lightning

        for together in self._of_one_size(problems):
            given = [self._unit_texts(problem) for problem in together]
            texts = torch.stack([LOGIT_SPREAD * in_units(texts, unit) for _, _, texts, unit in given])
            downs, ups = trained_adapters(
                torch.stack([shots.unit for shots, _, _, _ in given]),
                torch.stack([labels for _, labels, _, _ in given]),
                texts,
                n_shots=together[0].subset.shots,
                seeds=[problem.subset.seed for problem in together],
                trainers=self.space.trainers,
            )
            for problem, own, down, up in zip(together, texts, downs, ups, strict=True):
                best, accuracy, n_val = self._best(problem, [ClipAdapter(down, up, own)])
                chosen[problem] = Chosen(best, accuracy, n_val, {})

    def _unit_texts(self, problem: Problem) -> tuple[Images, Tensor, Tensor, float]:
        """Return the shots, their (n,) classes, the class texts (K, dim) scaled to norm 1, and their scores' spread."""
        assert problem.texts is not None
        shots, labels, _ = self._cache(problem)
        texts = normalize(problem.texts.head.weight, dim=1)
        spread = self._images_of(problem.classes).spread(lambda images: images.unit.to(texts) @ texts.T, problem.subset)
        return shots, labels, texts, spread

    def _images_of(self, classes: Tensor) -> Unlabelled:
        key = tuple(classes.tolist())
        if key not in self._unlabelled:
            normalise = self.settings.fit.normalise
            self._unlabelled[key] = Unlabelled(self.space, self.name, classes, normalise=normalise)
        return self._unlabelled[key]

    def _best(
        self, problem: Problem, classifiers: Sequence[_Classifier], *, squared: bool = False, scale: float = 1.0
    ) -> tuple[_Classifier, float, int]:
        """Return what is best on the validation shots, its accuracy there, and how many they are.

        Args:
            problem: whose shots they are.
            classifiers: to choose from.
            squared: see :func:`best_of`.
            scale: of the scores, which equally accurate ones are compared at.
        """
        images, labels = self._val(problem)
        scores = torch.stack([scale * classifier.scores(images) for classifier in classifiers])
        best, accuracy = best_of(scores, labels, squared=squared)
        return classifiers[best], accuracy, len(labels)

    def _val(self, problem: Problem) -> tuple[Images, Tensor]:
        """Return the validation shots and their classes."""
        subset = problem.subset
        labels = part_labels(self.space, subset.val_split, "image", self.name)
        rows, labels = self._rows(subset.val, labels, problem.classes)
        part = Part(subset.val_split, "image")
        return Images(self.space, part, rows, normalise=self.settings.fit.normalise), labels

    def _test(self, problems: Sequence[Problem], chosen: Sequence[Chosen]) -> list[Measurement]:
        split = self.settings.split
        part = Part(split, "image")
        every, labels_of = labelled(self.space, split, "image", self.name)
        found: dict[Problem, list[Measurement]] = {}
        both = list(zip(problems, chosen, strict=True))
        for together in _of_one(both, lambda pair: tuple(pair[0].classes.tolist())):
            classes = together[0][0].classes
            there = torch.isin(labels_of, classes)
            rows, labels = every[there], torch.searchsorted(classes, labels_of[there])
            if not len(rows):
                raise DataError(f"no item of {part} is of a class of label set {self.name!r} that has a text")
            right = torch.empty(len(together), len(rows))
            for block in blocks(len(rows), _BLOCK):
                images = Images(self.space, part, rows[block], normalise=self.settings.fit.normalise)
                for i, (_, choice) in enumerate(together):
                    right[i, block] = (choice.classifier.scores(images).argmax(1) == labels[block]).float()
            for (problem, choice), hits in zip(together, right, strict=True):
                found[problem] = self._measurements(problem, choice, hits, labels)
        return [measurement for problem in problems for measurement in found[problem]]

    def _measurements(self, problem: Problem, choice: Chosen, hits: Tensor, labels: Tensor) -> list[Measurement]:
        subset = problem.subset
        protocol: dict[str, Any] = {
            "shots": subset.shots,
            "form": problem.form,
            "subset_seed": subset.seed,
            "subset_digest": subset.digest,
            **choice.protocol,
            "val_accuracy": choice.val_accuracy,
            "val_split": subset.val_split,
            "n_val": choice.n_val,
            "n_texts": 0 if problem.texts is None else len(problem.texts.rows),
            "prompt_set": self.prompt_set,
            "split": self.settings.split,
            "n_test": len(hits),
            "n_classes": len(problem.classes),
        }
        accuracy, per_class = float(hits.double().mean()), mean_per_class(hits, labels)
        return [
            Measurement("accuracy", accuracy, "image", self.name, protocol, hits),
            Measurement("mean_per_class_accuracy", per_class, "image", self.name, protocol),
        ]


def _of_one(items: Iterable[_Item], key: Callable[[_Item], Hashable]) -> list[list[_Item]]:
    """Return the items in groups of one key each, in order."""
    groups: dict[Hashable, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
