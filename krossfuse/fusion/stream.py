"""Fit and encode over whole datasets, block by block: nothing that is a whole data set is held twice.

This is the road of ``FusionModule.fuse`` without Lightning, for those who have features and no Trainer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import DataError, check_positive
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, TRAIN, Modality, Part
from krossfuse.fusion.base import Features, FusionMethod, InputSpec

BLOCK_ROWS = 4096
"""Rows encoded at a time: 50 MB of 3000 float32 outputs."""

MEMORY_LIMIT = 1 << 30
"""Bytes up to which a fused part stays in memory."""

FIT_ROWS = 50_000
"""Rows of the training split that a label-free fit sees at most."""


def roles_of(inputs: InputSpec, modality: Modality) -> dict[str, int]:
    """Return, by role, the dimension of the features that one modality brings; the cross-modal encoder first."""
    cross = {} if inputs.cross_modal is None else {CROSS_MODAL: inputs.cross_modal}
    return {**cross, **inputs.experts(modality)}


def inputs_of(bundle: FeatureBundle) -> InputSpec:
    """Return the dimensions of a bundle's features, as fusion methods take them.

    Raises:
        DataError: one role has two dimensions.
    """
    image, text = bundle.dims("image"), bundle.dims("text")
    cross = {dims[CROSS_MODAL] for dims in (image, text) if CROSS_MODAL in dims}
    if len(cross) > 1:
        raise DataError(f"the cross-modal features have {image[CROSS_MODAL]} dimensions for images but "
                        f"{text[CROSS_MODAL]} for texts; they must share one space")  # fmt: skip
    return InputSpec(
        cross_modal=cross.pop() if cross else None,
        image_experts={role: dim for role, dim in image.items() if role != CROSS_MODAL},
        text_experts={role: dim for role, dim in text.items() if role != CROSS_MODAL},
    )


def select_roles(method: FusionMethod, modality: Modality, features: Features, where: str = "features") -> Features:
    """Return the features that ``method`` reads for ``modality``, checked for presence, dimension and equal length.

    Raises:
        DataError: a role is missing or has another dimension or another number of rows, or there is no row.
    """
    wanted = roles_of(method.inputs, modality)
    missing = [role for role in wanted if role not in features]
    if missing:
        raise DataError(f"{where}: {modality} features of {missing} are missing; there are {sorted(features)}")
    chosen = {role: features[role] for role in wanted}
    for role, dim in wanted.items():
        if chosen[role].ndim != 2 or chosen[role].shape[1] != dim:
            raise DataError(
                f"{where}: features of {role!r} have shape {tuple(chosen[role].shape)}, expected (n, {dim})"
            )
    lengths = {role: len(tensor) for role, tensor in chosen.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise DataError(f"{where}: roles must have the same number of rows, one at least, got {lengths}")
    return chosen


class RowSink:
    """Takes fused blocks in order and gives one tensor: in memory when it is small, else over a ``.npy`` file.

    Args:
        rows: how many rows will come.
        path: file to write, atomically, if it comes to that; None = a temporary file that vanishes with the tensor.
        memory_limit: bytes up to which the result stays in memory; 0 = always a file.
    """

    def __init__(self, rows: int, *, path: Path | None = None, memory_limit: float = MEMORY_LIMIT) -> None:
        self.rows, self.path, self.memory_limit = rows, path, memory_limit
        self.done = 0
        self._memory: Tensor | None = None
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, int] = (rows, 0)
        self._dtype: np.dtype[Any] | None = None

    def _open(self, block: Tensor) -> None:
        self._shape = (self.rows, block.shape[1])
        if self.rows * block.shape[1] * block.element_size() <= self.memory_limit:
            self._memory = torch.empty(self._shape, dtype=block.dtype)
            return
        if block.dtype == torch.bfloat16:
            raise DataError("bfloat16 has no .npy form; fuse in float16 or float32, or raise the memory limit")
        self._dtype = block[:0].cpu().numpy().dtype
        if self.path is None:
            self._file = tempfile.TemporaryFile(prefix="krossfuse-", suffix=".npy")  # noqa: SIM115 - closed by close()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("w+b")
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    @property
    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")

    def write(self, block: Tensor) -> None:
        """Append a block of rows, from any device."""
        if self._memory is None and self._file is None:
            self._open(block)
        if self._memory is not None:
            self._memory[self.done : self.done + len(block)] = block
        else:
            assert self._file is not None
            self._file.write(np.ascontiguousarray(block.detach().cpu().numpy()).data.cast("B"))
        self.done += len(block)

    def close(self) -> Tensor:
        """Return what was written, as a tensor (copy-on-write over the file where there is one)."""
        if self.done != self.rows:
            raise RuntimeError(f"{self.done} of {self.rows} rows were written")
        if self._memory is not None:
            return self._memory
        assert self._file is not None
        self._file.flush()
        offset = self._file.tell() - int(np.prod(self._shape)) * self._itemsize
        if self.path is not None:
            self._file.close()
            self._partial.replace(self.path)
            # Mode "c": torch wants writable memory; a private mapping never reaches the file.
            return torch.from_numpy(np.load(self.path, mmap_mode="c"))
        mapped = np.memmap(self._file, self._dtype, "c", offset, self._shape)  # type: ignore[call-overload]
        self._file.close()
        return torch.from_numpy(mapped)

    @property
    def _itemsize(self) -> int:
        assert self._dtype is not None
        return self._dtype.itemsize

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._memory = None
        if self._file is not None:
            self._file.close()
            if self.path is not None:
                self._partial.unlink(missing_ok=True)


@torch.no_grad()
def fuse_rows(
    method: FusionMethod,
    modality: Modality,
    features: Features,
    *,
    block_rows: int = BLOCK_ROWS,
    path: Path | str | None = None,
    memory_limit: float = MEMORY_LIMIT,
) -> Tensor:
    """Encode all rows, ``block_rows`` at a time, on the method's device.

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
        >>> from krossfuse.fusion.methods import PCAConcatenation
        >>> x = {"cross_modal": torch.randn(10, 4), "dino": torch.randn(10, 6)}
        >>> method = PCAConcatenation(inputs=InputSpec(cross_modal=4, image_experts={"dino": 6}), dim=3)
        >>> tuple(fuse_rows(method.fit(image=x), "image", x, block_rows=4).shape)
        (10, 3)
    """
    check_positive("block_rows", block_rows, integer=True)
    chosen = select_roles(method, modality, features)
    device = device_of(method)
    n = len(next(iter(chosen.values())))
    sink = RowSink(n, path=None if path is None else Path(path), memory_limit=memory_limit)
    try:
        for rows in blocks(n, block_rows):
            sink.write(method.encode(modality, {role: x[rows].to(device) for role, x in chosen.items()}))
        return sink.close()
    except BaseException:
        sink.abandon()
        raise


def fuse_to_file(
    method: FusionMethod, modality: Modality, features: Features, path: Path | str, *, block_rows: int = BLOCK_ROWS
) -> Tensor:
    """Encode all rows into the ``.npy`` file ``path``, one block in memory at a time; see :func:`fuse_rows`."""
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
    """Encode the parts of a bundle whose modality the method has.

    Args:
        method: fitted.
        bundle: stored features.
        parts: which; None = all that the method can encode.
        block_rows: rows a block.
        memory_limit: bytes up to which a part stays in memory.
        folder: where larger parts are written, as ``<split>.<modality>.npy``; None = temporary files.

    Raises:
        DataError: the features do not fit the method, or a part is not there.
    """
    fused = {}
    for part in encodable_parts(method, bundle, parts):
        path = part_path(folder, part)
        fused[part] = fuse_rows(
            method, part.modality, bundle[part], block_rows=block_rows, path=path, memory_limit=memory_limit
        )
    return fused


def encodable_parts(method: FusionMethod, bundle: FeatureBundle, parts: Iterable[Part] | None = None) -> list[Part]:
    """Return the parts to encode, after checking all of them: a misfit must not cost the work on the others."""
    chosen = list(parts) if parts is not None else [p for p in bundle.features if p.modality in method.modalities]
    for part in chosen:
        select_roles(method, part.modality, bundle[part], f"dataset {bundle.info.name!r}, {part}")
    return chosen


def part_path(folder: Path | str | None, part: Part) -> Path | None:
    """Return the ``.npy`` file of a part in ``folder``, or None without a folder."""
    return None if folder is None else Path(folder) / f"{part.split.replace('/', '.')}.{part.modality}.npy"


def fit_method(
    method: FusionMethod,
    bundle: FeatureBundle,
    *,
    label_set: str | None = None,
    max_rows: int | None = FIT_ROWS,
    seed: int = 0,
) -> FusionMethod:
    """Fit a method on the training split of a bundle.

    Images are the training images; texts are the training texts or, where the dataset has none, its class texts
    (prompts). Only a method that is ``trained`` is given labels, those of the side that has experts.

    Args:
        method: to fit, in place.
        bundle: stored features.
        label_set: labels for trained methods and for C by cross-validation.
        max_rows: a larger training split is represented by a random subset of this many rows (each modality its
            own draw); None = all rows. Trained methods always see all rows.
        seed: of that draw.

    Returns:
        ``method``.

    Raises:
        DataError: no training features, or a label set that is missing or has several labels an item.
    """
    if max_rows is not None:
        check_positive("max_rows", max_rows, integer=True)
    labelled: Modality = "text" if method.inputs.text_experts and not method.inputs.image_experts else "image"
    device = device_of(method)
    given: dict[Modality, Features] = {}
    labels: Tensor | None = None
    for modality in MODALITIES:
        features = _training_features(method, bundle, modality)
        if features is None:
            continue
        n = len(next(iter(features.values())))
        if method.trained and modality == labelled and label_set is not None:
            labels = _training_labels(bundle, label_set, modality, n)
        if not method.trained and max_rows is not None and n > max_rows:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randperm(n, generator=generator)[:max_rows].sort().values
            features = {role: x[rows] for role, x in features.items()}
        given[modality] = {role: x.to(device) for role, x in features.items()}
    if not given:
        raise DataError(f"dataset {bundle.info.name!r} has no training features to fit {type(method).__name__} on")
    method.fit(image=given.get("image"), text=given.get("text"), labels=labels)
    return method


def _training_features(method: FusionMethod, bundle: FeatureBundle, modality: Modality) -> Features | None:
    if modality not in method.modalities:
        return None
    part = Part(TRAIN, modality)
    if part in bundle:
        return select_roles(method, modality, bundle[part], f"dataset {bundle.info.name!r}, {part}")
    prompts = sorted(p for p in bundle.features if p.split.startswith("prompts/") and p.modality == modality)
    if not prompts:
        return None
    found = [select_roles(method, modality, bundle[p], f"dataset {bundle.info.name!r}, {p}") for p in prompts]
    return {role: torch.cat([features[role] for features in found]) for role in found[0]}


def _training_labels(bundle: FeatureBundle, label_set: str, modality: Modality, rows: int) -> Tensor | None:
    """Labels of the training rows; None where these are class texts of a dataset without training texts."""
    if label_set not in bundle.info.label_sets:
        raise DataError(
            f"dataset {bundle.info.name!r} has no label set {label_set!r}; it has {list(bundle.info.label_sets)}"
        )
    if Part(TRAIN, modality) not in bundle:
        return None
    if bundle.info.label_sets[label_set].multilabel:
        raise DataError(f"label set {label_set!r} has several labels an item; a fit with labels needs one an item")
    labels = bundle.info.labels(label_set, Part(TRAIN, modality))
    if len(labels) != rows:
        raise DataError(f"label set {label_set!r}: {len(labels)} labels but {rows} training {modality} features")
    return labels


def device_of(method: FusionMethod) -> torch.device:
    """Return the device of the method's buffers and parameters; the CPU when it has none."""
    for tensor in _tensors(method):
        return tensor.device
    return torch.device("cpu")


def _tensors(method: FusionMethod) -> Iterator[Tensor]:
    yield from method.buffers()
    yield from method.parameters()


KernelOfParts = Callable[[Part, Tensor, Part, Tensor], Tensor]


def kernel_of(method: FusionMethod, bundle: FeatureBundle) -> KernelOfParts | None:
    """Return the method's exact kernel between rows of two parts, ``kernel(part_a, rows_a, part_b, rows_b)``.

    Returns:
        What ``EmbeddingSpace.kernel`` holds; None where the method has no exact kernel.
    """
    device = device_of(method)

    def take(part: Part, rows: Tensor) -> Features:
        chosen = select_roles(method, part.modality, bundle[part], str(part))
        return {role: x[rows].to(device) for role, x in chosen.items()}

    def kernel(part_a: Part, rows_a: Tensor, part_b: Part, rows_b: Tensor) -> Tensor:
        values = method.kernel(part_a.modality, take(part_a, rows_a), part_b.modality, take(part_b, rows_b))
        assert values is not None
        return values

    first = next(p for p in bundle.features if p.modality in method.modalities)
    one = take(first, torch.zeros(1, dtype=torch.int64))
    return None if method.kernel(first.modality, one, first.modality, one) is None else kernel
