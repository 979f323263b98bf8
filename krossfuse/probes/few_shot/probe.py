"""The few-shot probe: every form on every subset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import TEST, TRAIN, VAL, Modality, Part
from krossfuse.probes.base import Measurement, Probe, ProbeResult
from krossfuse.probes.few_shot.forms import FORMS, RESIDUAL, SHOTS, TIP, TIP_F, Problem
from krossfuse.probes.few_shot.linear import LinearFit
from krossfuse.probes.few_shot.residual import check_tau
from krossfuse.probes.few_shot.settings import Settings
from krossfuse.probes.few_shot.task import Task
from krossfuse.probes.few_shot.texts import ClassTexts
from krossfuse.probes.labelled import part_labels
from krossfuse.probes.options import check_counts, check_grid, check_names
from krossfuse.probes.scope import Scope
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.probes.subsets import FewShotSubset, draw_few_shot

GRID = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
ALPHAS = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0)
BETAS = (1.0, 3.0, 5.5, 8.0, 12.0)


class FewShot(Probe):
    """Few-shot classification.

    Subsets of the training split are drawn by subset seeds 1 ... ``n_seeds``, the same for every method and run
    (:func:`~krossfuse.probes.subsets.draw_few_shot`). What a form has to choose is what is best on the validation
    shots, by accuracy and among equals by log-loss (squared error for ridge), and the classifier of the shots alone is
    tested on all of the test split. Measurements: ``accuracy`` and ``mean_per_class_accuracy``, one a number of shots,
    form and ``subset_seed``.

    Forms, of which those that need texts are left out where the space has none. Where only some classes have a text,
    these forms tell those classes apart, on their own items: ``n_classes`` says how many they are.

    * ``"I"``: a linear head on the shots.
    * ``"I+T"``: that head (at ``head_C``) plus τ times the kernel between image and class text, each in units of its
      spread within an item (:class:`~krossfuse.probes.few_shot.residual.Residual`; docs/mathematics.md, section 9).
    * ``"T"``: a linear head on the class texts.
    * ``"texts as samples"``: a linear head on shots and class texts, as cross-modal adaptation has it (Lin et al., CVPR
      2023); it was called ``"I+T"`` before the residual, and in the paper's table 3.
    * ``"Tip-Adapter"``, ``"Tip-Adapter-F"``: the shots as a cache, and that with trained keys (arXiv 2111.03930;
      :mod:`~krossfuse.probes.few_shot.tip_adapter`).
    * ``"LP++"``: a head whose weights are prototypes plus multiples of the class texts (arXiv 2404.02285;
      :mod:`~krossfuse.probes.few_shot.lp_plus_plus`).
    * ``"CLIP-Adapter"``: a bottleneck MLP blended into the image embedding, which the class texts classify (arXiv
      2110.04544; :mod:`~krossfuse.probes.few_shot.clip_adapter`).

    Args:
        shots: images a class.
        forms: which.
        n_seeds: number of subsets for each number of shots.
        classifier: ``"logistic"`` (multinomial) or ``"ridge"`` (targets ±1, closed form).
        grid: values of C (weight of the sum of losses against ½‖W‖²; ridge: alpha = 1/C).
        head_C: C of the head of ``"I+T"``; None: from ``grid``, on the validation shots.
        tau: τ of ``"I+T"``: ``"rule"``, 2/√shots, which needs no labels; ``"val"``, from 8 shots on half of that, that
            or twice that, what is best on the validation shots; or a number.
        alpha: values of Tip-Adapter's α to choose from.
        beta: the same of β.
        tol: bound on the logistic gradient, relative to that at zero weights.
        texts: ``"prompts"``, every text of the prompt set, or ``"captions"``, the texts that describe the shots.
        prompt_set: name, or None for the first that a label set has.
        text_weight: weight of a class's texts together as samples, in images: a number, or ``"balanced"``, as many as
            it has shots (half of every batch in Lin et al.). They share it equally. None: 1 a text.
        normalise: whether embeddings are scaled to norm 1 for linear heads. Fused texts and images differ in norm.
        label_sets: names; None for every single-label set with enough items of each class for the most shots.
        split: the split that is tested.
    """

    name = "few_shot"

    def __init__(
        self,
        *,
        shots: Sequence[int] = (1, 2, 4, 8, 16),
        forms: Sequence[str] = (SHOTS, RESIDUAL),
        n_seeds: int = 5,
        classifier: Literal["logistic", "ridge"] = "logistic",
        grid: Sequence[float] = GRID,
        head_C: float | None = 1.0,
        tau: float | Literal["rule", "val"] = "rule",
        alpha: Sequence[float] = ALPHAS,
        beta: Sequence[float] = BETAS,
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
        check_tau(tau)
        if head_C is not None:
            check_positive("head_C", head_C)
        if isinstance(text_weight, str):
            check_choice("text_weight", text_weight, ["balanced"])
        elif text_weight is not None:
            check_positive("text_weight", text_weight)
        if split in (TRAIN, VAL):
            raise ConfigError(f"split={split!r} is where the shots come from; test on another")
        self.shots = check_counts("shots", shots)
        self.forms = list(dict.fromkeys(check_names("forms", forms, FORMS)))
        self.n_seeds = n_seeds
        self.texts = texts
        self.prompt_set = prompt_set
        self.settings = Settings(
            fit=LinearFit(classifier=classifier, tol=tol, text_weight=text_weight, normalise=normalise),
            grid=check_grid("grid", grid),
            head_C=None if head_C is None else float(head_C),
            tau=tau,
            alpha=check_grid("alpha", alpha),
            beta=check_grid("beta", beta),
            split=split,
        )
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
            reason = f"forms={self.forms} need {self.texts} of two classes or more, which are not in this space"
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
        texts = self._all_texts(space, name)
        with_texts = texts is not None and len(texts.classes) > 1
        return [form for form in self.forms if form == SHOTS or with_texts]

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
            named = "" if self.texts == "captions" else self._prompt_set(space, name)
            measurements += Task(self.settings, space, name, named).measurements(self._problems(space, name))
            drawn[name] = [subset.written_down() for subset in self.subsets(space, name)]
        return ProbeResult(measurements, self._protocol(), drawn=drawn)

    def _protocol(self) -> dict[str, Any]:
        """Return what all measurements share."""
        s = self.settings
        protocol: dict[str, Any] = {
            "classifier": s.fit.classifier,
            "grid": list(s.grid),
            "tol": s.fit.tol,
            "selected_on": "validation shots, min(4, shots) a class",
            "texts": self.texts,
            "text_weight": s.fit.text_weight,
            "normalise": s.fit.normalise,
            "n_subsets": self.n_seeds,
        }
        if RESIDUAL in self.forms:
            protocol |= {"tau_by": s.tau if isinstance(s.tau, str) else "number", "head_C": s.head_C}
        if TIP in self.forms or TIP_F in self.forms:
            protocol |= {"alphas": list(s.alpha), "betas": list(s.beta)}
        return protocol

    def _prompt_set(self, space: EmbeddingSpace, name: str) -> str:
        """Return the name of the prompt set that is used, "" where there is none."""
        return self.prompt_set or next(iter(space.info.label_sets[name].prompts), "")

    def _problems(self, space: EmbeddingSpace, name: str) -> list[Problem]:
        every = torch.arange(len(space.info.label_sets[name].classes))
        texts = self._all_texts(space, name)
        problems = []
        for subset in self.subsets(space, name):
            own = texts
            if texts is not None and self.texts == "captions":
                described = torch.isin(space.info.caption_of[TRAIN][texts.rows], subset.train)
                own = ClassTexts(space, texts.part, texts.rows[described], texts.owner[described])
            for form in self._forms(space, name):
                if form == SHOTS:
                    problems.append(Problem(subset, form, every))
                elif own is not None and len(own.classes):
                    problems.append(Problem(subset, form, own.classes, own))
        return problems

    def _all_texts(self, space: EmbeddingSpace, name: str) -> ClassTexts | None:
        """Return the texts that may be used, whatever subset is drawn; None where the space has none."""
        if self.texts == "captions":
            part = Part(TRAIN, "text")
            if part not in space or TRAIN not in space.info.caption_of:
                return None
            owner = part_labels(space, TRAIN, "text", name)
            rows = (owner >= 0).nonzero().flatten()
            return ClassTexts(space, part, rows, owner[rows])
        prompts = space.info.label_sets[name].prompts
        prompt_set = self._prompt_set(space, name)
        part = Part.prompts(name, prompt_set)
        if prompt_set not in prompts or part not in space:
            return None
        owner = prompts[prompt_set].owner
        return ClassTexts(space, part, torch.arange(len(owner)), owner)
