"""Methods that are a feature map of a kernel over the parents' kernels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.core.seeds import derive_seed
from krossfuse.fusion.base import Features, FusionMethod, InputSpec
from krossfuse.fusion.factories import KernelFactory, build_kernel
from krossfuse.fusion.kernels import Kernel
from krossfuse.fusion.rows import can_look, check_features, looked_at_once, of_role
from krossfuse.fusion.sketches import Sketch

CHUNK_ROWS = 512
"""Rows fused at a time: intermediates of this many rows stay in the processor's cache."""
DEVICE_ROWS = 1 << 15
"""The same on a GPU, which is kept busy by many."""


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
            self._kernels.append(build_kernel(factory, dim, seed=derive_seed(seed, "kernel", role)))
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
            for x in rows:
                check_features(role, x, kernel.in_dim)
            if not rows:
                raise DataError(f"the kernel of {role!r} needs its features to fit the bandwidth; none were given")
            with of_role(role):
                kernel.fit(torch.cat(rows))
        return self

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Fuse one batch: (batch, dim) by role in, (batch, out_dim) out; see :class:`FusionMethod`."""
        if not can_look():  # a traced function has one road for any number of rows
            return self._encode(modality, self._maps(modality, {role: features[role] for role in self.roles(modality)}))
        given = self._given(modality, features)
        count = len(next(iter(given.values())))
        device = self._like.device
        chunk = CHUNK_ROWS if device.type == "cpu" else DEVICE_ROWS

        def encoded() -> Tensor:
            if count <= chunk or (torch.is_grad_enabled() and self._differentiable(given)):
                return self._encode(modality, self._maps(modality, given))
            out = self._like.new_empty(count, self.out_dim)
            for rows in blocks(count, chunk):
                if rows.stop - rows.start == 1:  # a product with one row alone has other last bits on a CPU
                    rows = slice(rows.start - 1, rows.stop)
                out[rows] = self._encode(modality, self._maps(modality, given, rows))
            return out

        return looked_at_once(encoded, device)

    def kernel(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> Tensor | None:
        """Return the exact kernel (len(a), len(b)) that the embedding approximates or equals."""
        given_a, given_b = self._given(modality_a, a), self._given(modality_b, b)
        return self._kernel(modality_a, modality_b, self._values(modality_a, given_a, modality_b, given_b))

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check the rows that bandwidths need; see :meth:`FusionMethod.check_rows`."""
        for role, kernel in self.kernels.items():
            given = [count for m, count in rows.items() if role in self.roles(m)]
            if given:
                with of_role(role):
                    kernel.check_rows(sum(given))

    @torch.no_grad()
    def _fit_sketch(
        self,
        sketch: Sketch,
        modality: Modality,
        features: Features | None,
        factors: Callable[[Mapping[str, Tensor]], list[Tensor]] = lambda maps: list(maps.values()),
    ) -> None:
        """Fit a data-dependent sketch on the feature maps of a modality, in blocks.

        Args:
            sketch: to fit, in place.
            modality: of the features.
            features: by role.
            factors: what the sketch multiplies, of one chunk of maps.

        Raises:
            DataError: the features are not given, or too few.
        """
        if not sketch.needs_fit:
            return
        if features is None:
            raise DataError(f"the {sketch.name} sketch of the {modality} side needs {modality} features to fit on")
        given = self._given(modality, features)
        count = len(next(iter(given.values())))
        sketch.check_rows(count)
        sketch.fit_blocks(factors(self._maps(modality, given, rows)) for rows in blocks(count, FIT_ROWS))

    @abstractmethod
    def _encode(self, modality: Modality, maps: Mapping[str, Tensor]) -> Tensor:
        """Fuse the feature maps by role of one chunk."""

    @abstractmethod
    def _kernel(self, modality_a: Modality, modality_b: Modality, values: Mapping[str, Tensor]) -> Tensor:
        """Combine the exact kernels of the roles that both modalities have."""

    def _values(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> dict[str, Tensor]:
        """Return the exact kernels (len(a), len(b)) of the roles that both have."""
        values = {}
        for role in [role for role in a if role in b]:
            with of_role(role):
                values[role] = self.kernels[role].kernel(self._rows(a[role]), self._rows(b[role]))
        return values

    def _differentiable(self, given: Features) -> bool:
        return any(x.requires_grad for x in given.values()) or any(p.requires_grad for p in self.parameters())

    def _rows(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return x[rows].to(self._like)

    def _maps(self, modality: Modality, given: Features, rows: slice = slice(None)) -> dict[str, Tensor]:
        maps, kernels = {}, self.kernels
        for role, x in given.items():
            with of_role(role):
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
        for role in roles:
            check_features(role, features[role], self._parents[role])
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


def product(values: Sequence[Tensor]) -> Tensor:
    """Return the elementwise product."""
    result = values[0]
    for value in values[1:]:
        result = result * value
    return result


def prefixed(description: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return a description whose keys say what they describe."""
    return {key if key == prefix else f"{prefix}_{key}": value for key, value in description.items()}
