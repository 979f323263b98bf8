"""The fusion methods of KrossFuse, and the parents and their concatenation to compare with.

Every method here is a feature map of a kernel that it also computes exactly (:meth:`FusionMethod.kernel`). Sections 2
to 4 of docs/mathematics.md. Where experts are several on one side, their product is that side's expert.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.core.seeds import derive_seed
from krossfuse.fusion.base import Features, FusionMethod, InputSpec, expert_modalities
from krossfuse.fusion.kernels import CosineKernel, Kernel, ShiftInvariantKernel
from krossfuse.fusion.selection import check_C, choose_C
from krossfuse.fusion.sketches import (
    JointFourierSketch,
    KroneckerSketch,
    RandomSketch,
    Sketch,
    UniformSketch,
)

KernelFactory = Callable[..., Kernel]
"""``factory(in_dim, seed=...)``: a Kernel class, or a partial of one with its options."""

SketchFactory = Callable[..., Sketch]
"""``factory(dims, out_dim, seed=...)``: a Sketch class, or a partial of one with its options."""

CHUNK_ROWS = 512
"""Rows fused at a time: intermediates of this many rows stay in the processor's cache."""

FIT_ROWS = 4096
"""Rows mapped at a time while a sketch is fitted."""


class KernelMethod(FusionMethod):
    """A fusion method over a kernel for each parent.

    Args:
        inputs: dimensions of the pair.
        kernel: of every parent.
        expert_kernel: of the experts, where they need another; null: ``kernel``.
        parents: roles that are read; None = all of the pair's.
        seed: of random features.

    Attributes:
        kernels: by role, the parents' kernels; each has its own stream of the seed.
    """

    _like: Tensor

    def __init__(
        self,
        *,
        inputs: InputSpec,
        kernel: KernelFactory,
        expert_kernel: KernelFactory | None = None,
        parents: Collection[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seed={seed!r} must be an integer")
        self.inputs, self.seed = inputs, seed
        cross = {} if inputs.cross_modal is None else {CROSS_MODAL: inputs.cross_modal}
        every = {**cross, **inputs.image_experts, **inputs.text_experts}
        self._parents = {role: dim for role, dim in every.items() if parents is None or role in parents}
        # A list, because a role may hold characters that a ModuleDict refuses.
        self._kernels = nn.ModuleList()
        for role, dim in self._parents.items():
            factory = kernel if role == CROSS_MODAL or expert_kernel is None else expert_kernel
            built = factory(in_dim=dim, seed=derive_seed(seed, "kernel", role))
            if not isinstance(built, Kernel):
                raise ConfigError(f"kernel={factory!r} does not build a Kernel; it built {type(built).__name__}")
            self._kernels.append(built)
        self.register_buffer("_like", torch.empty(0), persistent=False)

    @property
    def kernels(self) -> dict[str, Kernel]:
        """By role, the parents' kernels."""
        return dict(zip(self._parents, self._kernels, strict=True))  # type: ignore[arg-type]

    def roles(self, modality: Modality) -> list[str]:
        """Return the roles that this method reads for a modality, the cross-modal encoder first."""
        return [role for role in (CROSS_MODAL, *self.inputs.experts(modality)) if role in self._parents]

    def fit(self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None) -> Self:
        """Fit the kernels' bandwidths, label-free: on images and texts together for the cross-modal encoder."""
        given: dict[Modality, Features | None] = {"image": image, "text": text}
        for role, kernel in self.kernels.items():
            if not kernel.needs_fit:
                continue
            rows = [f[role] for m, f in given.items() if f is not None and role in self.roles(m) and role in f]
            if not rows:
                raise DataError(f"the kernel of {role!r} needs its features to fit the bandwidth; none were given")
            kernel.fit(torch.cat(rows))
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Fuse one batch: (batch, dim) by role in, (batch, out_dim) out; see :class:`FusionMethod`."""
        given = self._given(modality, features)
        count = len(next(iter(given.values())))
        if count <= CHUNK_ROWS or (torch.is_grad_enabled() and self._differentiable(given)):
            return self._encode(modality, self._maps(given))
        out = self._like.new_empty(count, self.out_dim)
        for start in range(0, count, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            out[rows] = self._encode(modality, self._maps(given, rows))
        return out

    def kernel(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> Tensor | None:
        """Return the exact kernel (len(a), len(b)) that the embedding approximates or equals."""
        given_a, given_b = self._given(modality_a, a), self._given(modality_b, b)
        values = {}
        for role in [role for role in given_a if role in given_b]:
            x, y = self._rows(given_a[role]), self._rows(given_b[role])
            with _named(role):
                values[role] = self.kernels[role].kernel(x, y)
        return self._kernel(modality_a, modality_b, values)

    @torch.no_grad()
    def _fit_sketch(self, sketch: Sketch, modality: Modality, features: Features | None) -> None:
        """Fit a data-dependent sketch on the feature maps of a modality, in blocks.

        Raises:
            DataError: the features are not given, or too few.
        """
        if not sketch.needs_fit:
            return
        if features is None:
            raise DataError(f"the {sketch.name} sketch of the {modality} side needs {modality} features to fit on")
        given = self._given(modality, features)
        count = len(next(iter(given.values())))
        starts = range(0, count, FIT_ROWS)
        sketch.fit_blocks(self._factors(self._maps(given, slice(i, i + FIT_ROWS))) for i in starts)

    def _factors(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what a sketch multiplies, of one chunk."""
        return list(maps.values())

    @abstractmethod
    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        """Fuse the feature maps by role of one chunk."""

    @abstractmethod
    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        """Combine the exact kernels of the roles that both modalities have."""

    def _differentiable(self, given: Features) -> bool:
        return any(x.requires_grad for x in given.values()) or any(p.requires_grad for p in self.parameters())

    def _rows(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return x[rows].to(self._like)

    def _maps(self, given: Features, rows: slice = slice(None)) -> dict[str, Tensor]:
        maps, kernels = {}, self.kernels
        for role, x in given.items():
            with _named(role):
                maps[role] = kernels[role](self._rows(x, rows))
        return maps

    def _given(self, modality: Modality, features: Features) -> dict[str, Tensor]:
        """Return the features that this method reads, checked for modality, presence and equal length."""
        if modality not in self.modalities:
            check_choice("modality", modality, MODALITIES)
            raise ConfigError(f"{type(self).__name__} cannot encode {modality}: it encodes {list(self.modalities)}")
        roles = self.roles(modality)
        missing = [role for role in roles if role not in features]
        if missing:
            raise DataError(f"{modality} features of {missing} are missing; given are {sorted(features)}")
        lengths = {role: len(features[role]) for role in roles}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{modality} features must have the same number of rows, got {lengths}")
        return {role: features[role] for role in roles}

    def _describe_kernels(self) -> dict[str, Any]:
        """Return the description of the kernels: the first parent's, and of the others what differs."""
        descriptions = {role: kernel.describe() for role, kernel in self.kernels.items()}
        first = next(iter(descriptions.values()))
        flat = dict(first)
        for role, description in list(descriptions.items())[1:]:
            flat |= {f"{key}/{role}": value for key, value in description.items() if first.get(key) != value}
        return flat


def _build_sketch(
    factory: SketchFactory, kernels: Sequence[Kernel], out_dim: int | None, seed: int, *, constant: bool = False
) -> Sketch:
    """Build the sketch of a product of kernels; with ``constant``, the first one's map has one coordinate more."""
    dims = [kernel.out_dim for kernel in kernels]
    dims[0] += constant
    sketch = factory(dims, math.prod(dims) if out_dim is None else out_dim, seed=seed)
    if not isinstance(sketch, Sketch):
        raise ConfigError(f"sketch={factory!r} does not build a Sketch; it built {type(sketch).__name__}")
    other = [kernel.name for kernel in kernels if not isinstance(kernel, ShiftInvariantKernel)]
    if isinstance(sketch, JointFourierSketch) and other:
        raise ConfigError(
            f"sketch='joint_fourier' multiplies random Fourier features, and the kernel {other[0]!r} has none; use a "
            f"shift-invariant kernel such as gaussian, or another sketch"
        )
    if isinstance(sketch, JointFourierSketch) and constant:
        raise ConfigError(
            "sketch='joint_fourier' multiplies random Fourier features alone; set expert_weight=0 or another sketch"
        )
    return sketch


def _product(values: Sequence[Tensor]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = result * value
    return result


def _prefixed(description: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key if key == prefix else f"{prefix}_{key}": value for key, value in description.items()}


@contextmanager
def _named(role: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"features of {role!r}: {error}") from None


class Alone(KernelMethod):
    """One parent alone: the feature map of its kernel.

    Args:
        inputs: dimensions of the pair.
        parent: "cross_modal", or the modality of the expert: "image" or "text".
        name: the expert's role, where there are several on that side; null otherwise.
        kernel: of the parent; the default is cosine, which normalises.
        seed: of random features.

    Raises:
        ConfigError: there is no such parent, or no single one.

    Example:
        >>> Alone(inputs=InputSpec(cross_modal=2)).encode("text", {"cross_modal": torch.tensor([[3.0, 4.0]])})
        tensor([[0.6000, 0.8000]])
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        parent: str = "cross_modal",
        name: str | None = None,
        kernel: KernelFactory = CosineKernel,
        seed: int = 0,
    ) -> None:
        check_choice("parent", parent, (CROSS_MODAL, *MODALITIES))
        modality: Modality = "image" if parent == "image" else "text"
        if parent == CROSS_MODAL:
            if inputs.cross_modal is None or name is not None:
                raise ConfigError(
                    "this pair has no cross-modal encoder" if name is None else f"name={name!r} is for experts only"
                )
            role = CROSS_MODAL
        else:
            experts = inputs.experts(modality)
            if not experts or (name is None and len(experts) > 1):
                raise ConfigError(
                    f"parent={parent!r} needs {'one' if not experts else 'the name of one'} of the pair's {parent} "
                    f"experts; there are {list(experts)}"
                )
            role = next(iter(experts)) if name is None else check_choice("name", name, experts)
        super().__init__(inputs=inputs, kernel=kernel, parents=[role], seed=seed)
        self.role, self._modalities = role, MODALITIES if role == CROSS_MODAL else (modality,)
        self.deterministic = self.kernels[role].deterministic

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Both for the cross-modal encoder, its own for an expert."""
        return self._modalities

    @property
    def out_dim(self) -> int:
        """Dimension of the kernel's feature map."""
        return self.kernels[self.role].out_dim

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return maps[self.role]

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        return values[self.role]

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {"method": "alone", "parent": self.role, "dim": self.out_dim, **self._describe_kernels()}


class Concatenation(KernelMethod):
    """Weighted concatenation of the parents' feature maps: the weighted SUM of their kernels.

    Args:
        inputs: dimensions of the pair.
        weights: by role, the weight w of its kernel in the sum (its features are scaled by √w); 1 where not named.
        missing: "none": only the side that has experts is encoded. "zeros": both are, with zeros in the place of a
            parent that the modality lacks, so that image-text similarities are the cross-modal encoder's.
        kernel: of every parent; the default is cosine, which normalises.
        seed: of random features.

    Raises:
        ConfigError: no expert, a weight that is not positive or of no parent, or both sides with missing="none".
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        weights: Mapping[str, float] | None = None,
        missing: str = "none",
        kernel: KernelFactory = CosineKernel,
        seed: int = 0,
    ) -> None:
        check_choice("missing", missing, ("none", "zeros"))
        modalities = expert_modalities(inputs, type(self).__name__, missing)
        super().__init__(inputs=inputs, kernel=kernel, seed=seed)
        self._modalities, self.missing = modalities, missing
        self.weights = dict.fromkeys(self._parents, 1.0)
        for role, weight in (weights or {}).items():
            check_choice("weights: role", role, self._parents)
            check_positive(f"weights[{role}]", weight)
            self.weights[role] = float(weight)
        self.deterministic = all(kernel.deterministic for kernel in self.kernels.values())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The side with experts; both with ``missing="zeros"`` and a cross-modal encoder."""
        return self._modalities

    @property
    def out_dim(self) -> int:
        """Sum of the dimensions of the parents' maps."""
        return sum(kernel.out_dim for kernel in self.kernels.values())

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        like = next(iter(maps.values()))
        return torch.cat(
            [
                maps[role] * math.sqrt(self.weights[role]) if role in maps else like.new_zeros(len(like), k.out_dim)
                for role, k in self.kernels.items()
            ],
            1,
        )

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([value * self.weights[role] for role, value in values.items()]).sum(0)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        own = {"method": "concatenation", "dim": self.out_dim, "weights": self.weights, "missing": self.missing}
        return {**own, **self._describe_kernels()}


class UnimodalKrossFuse(KernelMethod):
    """Sketch of the product of the parents' kernels on one modality (section 2): k = Π k_i.

    The parents are the experts of one modality and, where the pair has one, the cross-modal encoder's features of that
    modality. The other modality cannot be encoded; :class:`RPKrossFuse` is the form that keeps it.

    Args:
        inputs: dimensions of the pair; two parents of the modality at least.
        dim: l, dimension of the result; null: that of the whole product, for the kronecker sketch.
        modality: "image" or "text"; null: the one that has experts.
        kernel: of every parent.
        expert_kernel: of the experts, where they need another; null: ``kernel``.
        sketch: of the product.
        seed: of random features and of the sketch.

    Raises:
        ConfigError: a bad value, fewer than two parents, or experts of both modalities and none chosen.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        dim: int | None,
        modality: str | None = None,
        kernel: KernelFactory = CosineKernel,
        expert_kernel: KernelFactory | None = None,
        sketch: SketchFactory = UniformSketch,
        seed: int = 0,
    ) -> None:
        if dim is not None:
            check_positive("dim", dim, integer=True)
        chosen = one_modality(inputs, modality, type(self).__name__)
        roles = [CROSS_MODAL, *inputs.experts(chosen)]
        super().__init__(inputs=inputs, kernel=kernel, expert_kernel=expert_kernel, parents=roles, seed=seed)
        self.modality = chosen
        self.sketch = _build_sketch(sketch, list(self.kernels.values()), dim, derive_seed(seed, "sketch"))
        self.deterministic = self.sketch.deterministic and all(k.deterministic for k in self.kernels.values())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The one whose parents are multiplied."""
        return (self.modality,)

    @property
    def out_dim(self) -> int:
        """Dimension l of the sketch."""
        return self.sketch.out_dim

    def fit(self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None) -> Self:
        """Fit bandwidths and sketch on unlabelled features of the modality."""
        super().fit(image, text)
        self._fit_sketch(self.sketch, self.modality, image if self.modality == "image" else text)
        return self

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return self.sketch(list(maps.values()))  # type: ignore[no-any-return]

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        return _product(list(values.values()))

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        own = {"method": "unimodal_krossfuse", "dim": self.out_dim, "modality": self.modality, "seed": self.seed}
        return {**own, **self._describe_kernels(), **_prefixed(self.sketch.describe(), "sketch")}


def one_modality(inputs: InputSpec, modality: str | None, method: str) -> Modality:
    """Return the modality to fuse: the chosen one, or the only one with experts.

    Raises:
        ConfigError: not one of the modalities, none to choose from, or fewer than two parents.
    """
    if modality is None:
        sides = [m for m in MODALITIES if inputs.experts(m)]
        if len(sides) != 1:
            raise ConfigError(f"{method} needs modality=image or text: the pair has experts of {sides or 'neither'}")
        modality = sides[0]
    check_choice("modality", modality, MODALITIES)
    chosen: Modality = "image" if modality == "image" else "text"
    if (inputs.cross_modal is not None) + len(inputs.experts(chosen)) < 2:
        raise ConfigError(
            f"{method} multiplies two {chosen} parents or more; the pair has {list(inputs.experts(chosen))}"
        )
    return chosen


class RPKrossFuse(KernelMethod):
    """KrossFuse by a sketch of the product kernel (sections 3 and 4; arXiv 2506.08645, algorithms 1 and 2).

    With k_γ the product of a side's experts and C_X, C_T the constants,

        image-image  C_T·k_ψ·(C_X + k_γX)      text-text  C_X·k_ψ·(C_T + k_γT)      image-text  C_X·C_T·k_ψ

    where a side without experts has 1 in the place of its constant and of its bracket. The alignments reach it so:

    * published: sketch of ψ ⊗ γ̃, γ̃ the symmetrised expert of section 3, folded so that it is never built. Unbiased.
    * offset: the expert's projection plus √C, in place of the symmetrisation's random constant. Unbiased, less noise.
    * exact: direct sum [√C·ψ ; S(ψ ⊗ γ)] for images, [√C·ψ ; 0] for texts. Image-text similarities, and those of the
      side without experts, are exactly those of the cross-modal map, times C.

    Where ψ spreads different items so far that k_ψ is about 0 between most of them, little of the expert is left in
    the product. With ``expert_weight`` a > 0 (exact alignment alone) the expert is multiplied by [√a ; ψ] instead of ψ:
    image-image becomes C_T·(C_X·k_ψ + (a + k_ψ)·k_γX), which holds the sum of both kernels and their product, and
    text-text likewise. Nothing else changes.

    Args:
        inputs: dimensions of the pair: a cross-modal encoder and one expert at least.
        dim: total dimension of the result. With alignment "exact" the sketch has what the cross-modal map leaves, in
            halves where both sides have experts.
        C: constant of the image experts, and of the text experts where C_text is null: a positive number, or how
            :meth:`fit` chooses it: "cv" (cross-validation over {1e-3, ..., 1e3}, with labels) or "auto" (without).
        C_text: constant of the text experts, for a pair that has experts on both sides; null: C.
        expert_weight: a, weight of the experts' own kernel, 0 or more; above 0 needs alignment "exact".
        alignment: "published", "offset" or "exact".
        kernel: of every parent.
        expert_kernel: of the experts, where they need another; null: ``kernel``.
        sketch: of the product. Data-dependent ones need alignment "exact".
        seed: of random features and of the sketch.

    Raises:
        ConfigError: a bad value or an impossible combination.
        DimensionError: ``dim`` does not fit the parents' dimensions.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        dim: int,
        C: float | str = 1.0,
        C_text: float | None = None,
        expert_weight: float = 0.0,
        alignment: str = "published",
        kernel: KernelFactory = CosineKernel,
        expert_kernel: KernelFactory | None = None,
        sketch: SketchFactory = UniformSketch,
        seed: int = 0,
    ) -> None:
        check_positive("dim", dim, integer=True)
        check_choice("alignment", alignment, ("published", "offset", "exact"))
        self._check_inputs(inputs)
        super().__init__(inputs=inputs, kernel=kernel, expert_kernel=expert_kernel, seed=seed)
        self.alignment = alignment
        if expert_weight != 0:
            check_positive("expert_weight", expert_weight)
            if alignment != "exact":
                raise ConfigError(
                    f"expert_weight={expert_weight} needs alignment='exact', got {alignment!r}: in the others it would "
                    f"move image-text similarities too"
                )
        self.expert_weight = float(expert_weight)
        check_C("C", C)
        self.C_rule = C if isinstance(C, str) else None
        self.trained = C == "cv"
        self.set_C(1.0 if isinstance(C, str) else C, C_text)
        self._sides: list[Modality] = [m for m in MODALITIES if inputs.experts(m)]
        self.sketches = nn.ModuleDict()
        if alignment == "exact":
            self._build_exact(sketch, self._shares(dim))
        else:
            self._build_shared(sketch, dim)
        built = [s for s in self.sketches.values() if isinstance(s, Sketch)]
        self.deterministic = all(part.deterministic for part in [*built, *self.kernels.values()])

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
        check_positive("C", C)
        if C_text is not None:
            check_positive("C_text", C_text)
            if not (self.inputs.image_experts and self.inputs.text_experts):
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

    def _experts(self, side: Modality) -> list[Kernel]:
        return [self.kernels[role] for role in self.inputs.experts(side)]

    def _shares(self, dim: int) -> list[int]:
        """Return what ``dim`` leaves for the sketch of each side with experts."""
        cross = self.kernels[CROSS_MODAL].out_dim
        rest, sides = dim - cross, len(self._sides)
        if rest < sides:
            raise DimensionError(
                f"dim={dim} must be {cross + sides} or more with alignment='exact': the cross-modal map has {cross}, "
                f"and each side with experts takes some; raise dim, or use alignment='offset'"
            )
        return [(rest + sides - 1 - i) // sides for i in range(sides)]

    def _build_exact(self, factory: SketchFactory, shares: Sequence[int | None]) -> None:
        for side, share in zip(self._sides, shares, strict=True):
            kernels = [self.kernels[CROSS_MODAL], *self._experts(side)]
            seed = derive_seed(self.seed, "sketch", side)
            self.sketches[side] = _build_sketch(factory, kernels, share, seed, constant=self.expert_weight > 0)

    def _build_shared(self, factory: SketchFactory, dim: int) -> None:
        published = self.alignment == "published"
        crowded = [side for side in self._sides if len(self._experts(side)) > 1]
        if published and crowded:
            raise ConfigError(
                f"alignment='published' symmetrises one expert a side, and the pair has several on the {crowded[0]} "
                f"side, {list(self.inputs.experts(crowded[0]))}; use alignment='exact' or 'offset'"
            )
        kernels = [k for side in self._sides for k in self._experts(side)]
        widths = [k.out_dim * (2 if published else 1) for k in kernels]
        seed = derive_seed(self.seed, "sketch")
        sketch = factory([self.kernels[CROSS_MODAL].out_dim, *widths], dim, seed=seed)
        if not isinstance(sketch, RandomSketch):
            raise ConfigError(
                f"sketch={getattr(sketch, 'name', sketch)!r} has no linear projection of one factor, which alignment="
                f"{self.alignment!r} needs; use alignment='exact'"
            )
        self.sketches["shared"] = sketch
        factor = 1
        for side in self._sides:
            # Times √C: the constant that stands for the side's experts where they see nothing.
            if published:
                constant = sketch.mirror(factor) / math.sqrt(2 * self._experts(side)[0].out_dim)
            else:
                constant = sketch.multiply([sketch.unit(factor + i) for i in range(len(self._experts(side)))])
            self.register_buffer(f"constant_{side}", constant)
            factor += len(self._experts(side))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Both."""
        return MODALITIES

    @property
    def out_dim(self) -> int:
        """``dim``."""
        parts = sum(sketch.out_dim for sketch in self.sketches.values() if isinstance(sketch, Sketch))
        return parts + (self.kernels[CROSS_MODAL].out_dim if self.alignment == "exact" else 0)

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
        if self.alignment == "exact":
            for side in self._sides:
                self._fit_sketch(self._sketch(side), side, image if side == "image" else text)
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
                with _named(role):
                    values[role] = self.kernels[role].kernel(chosen, chosen)
            cross = values.pop(CROSS_MODAL)
            return cross, (self.expert_weight + cross) * _product(list(values.values()))

        choice = choose_C(rule, grams, count, labels, seed=derive_seed(self.seed, "C"))
        self.set_C(choice.C, self.C_text)
        self._chosen_C = choice.describe()

    def get_extra_state(self) -> Tensor:
        """Return the constants, which are no tensors that a change of precision may round, as bytes of JSON."""
        state = {"C": self.C, "C_text": self.C_text, "chosen": self._chosen_C}
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the constants back."""
        constants = json.loads(bytes(state.tolist()))
        self.set_C(constants["C"], constants["C_text"])
        self._chosen_C = constants["chosen"]

    def _sketch(self, name: str) -> Sketch:
        sketch = self.sketches[name]
        assert isinstance(sketch, Sketch)
        return sketch

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return (self._encode_exact if self.alignment == "exact" else self._encode_shared)(modality, maps)

    def _encode_exact(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        cross = maps[CROSS_MODAL]
        parts = [cross * math.sqrt(self.constant("image") * self.constant("text"))]
        for side in self._sides:
            sketch = self._sketch(side)
            if side == modality:
                weight = math.sqrt(self.constant("text" if side == "image" else "image"))
                own = sketch(self._factors(maps))
                parts.append(own if weight == 1 else own * weight)
            else:
                parts.append(cross.new_zeros(len(cross), sketch.out_dim))
        return torch.cat(parts, 1)

    def _factors(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what the sketch multiplies: the maps, the cross-modal one with the constant √a in front."""
        cross, *experts = maps.values()
        if self.expert_weight:
            cross = torch.cat([cross.new_full((len(cross), 1), math.sqrt(self.expert_weight)), cross], 1)
        return [cross, *experts]

    def _encode_shared(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        sketch = self._sketch("shared")
        assert isinstance(sketch, RandomSketch)
        projections, factor = [sketch.project(0, maps[CROSS_MODAL])], 1
        for side in self._sides:
            constant = self.get_buffer(f"constant_{side}") * math.sqrt(self.constant(side))
            experts = list(self.inputs.experts(side))
            if side != modality:
                projections.append(constant)
            elif len(experts) == 1:
                projections.append(sketch.project(factor, maps[experts[0]], constant))
            else:
                several = [sketch.project(factor + i, maps[role]) for i, role in enumerate(experts)]
                projections.append(sketch.multiply(several) + constant)
            factor += len(experts)
        return sketch.finish(sketch.multiply(projections))

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        cross = values[CROSS_MODAL]
        result, others = cross, 1.0
        for side in self._sides:
            constant = self.constant(side)
            if modality_a == modality_b == side:
                expert = _product([values[role] for role in self.inputs.experts(side)])
                result = cross * (constant + expert)
                if self.expert_weight:
                    result = result + self.expert_weight * expert
            else:
                others *= constant
        return result * others

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        own: dict[str, Any] = {"method": "rp_krossfuse", "dim": self.out_dim, "alignment": self.alignment}
        own |= {"C": self.C if self.C_rule is None or self._chosen_C else self.C_rule, "seed": self.seed}
        own |= self._chosen_C
        if self.expert_weight:
            own["expert_weight"] = self.expert_weight
        if len(self._sides) == 2:
            own["C_text"] = self.constant("text")
        sketch = next(s for s in self.sketches.values() if isinstance(s, Sketch))
        return {**own, **self._describe_kernels(), **_prefixed(sketch.describe(), "sketch")}


class ExactKrossFuse(RPKrossFuse):
    """KrossFuse itself: the kernel of section 3 without error.

    Its feature map is the direct sum [√C·ψ ; ψ ⊗ γ], text [√C·ψ ; 0]: the kernel of the symmetrised form ψ ⊗ γ̃, in
    d_ψ(1 + d_γ) dimensions rather than 2·d_ψ·d_γ. Where that does not fit, :func:`gram` gives the kernel in blocks.

    Args:
        inputs: dimensions of the pair: a cross-modal encoder and one expert at least.
        C: constant of the image experts, and of the text experts where C_text is null; also "cv" or "auto".
        C_text: constant of the text experts, for a pair that has experts on both sides; null: C.
        expert_weight: a, weight of the experts' own kernel, see :class:`RPKrossFuse`.
        kernel: of every parent.
        expert_kernel: of the experts, where they need another; null: ``kernel``.
        explicit: build the map. False: no embedding, only :meth:`kernel`.
        max_dim: largest map that is built.
        seed: of random features, where the kernel has them.

    Raises:
        ConfigError: a bad value.
        DimensionError: the map has more than ``max_dim`` dimensions.
    """

    explicit: bool
    max_dim: int

    def __init__(
        self,
        *,
        inputs: InputSpec,
        C: float | str = 1.0,
        C_text: float | None = None,
        expert_weight: float = 0.0,
        kernel: KernelFactory = CosineKernel,
        expert_kernel: KernelFactory | None = None,
        explicit: bool = True,
        max_dim: int = 65_536,
        seed: int = 0,
    ) -> None:
        check_positive("max_dim", max_dim, integer=True)
        self.explicit, self.max_dim = explicit, max_dim  # before _shares, which needs them
        super().__init__(
            inputs=inputs,
            dim=max_dim,
            C=C,
            C_text=C_text,
            expert_weight=expert_weight,
            alignment="exact",
            kernel=kernel,
            expert_kernel=expert_kernel,
            sketch=KroneckerSketch,
            seed=seed,
        )

    def _shares(self, dim: int) -> list[int]:
        cross = self.kernels[CROSS_MODAL].out_dim
        factor = cross + (self.expert_weight > 0)
        shares = [math.prod([factor, *(k.out_dim for k in self._experts(side))]) for side in self._sides]
        total = cross + sum(shares)
        if self.explicit and total > self.max_dim:
            raise DimensionError(
                f"the exact map has {total} dimensions, more than max_dim={self.max_dim}; raise max_dim, or use "
                f"fusion=rp_krossfuse (in Python, explicit=False gives the exact kernel without a map)"
            )
        return shares

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        if not self.explicit:
            raise ConfigError("explicit=False builds no map: use kernel() or gram(), or set explicit=True")
        return super()._encode(modality, maps)

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {**super().describe(), "method": "exact_krossfuse", "explicit": self.explicit}


def gram(
    method: FusionMethod,
    modality_a: Modality,
    a: Features,
    modality_b: Modality,
    b: Features,
    *,
    block_rows: int = 1024,
) -> Tensor:
    """Return the exact kernel matrix (len(a), len(b)), computed in blocks of rows and columns.

    Raises:
        ConfigError: the method has no exact kernel.
        DataError: see :meth:`FusionMethod.encode`.
    """
    check_positive("block_rows", block_rows, integer=True)
    rows, columns = len(next(iter(a.values()))), len(next(iter(b.values())))
    result: Tensor | None = None
    for i in range(0, rows, block_rows):
        for j in range(0, columns, block_rows):
            block = method.kernel(
                modality_a,
                {role: x[i : i + block_rows] for role, x in a.items()},
                modality_b,
                {role: x[j : j + block_rows] for role, x in b.items()},
            )
            if block is None:
                raise ConfigError(f"{type(method).__name__} has no exact kernel")
            if result is None:
                result = block.new_empty(rows, columns)
            result[i : i + block_rows, j : j + block_rows] = block
    if result is None:
        raise DataError(f"a kernel matrix needs rows on both sides, got {rows} and {columns}")
    return result


class ReleasedCode(KernelMethod):
    """The paper's released code, to the digit: its draws, and its division of BOTH matrices by √l.

    So inner products are l times too small: a logistic regression at C = 0.316 behaves as one at 0.316/l. Images alone,
    one expert, no symmetrisation. For reproducing published runs; :class:`UnimodalKrossFuse` is it without the fault.

    Args:
        inputs: dimensions of the pair: a cross-modal encoder and one image expert.
        dim: l.
        seed: of the released generator (42 there).

    Raises:
        ConfigError: not such a pair, or a bad value.
    """

    matrix_cross: Tensor
    matrix_expert: Tensor

    def __init__(self, *, inputs: InputSpec, dim: int = 3000, seed: int = 42) -> None:
        check_positive("dim", dim, integer=True)
        if inputs.cross_modal is None or len(inputs.image_experts) != 1:
            raise ConfigError(
                f"the released code fuses a cross-modal encoder with one image expert; the pair has image experts "
                f"{list(inputs.image_experts)} and {'no' if inputs.cross_modal is None else 'a'} cross-modal encoder"
            )
        expert = next(iter(inputs.image_experts))
        super().__init__(inputs=inputs, kernel=CosineKernel, parents=[CROSS_MODAL, expert], seed=seed)
        self.expert = expert
        self.dim = dim
        generator = torch.Generator().manual_seed(seed)
        root = math.sqrt(3)
        for name, d in (("cross", inputs.cross_modal), ("expert", inputs.image_experts[self.expert])):
            entries = torch.rand(d, dim, generator=generator, dtype=torch.float32) * 2 * root - root
            self.register_buffer(f"matrix_{name}", entries / math.sqrt(dim))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Images."""
        return ("image",)

    @property
    def out_dim(self) -> int:
        """Dimension l."""
        return self.dim

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return (maps[CROSS_MODAL] @ self.matrix_cross) * (maps[self.expert] @ self.matrix_expert)

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        return _product(list(values.values())) / self.dim

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        return {"method": "released_code", "dim": self.dim, "sketch": "uniform", "kernel": "cosine", "seed": self.seed}
