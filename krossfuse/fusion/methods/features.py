"""Unit features of the parents, and the sides that have experts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.fusion.base import Features, InputSpec
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.rows import check_features, of_role


def cross_modal_role(inputs: InputSpec) -> dict[str, int]:
    """Return the cross-modal encoder's role with its dimension, where there is one."""
    return {} if inputs.cross_modal is None else {CROSS_MODAL: inputs.cross_modal}


def sides_with_experts(inputs: InputSpec) -> list[Modality]:
    """Return the modalities that have experts."""
    return [modality for modality in MODALITIES if inputs.experts(modality)]


def unit_features(features: Features, roles: Mapping[str, int], like: Tensor) -> dict[str, Tensor]:
    """Return the features of ``roles`` scaled to unit length, in the precision and on the device of ``like``.

    Raises:
        DataError: a role is missing, no tensor of floating-point numbers, has another dimension, or holds NaN,
            infinity or a zero vector.
    """
    units: dict[str, Tensor] = {}
    for role, dim in roles.items():
        if role not in features:
            raise DataError(f"features of {role!r} are missing; there are {sorted(features)}")
        check_features(role, features[role], dim)
        with of_role(role):
            units[role] = CosineKernel(dim)(features[role].to(like))
    return units


def fit_sides(inputs: InputSpec, image: Features | None, text: Features | None) -> dict[Modality, Features]:
    """Return the given features of the sides that have experts.

    Raises:
        DataError: a side with experts was not given.
    """
    given: dict[Modality, Features] = {}
    for modality, features in (("image", image), ("text", text)):
        if not inputs.experts(modality):  # type: ignore[arg-type]
            continue
        if not features:
            raise DataError(f"fit() needs {modality} features: the {modality} side has experts")
        given[modality] = features  # type: ignore[index]
    return given
