"""The forms of few-shot classification, and one form on one subset."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from krossfuse.probes.few_shot.texts import ClassTexts
from krossfuse.probes.subsets import FewShotSubset

SHOTS, RESIDUAL, TEXTS, SAMPLES, TIP, TIP_F = "I", "I+T", "T", "texts as samples", "Tip-Adapter", "Tip-Adapter-F"
LP, ADAPTER = "LP++", "CLIP-Adapter"
FORMS = (SHOTS, RESIDUAL, TEXTS, SAMPLES, TIP, TIP_F, LP, ADAPTER)
LINEAR = (SHOTS, RESIDUAL, TEXTS, SAMPLES)


@dataclass(frozen=True, eq=False)
class Problem:
    """One form on one subset.

    Attributes:
        subset: of the training split.
        form: one of ``FORMS``.
        classes: (K,) those that are told apart: all, or those that have a text where the form needs texts.
        texts: of these classes, where the form needs them.
    """

    subset: FewShotSubset
    form: str
    classes: Tensor
    texts: ClassTexts | None = None
