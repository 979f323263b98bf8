"""KrossFuse of parents of one modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from krossfuse.core.errors import ConfigError, check_choice, check_positive
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.core.seeds import derive_seed
from krossfuse.fusion.base import Features, InputSpec
from krossfuse.fusion.factories import KernelFactory, SketchFactory, build_sketch
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods.kernel_method import (
    KernelMethod,
    prefixed,
    product,
)
from krossfuse.fusion.sketches import UniformSketch


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

    name = "unimodal_krossfuse"
    title = "KrossFuse of experts"

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
        self.sketch = build_sketch(sketch, list(self.kernels.values()), dim, seed=derive_seed(seed, "sketch"))
        self.deterministic = self.sketch.deterministic and all(k.deterministic for k in self.kernels.values())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The one whose parents are multiplied."""
        return (self.modality,)

    @property
    def out_dim(self) -> int:
        """Dimension l of the sketch."""
        return self.sketch.out_dim

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check the rows that bandwidths and the sketch need; see :meth:`FusionMethod.check_rows`."""
        super().check_rows(rows)
        if self.modality in rows and self.sketch.needs_fit:
            self.sketch.check_rows(rows[self.modality])

    def fit(self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None) -> Self:
        """Fit bandwidths and sketch on unlabelled features of the modality."""
        super().fit(image, text)
        self._fit_sketch(self.sketch, self.modality, image if self.modality == "image" else text)
        return self

    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        return self.sketch(list(maps.values()))  # type: ignore[no-any-return]

    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        return product(list(values.values()))

    def describe(self) -> dict[str, Any]:
        """Return the flat description for the results."""
        described = {"method": self.name, "title": self.title, "dim": self.out_dim}
        described |= {"modality": self.modality, "seed": self.seed}
        return {**described, **self._describe_kernels(), **prefixed(self.sketch.describe(), "sketch")}


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
