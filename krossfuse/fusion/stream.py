"""Which features of a dataset a method reads, checked before any work, and its exact kernel between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import CROSS_MODAL, Modality, Part
from krossfuse.fusion.base import Features, FusionMethod, InputSpec


def roles_of(inputs: InputSpec, modality: Modality) -> dict[str, int]:
    """Return, by role, the dimension of the features that one modality brings; the cross-modal encoder first."""
    cross = {} if inputs.cross_modal is None else {CROSS_MODAL: inputs.cross_modal}
    return {**cross, **inputs.experts(modality)}


def check_encoders(method: FusionMethod, dims: Mapping[str, int]) -> None:
    """Check that loaded encoders are parents of a method.

    Args:
        method: that reads their features.
        dims: by role, their dimensions.

    Raises:
        ConfigError: an encoder has a role that the method does not read, or another dimension than it expects.
    """
    wanted = {**roles_of(method.inputs, "image"), **roles_of(method.inputs, "text")}
    for role, dim in dims.items():
        if role not in wanted:
            raise ConfigError(f"no parent of the fusion has the role {role!r}; its parents are {list(wanted)}")
        if dim != wanted[role]:
            raise ConfigError(f"the encoder of role {role!r} has {dim} dimensions, the fusion expects {wanted[role]}")


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


def part_path(folder: Path | str | None, part: Part) -> Path | None:
    """Return the ``.npy`` file of a part in ``folder``, or None without a folder."""
    return None if folder is None else Path(folder) / f"{part.split.replace('/', '.')}.{part.modality}.npy"


def device_of(method: FusionMethod) -> torch.device:
    """Return the device of the method's buffers and parameters; the CPU when it has none."""
    tensor = next(chain(method.buffers(), method.parameters()), None)
    return torch.device("cpu") if tensor is None else tensor.device


KernelOfParts = Callable[[Part, Tensor, Part, Tensor], Tensor]


def kernel_of(
    method: FusionMethod, bundle: FeatureBundle, device: Callable[[], torch.device] | None = None
) -> KernelOfParts | None:
    """Return the method's exact kernel between rows of two parts, ``kernel(part_a, rows_a, part_b, rows_b)``.

    Args:
        method: the method, which stays where it is.
        bundle: whose rows.
        device: gives, when the kernel is first asked for, the device to compute it on; None = the method's. What comes
            back is where the method is.

    Returns:
        What ``EmbeddingSpace.kernel`` holds; None where the method has no exact kernel.
    """
    home = device_of(method)

    @cache
    def placed() -> FusionMethod:
        there = home if device is None else device()
        return method if there == home else copy.deepcopy(method).to(there)

    def take(part: Part, rows: Tensor) -> Features:
        chosen = select_roles(method, part.modality, bundle[part], str(part))
        there = device_of(placed())
        return {role: x[rows].to(there) for role, x in chosen.items()}

    def kernel(part_a: Part, rows_a: Tensor, part_b: Part, rows_b: Tensor) -> Tensor:
        values = placed().kernel(part_a.modality, take(part_a, rows_a), part_b.modality, take(part_b, rows_b))
        assert values is not None
        return values.to(home)

    return kernel if method.has_kernel else None
