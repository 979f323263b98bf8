"""One parent alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.factories import KernelFactory
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods.kernel_method import (
    KernelMethod,
)


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
        >>> import torch
        >>> Alone(inputs=InputSpec(cross_modal=2)).encode("text", {"cross_modal": torch.tensor([[3.0, 4.0]])})
        tensor([[0.6000, 0.8000]])
    """

    name = "alone"
    title = "Parent alone"

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
        self.title = {CROSS_MODAL: "Cross-modal alone"}.get(parent, f"{parent.capitalize()} expert alone")
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
        described = {"method": self.name, "title": self.title, "parent": self.role, "dim": self.out_dim}
        return {**described, **self._describe_kernels()}
