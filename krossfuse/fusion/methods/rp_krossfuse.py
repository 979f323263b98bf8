"""RP-KrossFuse: a cross-modal encoder with uni-modal experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from krossfuse.core.errors import (
    ConfigError,
    DataError,
    NotFittedError,
    check_positive,
    check_range,
)
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.core.seeds import derive_seed
from krossfuse.fusion.alignments import Alignment, AlignmentFactory, Parents
from krossfuse.fusion.base import Features, InputSpec
from krossfuse.fusion.factories import KernelFactory, SketchFactory
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods.kernel_method import (
    KernelMethod,
    prefixed,
    product,
)
from krossfuse.fusion.named import alignment_named
from krossfuse.fusion.rows import of_role
from krossfuse.fusion.selection import C_BOUNDS, check_C, check_C_rows, check_number, choose_C
from krossfuse.fusion.sketches import UniformSketch


class RPKrossFuse(KernelMethod):
    """KrossFuse by a sketch of the product kernel (sections 3 and 4; arXiv 2506.08645, algorithms 1 and 2).

    With k_γ the product of a side's experts and C_X, C_T the constants,

        image-image  C_T·k_ψ·(C_X + k_γX)      text-text  C_X·k_ψ·(C_T + k_γT)      image-text  C_X·C_T·k_ψ

    where a side without experts has 1 in the place of its constant and of its bracket. How the embedding reaches it is
    the alignment's (:mod:`krossfuse.fusion.alignments`): ``published`` (the symmetrised expert), ``offset`` (a constant
    in its place; less noise) or ``exact`` (a direct sum; image-text similarities are the cross-modal map's own).

    Where ψ spreads different items so far that k_ψ is about 0 between most of them, little of the expert is left in
    the product. With ``expert_weight`` a > 0 (in an alignment that takes one: exact) the expert is multiplied by
    [√a ; ψ] instead of ψ: image-image becomes C_T·(C_X·k_ψ + (a + k_ψ)·k_γX), which holds the sum of both kernels and
    their product, and text-text likewise. Nothing else changes.

    Args:
        inputs: dimensions of the pair: a cross-modal encoder and one expert at least.
        dim: total dimension of the result; null: that of the whole product, for the kronecker sketch.
        C: constant of the image experts, and of the text experts where C_text is null: a positive number, or how
            :meth:`fit` chooses it: "cv" (cross-validation over {1e-3, ..., 1e3}, with labels) or "auto" (without).
        C_text: constant of the text experts, for a pair that has experts on both sides; null: C.
        expert_weight: a, weight of the experts' own kernel, 0 or more; above 0 needs alignment "exact".
        alignment: its name, or a class or partial of :class:`~krossfuse.fusion.alignments.Alignment`.
        kernel: of every parent.
        expert_kernel: of the experts, where they need another; null: ``kernel``.
        sketch: of the product. Data-dependent ones need alignment "exact".
        seed: of random features and of the sketch.

    Raises:
        ConfigError: a bad value or an impossible combination.
        DimensionError: ``dim`` does not fit the parents' dimensions.
    """

    name = "rp_krossfuse"
    title = "RP-KrossFuse"
    alignment: Alignment

    def __init__(
        self,
        *,
        inputs: InputSpec,
        dim: int | None,
        C: float | str = 1.0,
        C_text: float | None = None,
        expert_weight: float = 0.0,
        alignment: str | AlignmentFactory = "published",
        kernel: KernelFactory = CosineKernel,
        expert_kernel: KernelFactory | None = None,
        sketch: SketchFactory = UniformSketch,
        seed: int = 0,
    ) -> None:
        if dim is not None:
            check_positive("dim", dim, integer=True)
        aligned = alignment_named(alignment)
        self._check_inputs(inputs)
        super().__init__(inputs=inputs, kernel=kernel, expert_kernel=expert_kernel, seed=seed)
        self.expert_weight = check_expert_weight(expert_weight, aligned)
        check_C("C", C)
        self.C_rule = C if isinstance(C, str) else None
        self.trained = C == "cv"
        self.set_C(1.0 if isinstance(C, str) else C, C_text)
        self._sides: list[Modality] = [m for m in MODALITIES if inputs.experts(m)]
        parents = Parents(
            self.kernels[CROSS_MODAL], {m: {r: self.kernels[r] for r in inputs.experts(m)} for m in self._sides}
        )
        self.alignment = aligned(parents, dim, sketch, expert_weight=self.expert_weight, seed=seed)
        if not isinstance(self.alignment, Alignment):
            raise ConfigError(
                f"alignment={alignment!r} does not build an Alignment; it built {type(self.alignment).__name__}"
            )
        self.deterministic = self.alignment.deterministic and all(k.deterministic for k in self.kernels.values())

    def _check_inputs(self, inputs: InputSpec) -> None:
        if inputs.cross_modal is None:
            raise ConfigError(
                f"{type(self).__name__} fuses a cross-modal encoder with experts, and this pair has none; "
                f"for experts of one modality use fusion=unimodal_krossfuse"
            )
        if not inputs.image_experts and not inputs.text_experts:
            raise ConfigError(f"{type(self).__name__} needs an expert beside the cross-modal encoder")

    def set_C(self, C: float, C_text: float | None = None) -> None:
        """Set the constants; nothing is drawn or fitted anew.

        Raises:
            ConfigError: not positive, or ``C_text`` where the pair does not have experts on both sides.
        """
        for name, value in (("C", C), ("C_text", C_text)):
            if value is not None:
                check_number(name, value)
        if C_text is not None and not (self.inputs.image_experts and self.inputs.text_experts):
            raise ConfigError(f"C_text={C_text} is for pairs with experts on both sides; set C for the only side")
        self.C, self.C_text = float(C), None if C_text is None else float(C_text)
        self.arguments |= {"C": self.C, "C_text": self.C_text}  # what a saved method is built with again
        self._chosen_C: dict[str, Any] = {}

    def constant(self, side: Modality) -> float:
        """Return C_X or C_T; 1 for a side without experts."""
        if not self.inputs.experts(side):
            return 1.0
        if self.C_rule is not None and not self._chosen_C:
            raise NotFittedError(f"C={self.C_rule!r} is chosen by fit(): call it first, or give C as a number")
        return self.C if side == "image" or self.C_text is None else self.C_text

    def _constants(self) -> dict[Modality, float]:
        return {side: self.constant(side) for side in MODALITIES}

    @property
    def sketches(self) -> nn.ModuleDict:
        """The alignment's sketches, by name."""
        return self.alignment.sketches

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Both."""
        return MODALITIES

    @property
    def out_dim(self) -> int:
        """``dim``."""
        return self.alignment.out_dim

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check the rows that bandwidths, sketches and the choice of C need; see :meth:`FusionMethod.check_rows`."""
        super().check_rows(rows)
        if self.C_rule is not None and self._sides[0] in rows:
            check_C_rows(self.C_rule, rows[self._sides[0]])
        for side, sketch in self.alignment.fitted_sketches().items():
            if side in rows and sketch.needs_fit:
                sketch.check_rows(rows[side])

    def fit(self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None) -> Self:
        """Fit bandwidths and data-dependent sketches on unlabelled features, and choose C where it is a rule.

        Args:
            image: image features by role.
            text: text features by role.
            labels: for C="cv": of the images, or of the texts where only they have experts.

        Raises:
            DataError: a sketch needs features of a side that are not given, or more of them; labels are missing.
        """
        super().fit(image, text)
        if self.C_rule is not None:
            self._choose_C(self.C_rule, self._sides[0], image if self._sides[0] == "image" else text, labels)
        for side, sketch in self.alignment.fitted_sketches().items():
            self._fit_sketch(sketch, side, image if side == "image" else text, self.alignment.factors)
        return self

    def _choose_C(self, rule: str, side: Modality, features: Features | None, labels: Tensor | None) -> None:
        if features is None:
            raise DataError(f"C={rule} needs the {side} features of the training samples; none were given")
        given = self._given(side, features)
        count = len(given[CROSS_MODAL])
        if labels is not None and len(labels) != count:
            raise DataError(f"{len(labels)} labels but {count} {side} features")

        def grams(rows: Tensor) -> tuple[Tensor, Tensor]:
            values = {}
            for role, x in given.items():
                chosen = self._rows(x[rows.to(x.device)])
                with of_role(role):
                    values[role] = self.kernels[role].kernel(chosen, chosen)
            cross = values.pop(CROSS_MODAL)
            return cross, (self.expert_weight + cross) * product(list(values.values()))

        choice = choose_C(rule, grams, count, labels, seed=derive_seed(self.seed, "C"))
        self.set_C(choice.C, self.C_text)
        self._chosen_C = choice.describe()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # States saved before alignments were modules of their own have their tensors here.
        for name in [n for n in state_dict if n.startswith((f"{prefix}sketches.", f"{prefix}constant_"))]:
            state_dict[f"{prefix}alignment.{name[len(prefix) :]}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_extra_state(self) -> Tensor:
        """Return the constants, which are no tensors that a change of precision may round, as bytes of JSON."""
        state = {"C": self.C, "C_text": self.C_text, "chosen": self._chosen_C}
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the constants back."""
        constants = json.loads(bytes(state.tolist()))
        self.set_C(constants["C"], constants["C_text"])
        self._chosen_C = constants["chosen"]

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return self.alignment.encode(modality, maps, self._constants())

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        cross, *experts = values.values()
        return self.alignment.kernel(modality_a, modality_b, cross, experts, self._constants())

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        described: dict[str, Any] = {"method": self.name, "title": self.title, "dim": self.out_dim}
        described |= self.alignment.describe()
        described |= {"C": self.C if self.C_rule is None or self._chosen_C else self.C_rule, "seed": self.seed}
        described |= self._chosen_C
        if self.expert_weight:
            described["expert_weight"] = self.expert_weight
        if len(self._sides) == 2:
            described["C_text"] = self.constant("text")
        return {**described, **self._describe_kernels(), **prefixed(self.alignment.describe_sketch(), "sketch")}


def check_expert_weight(value: float, alignment: AlignmentFactory) -> float:
    """Return the experts' weight if the alignment takes it.

    Raises:
        ConfigError: it is not a number from 0, or the alignment takes none.
    """
    if value == 0:
        return 0.0
    check_range("expert_weight", value, *C_BOUNDS, "float32 holds the kernels of no more")
    cls = getattr(alignment, "func", alignment)  # of a partial
    if not getattr(cls, "takes_expert_weight", False):
        raise ConfigError(
            f"expert_weight={value} needs alignment='exact', got {getattr(cls, 'name', cls)!r}: in the others it would "
            f"move image-text similarities too"
        )
    return float(value)
