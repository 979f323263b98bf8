"""The kernels under which images are neighbours: of the fused embedding, and exact ones of the pair's parents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.parts import CROSS_MODAL, Modality, Part
from krossfuse.fusion.fit import FIT_ROWS, subset
from krossfuse.fusion.kernels import CentredKernel
from krossfuse.probes.rows import finite_rows, unit_rows
from krossfuse.probes.space import EmbeddingSpace

FUSED = "fused"
KERNELS = (FUSED, CROSS_MODAL, "expert", "sum", "product")

Maps = list[Tensor]
"""By parent, the unit feature maps (rows, dim) of a block of items."""


@dataclass(frozen=True)
class Items:
    """Items of several parts, one part after the other."""

    parts: tuple[Part, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.sizes)

    def first(self, part: Part) -> int:
        """Return the place of a part's first row."""
        return sum(self.sizes[: self.parts.index(part)])

    def pieces(self, block: slice) -> Iterator[tuple[Part, slice]]:
        """Yield the parts that a block of items lies in, with the rows of each."""
        start = 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            a, b = max(block.start, start), min(block.stop, start + size)
            if a < b:
                yield part, slice(a - start, b - start)
            start += size


@dataclass(frozen=True)
class GraphKernel:
    """A kernel between items, 1 of each with itself, evaluated tile by tile.

    Attributes:
        read: the unit feature maps of the parents, of a block of items.
        product: whether it is ((1 + k_1)·…·(1 + k_m) − 1)/(2^m − 1) of the parents' kernels k_i, or their mean.
        described: for the records.
    """

    read: Callable[[slice], Maps]
    product: bool
    described: dict[str, Any]

    def tile(self, a: Maps, b: Maps) -> Tensor:
        """Return the kernel (rows of a, rows of b)."""
        total: Tensor = a[0] @ b[0].T
        if self.product:
            total += 1
            for x, y in zip(a[1:], b[1:], strict=True):
                total *= (x @ y.T).add_(1)
            return (total - 1) / float(2 ** len(a) - 1)
        for x, y in zip(a[1:], b[1:], strict=True):
            total += x @ y.T
        return total / len(a)

    def vectors(self, block: slice) -> Tensor:
        """Return the vectors (rows, dim) whose inner products are the kernel, if it is a mean.

        (The product's would have as many dimensions as the parents' multiplied.)
        """
        maps = self.read(block)
        return torch.cat(maps, 1) / math.sqrt(len(maps))


def roles_of_kernel(kernel: str, roles: Sequence[str]) -> list[str]:
    """Return which of a modality's parents a kernel is of, by role."""
    experts = [role for role in roles if role != CROSS_MODAL]
    if kernel == CROSS_MODAL:
        return [role for role in roles if role == CROSS_MODAL]
    return experts if kernel == "expert" else [*roles]


def why_no_kernel(space: EmbeddingSpace, kernel: str, modality: Modality, parts: Sequence[Part]) -> str | None:
    """Return None if the space has what a kernel needs of these parts, or what it lacks."""
    if kernel == FUSED:
        return None
    missing = [str(part) for part in parts if part not in space.parents]
    if missing:
        return (
            f"kernel={kernel} reads the parents' own features, which are not held here for {missing} (store=none keeps "
            f"none); say kernel={FUSED}, or keep a store"
        )
    roles = list(space.parents[parts[0]])
    chosen = roles_of_kernel(kernel, roles)
    if kernel in (CROSS_MODAL, "expert"):
        return None if chosen else f"kernel={kernel} has no such parent of {modality}s; the parents are {roles}"
    if len(roles) < 2:
        return f"kernel={kernel} needs two parents of {modality}s at least, but there are {roles}; say kernel={FUSED}"
    return None


def graph_kernel(
    space: EmbeddingSpace,
    kernel: str,
    items: Items,
    *,
    n_fit: int,
    seed: int = 0,
    device: torch.device | None = None,
) -> GraphKernel:
    """Return a kernel between items of one modality.

    ``fused`` is the cosine of the embedding. The others are of the parents behind it, by
    :class:`~krossfuse.fusion.kernels.CentredKernel` of each, centred on the graph's items: ``cross_modal``,
    ``expert`` (where there are several, their product), ``sum`` (the mean over all parents) and ``product``,
    ((1 + k_1)·…·(1 + k_m) − 1)/(2^m − 1), which is every parent's own kernel and all their products.

    Args:
        space: the embedding, and its parents.
        kernel: of :data:`KERNELS`; :func:`why_no_kernel` has said that it can be had.
        items: whose kernel it is.
        n_fit: the first so many are the graph's, on which parents are centred (a random 50,000 of more).
        seed: of that choice.
        device: where to compute; None is where the features are.

    Raises:
        DataError: features have NaN, or all have one direction.
    """
    if kernel == FUSED:

        def embeddings(block: slice) -> Maps:
            pieces = []
            for part, rows in items.pieces(block):
                x = space[part][rows] if device is None else space[part][rows].to(device)
                dtype = torch.promote_types(x.dtype, torch.float32)
                pieces.append(unit_rows(x, part, dtype=dtype, rows=torch.arange(rows.start, rows.stop)))
            return [torch.cat(pieces)]

        return GraphKernel(embeddings, False, {"kernel": FUSED})

    def features(role: str, part: Part, rows: slice | Tensor) -> Tensor:
        x = space.parents[part][role][rows]
        numbers = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return finite_rows(x, f"{part}, {role},", rows=numbers).to(torch.promote_types(x.dtype, torch.float32))

    roles = roles_of_kernel(kernel, list(space.parents[items.parts[0]]))
    chosen = subset(n_fit, FIT_ROWS, seed)
    kernels = {}
    for role in roles:
        seen = []
        for part, rows in items.pieces(slice(0, n_fit)):
            if chosen is None:
                seen.append(features(role, part, rows))
            else:
                inside = chosen - items.first(part)
                seen.append(features(role, part, inside[(inside >= 0) & (inside < rows.stop)]))
        fitted = torch.cat(seen)
        kernels[role] = CentredKernel(fitted.shape[1]).fit(fitted)
        if device is not None:
            kernels[role].to(device)

    def parents(block: slice) -> Maps:
        maps = []
        for role, centred in kernels.items():
            x = torch.cat([features(role, part, rows) for part, rows in items.pieces(block)])
            maps.append(centred(x if device is None else x.to(device)))
        return maps

    powers = {role: centred.describe()["power"] for role, centred in kernels.items()}
    return GraphKernel(parents, kernel in ("product", "expert"), {"kernel": kernel, "kernel_powers": powers})
