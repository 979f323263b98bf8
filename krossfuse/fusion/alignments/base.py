"""What an alignment is: a map of both modalities, from the parents' feature maps and the constants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from krossfuse.core.parts import Modality
from krossfuse.fusion.factories import SketchFactory
from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.sketches import Sketch

Constants = Mapping[Modality, float]
"""C_X by ``"image"`` and C_T by ``"text"``; 1 for a side without experts."""

WITHIN = "cross_modal, within the product"
"""The key, beside the roles, of the cross-modal features' map within the product, where it has a kernel of its own."""


@dataclass(frozen=True)
class Parents:
    """The kernels of the parents.

    Attributes:
        cross_modal: of the cross-modal encoder.
        experts: by modality, of its experts, by role; sides without experts are left out.
        within: by modality, of the cross-modal features within the product; empty where it is ``cross_modal``.
    """

    cross_modal: Kernel
    experts: Mapping[Modality, Mapping[str, Kernel]]
    within: Mapping[Modality, Kernel] = field(default_factory=dict)

    @property
    def sides(self) -> list[Modality]:
        """The modalities that have experts, images first."""
        return list(self.experts)

    def of(self, side: Modality) -> list[Kernel]:
        """Return the kernels of a side's experts."""
        return list(self.experts[side].values())

    def factors(self, side: Modality) -> list[Kernel]:
        """Return the kernels that are multiplied on a side with experts."""
        return [self.within.get(side, self.cross_modal), *self.of(side)]


class Alignment(nn.Module, ABC):
    """A map of both modalities; see :mod:`krossfuse.fusion.alignments`.

    Where a side has several experts, k_γ is the product of their kernels.

    Args:
        parents: kernels of the parents.
        dim: total dimension of the embedding; None = that of the whole product, for the kronecker sketch.
        sketch: of the product.
        expert_weight: weight of the experts' own kernel; 0 unless :attr:`takes_expert_weight`.
        seed: of the sketches.

    Attributes:
        name: as in the configuration and in results.
        takes_expert_weight: whether ``expert_weight`` may be above 0.
        takes_product_kernel: whether the cross-modal features may have a kernel of their own within the product.
        sketches: by name, its sketches.

    Raises:
        ConfigError: the sketch or the parents do not suit the alignment.
        DimensionError: ``dim`` does not fit the parents' dimensions.
    """

    name: ClassVar[str]
    takes_expert_weight: ClassVar[bool] = False
    takes_product_kernel: ClassVar[bool] = False

    def __init__(
        self, parents: Parents, dim: int | None, sketch: SketchFactory, *, expert_weight: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.__dict__["parents"] = parents  # past nn.Module: the kernels are the method's
        self.expert_weight, self.seed = expert_weight, seed
        self.sketches = nn.ModuleDict()
        self.build(dim, sketch)

    parents: Parents

    @abstractmethod
    def build(self, dim: int | None, sketch: SketchFactory) -> None:
        """Make the sketches and constants; raises as the class."""

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """Dimension of the embedding."""

    @abstractmethod
    def encode(self, modality: Modality, maps: Mapping[str, Tensor], constants: Constants) -> Tensor:
        """Return the embedding (n, out_dim) of one chunk.

        Args:
            modality: of the rows.
            maps: by role, the feature maps (n, d), the cross-modal encoder's first; and by :data:`WITHIN` its map
                within the product, where that is another.
            constants: C_X and C_T.
        """

    def sketch(self, name: str) -> Sketch:
        """Return one of its sketches."""
        sketch = self.sketches[name]
        assert isinstance(sketch, Sketch)
        return sketch

    def fitted_sketches(self) -> Mapping[Modality, Sketch]:
        """Return, by the modality whose features it is fitted on, each sketch that may need a fit."""
        return {}

    def factors(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what the sketch of a side multiplies, of one chunk of its maps."""
        return list(maps.values())

    @property
    def deterministic(self) -> bool:
        """Whether no seed changes it."""
        return all(self.sketch(name).deterministic for name in self.sketches)

    def kernel(
        self,
        modality_a: Modality,
        modality_b: Modality,
        cross: Tensor,
        experts: Sequence[Tensor],
        constants: Constants,
        within: Tensor | None = None,
    ) -> Tensor:
        """Return the exact kernel that the embeddings approximate.

        Args:
            modality_a: of the rows.
            modality_b: of the columns.
            cross: (n, m), k_ψ.
            experts: (n, m) each, the kernels of the experts that both modalities have.
            constants: C_X and C_T.
            within: (n, m), k_ψ within the product, where that is another kernel.
        """
        result, others = cross, 1.0
        for side in self.parents.sides:
            if modality_a == modality_b == side:
                product = experts[0]
                for expert in experts[1:]:
                    product = product * expert
                more = () if within is None else (within,)
                result = self.side_kernel(cross, product, constants[side], *more)
            else:
                others *= constants[side]
        return result * others

    def side_kernel(self, cross: Tensor, expert: Tensor, constant: float) -> Tensor:
        """Return the kernel within a side that has experts, C·k_ψ + k_ψ·k_γ, without the other side's constant."""
        return cross * (constant + expert)

    def describe_sketch(self) -> dict[str, Any]:
        """Return the configuration of its sketches, which are of one kind; empty without any."""
        return next((self.sketch(name).describe() for name in self.sketches), {})

    def describe(self) -> dict[str, Any]:
        """Return the alignment's configuration, flat and JSON-able."""
        return {"alignment": self.name}


AlignmentFactory = Callable[..., Alignment]
"""An :class:`Alignment` class, or a partial of one with its options."""
