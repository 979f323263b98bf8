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
    check_choice,
    check_positive,
    check_range,
)
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.core.seeds import derive_seed
from krossfuse.fusion.alignments import WITHIN, Alignment, AlignmentFactory, Parents
from krossfuse.fusion.base import Features, InputSpec
from krossfuse.fusion.choice import Choice, Terms
from krossfuse.fusion.cross_validation import WEIGHTS
from krossfuse.fusion.factories import KernelFactory, SketchFactory, build_kernel
from krossfuse.fusion.kernels import CosineKernel, Kernel
from krossfuse.fusion.methods.kernel_method import (
    KernelMethod,
    prefixed,
    product,
)
from krossfuse.fusion.named import alignment_named
from krossfuse.fusion.rows import of_role
from krossfuse.fusion.selection import (
    C_BOUNDS,
    check_C,
    check_C_rows,
    check_number,
    choose_C,
)
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
    their product, and text-text likewise. With a ``product_kernel`` p of its own for ψ within the product (same
    alignments) it becomes C_T·(C_X·k_ψ + (a + p)·k_γX). Nothing else changes: image-text similarities are k_ψ's.

    Args:
        inputs: dimensions of the pair: a cross-modal encoder and one expert at least.
        dim: total dimension of the result; null: that of the whole product, for the kronecker sketch.
        C: constant of the image experts, and of the text experts where C_text is null: a positive number, or how
            :meth:`fit` chooses it: "cv" (leaving one out, over {1e-3, ..., 1e3}, with labels), or without labels
            "variance" (C·k_ψ and a·k_γ have equal total variance; side by side) or "auto" (C·k_ψ and (a + p)·k_γ
            vary equally between samples).
        C_text: constant of the text experts, for a pair that has experts on both sides; null: C.
        expert_weight: a, weight of the experts' own kernel, 0 or more; above 0 needs alignment "exact". "cv": chosen
            together with C="cv".
        alignment: its name, or a class or partial of :class:`~krossfuse.fusion.alignments.Alignment`.
        kernel: of every parent.
        expert_kernel: of the experts, where they need another; null: ``kernel``.
        product_kernel: of the cross-modal features within the product, where that is to be another, which needs
            alignment "exact"; null: ``kernel``.
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
        expert_weight: float | str = 0.0,
        alignment: str | AlignmentFactory = "published",
        kernel: KernelFactory = CosineKernel,
        expert_kernel: KernelFactory | None = None,
        product_kernel: KernelFactory | None = None,
        sketch: SketchFactory = UniformSketch,
        seed: int = 0,
    ) -> None:
        if dim is not None:
            check_positive("dim", dim, integer=True)
        aligned = alignment_named(alignment)
        self._check_inputs(inputs)
        super().__init__(inputs=inputs, kernel=kernel, expert_kernel=expert_kernel, seed=seed)
        check_C("C", C)
        self.C_rule = C if isinstance(C, str) else None
        self.weight_rule = check_weight_rule(expert_weight, self.C_rule)
        weight = check_expert_weight(WEIGHTS[0] if self.weight_rule else expert_weight, aligned, self.C_rule)
        self.trained = C == "cv"
        self._given_C_text = C_text
        self.set_C(1.0 if isinstance(C, str) else C, C_text)
        self._sides: list[Modality] = [m for m in MODALITIES if inputs.experts(m)]
        self.within = self._build_within(product_kernel, aligned)
        parents = Parents(
            self.kernels[CROSS_MODAL],
            {m: {r: self.kernels[r] for r in inputs.experts(m)} for m in self._sides},
            {m: self.within[m] for m in self._sides if m in self.within},  # type: ignore[misc]
        )
        self.alignment = aligned(parents, dim, sketch, expert_weight=weight, seed=seed)
        if not isinstance(self.alignment, Alignment):
            raise ConfigError(
                f"alignment={alignment!r} does not build an Alignment; it built {type(self.alignment).__name__}"
            )
        every = (*self.kernels.values(), *self.within.values())
        self.deterministic = self.alignment.deterministic and all(k.deterministic for k in every)

    def _build_within(self, kernel: KernelFactory | None, alignment: AlignmentFactory) -> nn.ModuleDict:
        """Return, by side, the kernel of the cross-modal features within the product, where it has one of its own."""
        if kernel is None:
            return nn.ModuleDict()
        cls = getattr(alignment, "func", alignment)  # of a partial
        if not getattr(cls, "takes_product_kernel", False):
            raise ConfigError(
                f"a product_kernel needs alignment='exact', got {getattr(cls, 'name', cls)!r}: in the others it would "
                f"move image-text similarities too"
            )
        dim = self.inputs.cross_modal
        assert dim is not None
        return nn.ModuleDict(
            {m: build_kernel(kernel, dim, seed=derive_seed(self.seed, "product kernel", m)) for m in self._sides}
        )

    @property
    def expert_weight(self) -> float:
        """A."""
        return self.alignment.expert_weight

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
        """Check the rows that kernels, sketches and the choice of C need; see :meth:`FusionMethod.check_rows`."""
        super().check_rows(rows)
        if self.C_rule is not None and self._sides[0] in rows:
            check_C_rows(self.C_rule, rows[self._sides[0]])
        for side, kernel in self._within():
            if side in rows:
                with of_role(CROSS_MODAL):
                    kernel.check_rows(rows[side])
        for side, sketch in self.alignment.fitted_sketches().items():
            if side in rows and sketch.needs_fit:
                sketch.check_rows(rows[side])

    def fit(self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None) -> Self:
        """Fit kernels and data-dependent sketches on unlabelled features, and choose the constants that are rules.

        Args:
            image: image features by role.
            text: text features by role.
            labels: for C="cv": of the images, or of the texts where only they have experts.

        Raises:
            DataError: a sketch needs features of a side that are not given, or more of them; labels are missing.
        """
        super().fit(image, text)
        given: dict[Modality, Features | None] = {"image": image, "text": text}
        for side, kernel in self._within():
            features = given[side]
            if features is None:
                raise DataError(f"the product's {kernel.name} kernel needs {side} features to fit on; none were given")
            with of_role(CROSS_MODAL):
                kernel.fit(self._given(side, features)[CROSS_MODAL])
        if self.C_rule is not None:
            self._choose_C(self.C_rule, given, labels)
        for side, sketch in self.alignment.fitted_sketches().items():
            self._fit_sketch(sketch, side, given[side], self.alignment.factors)
        return self

    def _choose_C(self, rule: str, given: Mapping[Modality, Features | None], labels: Tensor | None) -> None:
        first, *other = [self._choice(rule, side, given[side], labels) for side in self._ruled_sides()]
        C_text = other[0].C if other else self._given_C_text
        if self.weight_rule:
            self.alignment.expert_weight = self.arguments["expert_weight"] = first.expert_weight
        self.set_C(first.C, C_text)
        self._chosen_C = first.describe()
        if self.weight_rule:
            self._chosen_C["expert_weight_rule"] = self.weight_rule

    def _ruled_sides(self) -> list[Modality]:
        """Return the sides whose constant the rule gives: ``variance`` each side's own, others that of the first."""
        return self._sides if self.C_rule == "variance" and self._given_C_text is None else self._sides[:1]

    def _choice(self, rule: str, side: Modality, features: Features | None, labels: Tensor | None) -> Choice:
        if features is None:
            raise DataError(f"C={rule} needs the {side} features of the training samples; none were given")
        given = self._given(side, features)
        count = len(given[CROSS_MODAL])
        if labels is not None and len(labels) != count:
            raise DataError(f"{len(labels)} labels but {count} {side} features")

        def grams(rows: Tensor) -> Terms:
            chosen = {role: x[rows.to(x.device)] for role, x in given.items()}
            values = self._values(side, chosen, side, chosen)
            within = values.pop(WITHIN, None)
            cross = values.pop(CROSS_MODAL)
            return Terms(cross, product(list(values.values())), cross if within is None else within)

        weight = None if self.weight_rule else self.expert_weight
        return choose_C(rule, grams, count, labels, expert_weight=weight, seed=derive_seed(self.seed, "C"))

    def _within(self) -> list[tuple[Modality, Kernel]]:
        return [(side, self.within[side]) for side in self._sides if side in self.within]  # type: ignore[misc]

    def _maps(self, modality: Modality, given: Features, rows: slice = slice(None)) -> dict[str, Tensor]:
        maps = super()._maps(modality, given, rows)
        if modality in self.within:
            with of_role(CROSS_MODAL):
                maps[WITHIN] = self.within[modality](self._rows(given[CROSS_MODAL], rows))
        return maps

    def _values(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> dict[str, Tensor]:
        values = super()._values(modality_a, a, modality_b, b)
        if modality_a == modality_b and modality_a in self.within:
            kernel = self.within[modality_a]
            assert isinstance(kernel, Kernel)
            with of_role(CROSS_MODAL):
                values[WITHIN] = kernel.kernel(self._rows(a[CROSS_MODAL]), self._rows(b[CROSS_MODAL]))
        return values

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # States saved before alignments were modules of their own have their tensors here.
        for name in [n for n in state_dict if n.startswith((f"{prefix}sketches.", f"{prefix}constant_"))]:
            state_dict[f"{prefix}alignment.{name[len(prefix) :]}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_extra_state(self) -> Tensor:
        """Return the constants, which are no tensors that a change of precision may round, as bytes of JSON."""
        state = {"C": self.C, "C_text": self.C_text, "chosen": self._chosen_C, "expert_weight": self.expert_weight}
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the constants back."""
        constants = json.loads(bytes(state.tolist()))
        self.set_C(constants["C"], constants["C_text"])
        self._chosen_C = constants["chosen"]
        self.alignment.expert_weight = constants.get("expert_weight", self.expert_weight)  # not in older files

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return self.alignment.encode(modality, maps, self._constants())

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        cross, *experts = (value for key, value in values.items() if key != WITHIN)
        more = {"within": values[WITHIN]} if WITHIN in values else {}
        return self.alignment.kernel(modality_a, modality_b, cross, experts, self._constants(), **more)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        described: dict[str, Any] = {"method": self.name, "title": self.title, "dim": self.out_dim}
        described |= self.alignment.describe()
        described |= {"C": self.C if self.C_rule is None or self._chosen_C else self.C_rule, "seed": self.seed}
        described |= self._chosen_C
        if self.alignment.takes_expert_weight:
            chosen = self.weight_rule is None or bool(self._chosen_C)
            described["expert_weight"] = self.expert_weight if chosen else self.weight_rule
        if len(self._sides) == 2:
            described["C_text"] = self.constant("text")
        described |= self._describe_kernels()
        for _, kernel in self._within()[:1]:  # one factory made both; where they were fitted apart, the first
            described |= {f"product_{key}": value for key, value in kernel.describe().items()}
        return {**described, **prefixed(self.alignment.describe_sketch(), "sketch")}


def check_weight_rule(value: float | str, C_rule: str | None) -> str | None:
    """Return the rule by which the experts' weight is chosen; None where it is a number.

    Raises:
        ConfigError: there is no such rule, or C is not chosen by it.
    """
    if not isinstance(value, str):
        return None
    check_choice("expert_weight", value, ("cv",))
    if C_rule != "cv":
        raise ConfigError(
            f"expert_weight='cv' is chosen together with C='cv', and C is {C_rule!r}; set both, or a number"
        )
    return value


def check_expert_weight(value: float | str, alignment: AlignmentFactory, C_rule: str | None) -> float:
    """Return the experts' weight if the alignment takes it.

    Raises:
        ConfigError: it is not a number from 0, the alignment takes none, or C's rule needs one.
    """
    if value == 0:
        if C_rule == "variance":
            raise ConfigError("C='variance' weighs the expert's own kernel, and expert_weight=0 leaves it out; set "
                              "expert_weight above 0 (4.0 is the preset's), or C=auto")  # fmt: skip
        return 0.0
    check_range("expert_weight", value, *C_BOUNDS, "float32 holds the kernels of no more")
    cls = getattr(alignment, "func", alignment)  # of a partial
    if not getattr(cls, "takes_expert_weight", False):
        raise ConfigError(
            f"expert_weight={value} needs alignment='exact', got {getattr(cls, 'name', cls)!r}: in the others it would "
            f"move image-text similarities too"
        )
    return float(value)
