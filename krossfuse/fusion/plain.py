"""The road of :class:`~krossfuse.fusion.module.FusionModule` in one call, for whoever has features and no module."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import check_choice
from krossfuse.core.parts import Modality, Part
from krossfuse.fusion.base import Features, FusionMethod
from krossfuse.fusion.batches import StoredRows
from krossfuse.fusion.loop import BLOCK_ROWS
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.sink import MEMORY_LIMIT, RowSink
from krossfuse.fusion.stream import select_roles


def fuse_rows(
    method: FusionMethod,
    modality: Modality,
    features: Features,
    *,
    block_rows: int = BLOCK_ROWS,
    path: Path | str | None = None,
    memory_limit: float = MEMORY_LIMIT,
) -> Tensor:
    """Fuse plain tensors: :meth:`~krossfuse.fusion.module.FusionModule.fuse` of one part.

    Args:
        method: fitted.
        modality: of the rows.
        features: by role, (n, dim); may lie over a memory map larger than memory.
        block_rows: rows a block.
        path: ``.npy`` file for a result larger than ``memory_limit``, written atomically; None = a temporary file.
        memory_limit: bytes up to which the result is held in memory.

    Returns:
        (n, out_dim) on the CPU.

    Raises:
        DataError: the features do not fit the method.

    Examples:
        >>> import torch
        >>> from krossfuse.fusion import InputSpec, PCAConcatenation
        >>> x = {"cross_modal": torch.randn(10, 4), "dino": torch.randn(10, 6)}
        >>> method = PCAConcatenation(inputs=InputSpec(cross_modal=4, image_experts={"dino": 6}), dim=3)
        >>> tuple(fuse_rows(method.fit(image=x), "image", x, block_rows=4).shape)
        (10, 3)
    """
    check_choice("modality", modality, method.modalities)
    rows = StoredRows(modality, select_roles(method, modality, features), {})
    sink = RowSink(len(rows), path=None if path is None else Path(path), memory_limit=memory_limit)
    (fused,) = FusionModule(method, block_rows=block_rows).fill({f"{modality} features": (rows, sink)}, block_rows)
    return fused


def fuse_to_file(
    method: FusionMethod, modality: Modality, features: Features, path: Path | str, *, block_rows: int = BLOCK_ROWS
) -> Tensor:
    """Fuse plain tensors into the ``.npy`` file ``path``, one block in memory at a time; see :func:`fuse_rows`."""
    return fuse_rows(method, modality, features, block_rows=block_rows, path=path, memory_limit=0)


def fuse_bundle(
    method: FusionMethod,
    bundle: FeatureBundle,
    *,
    parts: Iterable[Part] | None = None,
    block_rows: int = BLOCK_ROWS,
    memory_limit: float = MEMORY_LIMIT,
    folder: Path | str | None = None,
) -> dict[Part, Tensor]:
    """Fuse the parts of a bundle: :meth:`~krossfuse.fusion.module.FusionModule.fuse` without a module of one's own."""
    module = FusionModule(method, block_rows=block_rows)
    return module.fuse(bundle, parts=parts, memory_limit=memory_limit, folder=folder)
