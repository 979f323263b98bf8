"""Fit a method on the training split of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import DataError, check_positive
from krossfuse.core.parts import MODALITIES, TRAIN, Modality, Part
from krossfuse.fusion.base import Features, FusionMethod
from krossfuse.fusion.rows import RowError, located
from krossfuse.fusion.stream import device_of, select_roles

FIT_ROWS = 50_000
"""Rows of the training split that a label-free fit sees at most."""


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
    every = training_parts(method, {part: len(next(iter(x.values()))) for part, x in bundle.features.items()})
    for modality, parts in every.items():
        features = _training_features(method, bundle, parts)
        n = len(next(iter(features.values())))
        if method.trained and modality == labelled and label_set is not None:
            labels = _training_labels(bundle, label_set, modality, n)
        rows = None if method.trained else subset(n, max_rows, seed)
        if rows is not None:
            features = {role: x[rows] for role, x in features.items()}
        given[modality] = {role: x.to(device) for role, x in features.items()}
    if not given:
        raise DataError(f"dataset {bundle.info.name!r} has no training features to fit {type(method).__name__} on")
    try:
        method.fit(image=given.get("image"), text=given.get("text"), labels=labels)
    except RowError as error:
        # Which part's rows they are, and where, is looked up only now that there are any.
        role = error.role or ""
        for part in (part for parts in every.values() for part in parts if role in bundle[part]):
            of_part = located(error, f"dataset {bundle.info.name!r}, {part}", bundle[part][role])
            if of_part is not None:
                raise of_part from None
        raise
    return method


def check_fit(method: FusionMethod, sizes: Mapping[Part, int], *, max_rows: int | None = FIT_ROWS) -> None:
    """Check, from the numbers of items alone, that a dataset has enough of them to fit a method on.

    Args:
        method: not fitted.
        sizes: by part, the number of items (:func:`~krossfuse.fusion.batches.sizes_of`).
        max_rows: as :func:`fit_method` will be given.

    Raises:
        DataError: too few; the message says how many it takes.
    """
    rows: dict[Modality, int] = {}
    for modality, parts in training_parts(method, sizes).items():
        n = sum(sizes[part] for part in parts)
        rows[modality] = n if method.trained or max_rows is None else min(n, max_rows)
    method.check_rows(rows)


def training_parts(method: FusionMethod, parts: Iterable[Part]) -> dict[Modality, list[Part]]:
    """Return the parts that a fit sees: of each modality the training split, or the class texts where it has none."""
    have, chosen = set(parts), {}
    for modality in method.modalities:
        prompts = sorted(p for p in have if p.split.startswith("prompts/") and p.modality == modality)
        chosen[modality] = [Part(TRAIN, modality)] if Part(TRAIN, modality) in have else prompts
    return {modality: chosen[modality] for modality in MODALITIES if chosen.get(modality)}


def subset(n: int, max_rows: int | None, seed: int) -> Tensor | None:
    """Return the random rows, ascending, that stand for ``n``; None = all of them."""
    if max_rows is None or n <= max_rows:
        return None
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:max_rows].sort().values


def _training_features(method: FusionMethod, bundle: FeatureBundle, parts: list[Part]) -> Features:
    of = [select_roles(method, p.modality, bundle[p], f"dataset {bundle.info.name!r}, {p}") for p in parts]
    return of[0] if len(of) == 1 else {role: torch.cat([features[role] for features in of]) for role in of[0]}


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
