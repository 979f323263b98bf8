"""Matrices behind the pictures of one run: kernels of a class-balanced sample, and image-text similarities.

Pure functions of tensors; ``kernels.npz`` of a run folder holds the result, a few hundred kilobytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krossfuse.core.errors import DataError, check_positive
from krossfuse.results.arrays import load_arrays, save_arrays
from krossfuse.results.errors import ResultsError

NAME = "kernels"
MAX_ITEMS = 300

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class KernelSnapshot:
    """Matrices of one run, rows ordered by class.

    Attributes:
        labels: (n,) int64, the class of each item, ascending.
        classes: class names by label value.
        label_set: whose labels these are.
        kernels: by name, (n, n): ``cross_modal``; each expert by its name; their ``sum`` (divided by the number of
            parents, so that it stays in [-1, 1]) and ``product``; and ``fused``, the inner products of the fused
            embedding over their mean diagonal.
        similarities: by name (``cross_modal``, ``fused``), (n, m) similarities of the items to m texts. Fused ones
            are inner products over the texts' mean squared norm, which is k_ψ exactly under exact alignment.
        matches: (n, m) bool, whether a text describes an item; empty where there are no texts.
        about: what the run was, JSON-able (method's description, seed).
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    label_set: str
    kernels: Mapping[str, Matrix]
    similarities: Mapping[str, Matrix] = field(default_factory=dict)
    matches: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def boundaries(self) -> NDArray[np.int64]:
        """First row of each class present but the first."""
        return np.flatnonzero(np.diff(self.labels)) + 1


def balanced_rows(labels: Tensor, max_items: int, *, seed: int = 0) -> Tensor:
    """Draw rows with equally many of each class where they are, ordered by class and then by row.

    Args:
        labels: (n,) int64; rows with -1 are left out.
        max_items: at most so many rows, :data:`MAX_ITEMS` or less; of more classes than that, the first stay.
        seed: of the draw.

    Returns:
        row numbers, int64.

    Raises:
        DataError: no row has a label.

    >>> balanced_rows(torch.tensor([1, 0, 1, 1, -1, 0]), 4, seed=0).shape
    torch.Size([4])
    """
    check_positive("max_items", max_items, integer=True)
    present = sorted(set(labels[labels >= 0].tolist()))
    if not present:
        raise DataError("no item has a label, so there is nothing to draw by class")
    limit = min(max_items, MAX_ITEMS)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = [order[labels[order] == label] for label in present]
    taken = [0] * len(shuffled)
    left = limit
    # Round by round, one of every class that has one left, so that small classes do not cost the others' share.
    while left:
        growing = [i for i, rows in enumerate(shuffled) if taken[i] < len(rows)][:left]
        if not growing:
            break
        for i in growing:
            taken[i] += 1
        left -= len(growing)
    return torch.cat([rows[:count].sort().values for rows, count in zip(shuffled, taken, strict=True)])


def cosine_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the (len(a), len(b)) cosine similarities of rows."""
    return torch.nn.functional.normalize(a.double(), dim=1) @ torch.nn.functional.normalize(b.double(), dim=1).T


def make_snapshot(
    labels: Tensor,
    classes: Sequence[str],
    *,
    cross_modal: Tensor | None = None,
    experts: Mapping[str, Tensor] | None = None,
    fused: Tensor | None = None,
    text_cross_modal: Tensor | None = None,
    text_fused: Tensor | None = None,
    text_of: Tensor | None = None,
    kernel: Callable[[Tensor, Tensor], Tensor] = cosine_kernel,
    label_set: str = "",
    about: Mapping[str, Any] | None = None,
) -> KernelSnapshot:
    """Compute the matrices of a sample of items (see :func:`balanced_rows`), all given in the same order.

    Args:
        labels: (n,) int64.
        classes: names by label value.
        cross_modal: (n, d_ψ) features.
        experts: by name, (n, d_γ) features.
        fused: (n, l) fused embeddings.
        text_cross_modal: (m, d_ψ) features of texts.
        text_fused: (m, l) fused embeddings of the same texts.
        text_of: (m,) int64, the item of the sample that each text describes.
        kernel: of the parents, two feature matrices in, the Gram matrix out.
        label_set: name, for titles.
        about: what the run was.

    Raises:
        DataError: the numbers of rows differ, or texts come without ``text_of``.
    """
    n = len(labels)
    parents = ({} if cross_modal is None else {"cross_modal": cross_modal}) | dict(experts or {})
    for name, features in {**parents, **({} if fused is None else {"fused": fused})}.items():
        if len(features) != n:
            raise DataError(f"{name} has {len(features)} rows for {n} labels")
    order = torch.argsort(labels, stable=True)
    grams = {name: kernel(features[order], features[order]) for name, features in parents.items()}
    if len(grams) > 1:
        stacked = torch.stack(list(grams.values()))
        grams |= {"sum": stacked.mean(dim=0), "product": stacked.prod(dim=0)}
    if fused is not None:
        gram = fused[order].double() @ fused[order].double().T
        grams["fused"] = gram / gram.diagonal().mean()
    similarities: dict[str, Tensor] = {}
    matches = torch.zeros((0, 0), dtype=torch.bool)
    texts = {"cross_modal": text_cross_modal, "fused": text_fused}
    if text_of is None and any(text is not None for text in texts.values()):
        raise DataError("texts need text_of, the item that each of them describes")
    if text_of is not None:
        for name, text in texts.items():
            if text is not None and len(text) != len(text_of):
                raise DataError(f"{name} has {len(text)} texts for {len(text_of)} of text_of")
        if cross_modal is not None and text_cross_modal is not None:
            similarities["cross_modal"] = cosine_kernel(cross_modal[order], text_cross_modal)
        if fused is not None and text_fused is not None:
            wide = text_fused.double()
            similarities["fused"] = fused[order].double() @ wide.T / wide.square().sum(dim=1).mean()
        matches = order[:, None] == text_of[None, :]
    return KernelSnapshot(
        labels=labels[order].numpy(),
        classes=tuple(classes),
        label_set=label_set,
        kernels={name: gram.float().numpy() for name, gram in grams.items()},
        similarities={name: s.float().numpy() for name, s in similarities.items()},
        matches=matches.numpy(),
        about=dict(about or {}),
    )


def save_snapshot(snapshot: KernelSnapshot, folder: str | Path) -> Path:
    """Write ``kernels.npz`` into a run folder (matrices as float16) and return its path."""
    arrays: dict[str, NDArray[Any]] = {
        "labels": snapshot.labels,
        "matches": snapshot.matches,
        "meta": np.array(
            json.dumps({"classes": snapshot.classes, "label_set": snapshot.label_set, "about": snapshot.about})
        ),
    }
    for group, matrices in (("kernel", snapshot.kernels), ("similarity", snapshot.similarities)):
        arrays |= {f"{group}/{name}": matrix.astype(np.float16) for name, matrix in matrices.items()}
    path = Path(folder) / f"{NAME}.npz"
    save_arrays(path, arrays)
    return path


def load_snapshot(folder: str | Path) -> KernelSnapshot | None:
    """Read a run folder's ``kernels.npz``; None where it has none.

    Raises:
        ResultsError: the file is damaged.
    """
    path = Path(folder) / f"{NAME}.npz"
    if not path.is_file():
        return None
    arrays = load_arrays(path)
    try:
        meta = json.loads(str(arrays["meta"]))
        return KernelSnapshot(
            labels=arrays["labels"],
            classes=tuple(meta["classes"]),
            label_set=meta["label_set"],
            kernels=_group(arrays, "kernel/"),
            similarities=_group(arrays, "similarity/"),
            matches=arrays["matches"],
            about=meta["about"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is damaged ({error!r}); run its job again") from None


def _group(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, Matrix]:
    return {
        name.removeprefix(prefix): array.astype(np.float32) for name, array in arrays.items() if name.startswith(prefix)
    }
