"""Search: the embeddings of many items in one file, and the nearest of them to a text or an image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, StoreError, check_positive
from krossfuse.core.files import replacing
from krossfuse.core.unit import normalised
from krossfuse.features.embeddings.safetensors_file import write_safetensors
from krossfuse.model.fused import Fused
from krossfuse.model.precision import name_of

FORMAT = "krossfuse-index-1"


@dataclass(frozen=True)
class Hit:
    """One result: its place, from 1; the item's row in the index and name; and its similarity to the query."""

    rank: int
    row: int
    name: str
    score: float


@dataclass(frozen=True)
class Index:
    """Embeddings that can be searched.

    Attributes:
        features: (n, dim), as the model gave them, in the precision in which it computed.
        names: of the rows.
        model: digest of the model that made them.
        about: what else is known: ``kind`` of the items, their ``root``, the ``folder`` of the model, its
            ``precision``.
    """

    features: Tensor
    names: Sequence[str]
    model: str
    about: Mapping[str, str] = field(default_factory=dict)

    def check_model(self, model: Fused) -> None:
        """Check that a model made this index.

        Raises:
            ConfigError: another one did.
        """
        if model.digest != self.model:
            raise ConfigError(
                f"the index was made with another model: with {self.model[:12]}, and this one is {model.digest[:12]}; "
                "embeddings of different models have no similarity. Search with that one, or make the index again"
            )

    def nearest(self, query: Tensor, k: int = 10, *, cosine: bool = False) -> list[Hit]:
        """Return the k items that are most similar to a query, the best first; of equals the earlier row.

        Args:
            query: (dim,) embedding, as the model gave it.
            k: how many; fewer where the index has fewer.
            cosine: by cosine; False = by inner product, the fused kernel.

        Raises:
            ConfigError: k is not positive.
        """
        check_positive("k", k, integer=True)
        rows, q = self._rows, query.detach().flatten().to(self._rows)
        if cosine:
            rows, q = self._unit, normalised(q)
        scores = rows @ q
        best = scores.sort(descending=True, stable=True).indices[:k].tolist()
        return [Hit(rank, row, self.names[row], float(scores[row])) for rank, row in enumerate(best, start=1)]

    @property
    def _rows(self) -> Tensor:
        """The features as they are compared: in float32 where they are kept in less."""
        if "rows" not in self.__dict__:
            half = self.features.element_size() < torch.float32.itemsize
            self.__dict__["rows"] = self.features.float() if half else self.features
        rows: Tensor = self.__dict__["rows"]
        return rows

    @property
    def _unit(self) -> Tensor:
        if "unit" not in self.__dict__:
            self.__dict__["unit"] = normalised(self._rows)
        unit: Tensor = self.__dict__["unit"]
        return unit


def make_index(
    model: Fused, items: Any, names: Sequence[str], *, progress: bool = False, about: Mapping[str, str] | None = None
) -> Index:
    """Return the index of images.

    Args:
        model: encodes them.
        items: as :meth:`~krossfuse.model.encoder.FusedEncoder.encode_image` takes them.
        names: of the items.
        progress: show a progress bar.
        about: see :class:`Index`.
    """
    features = model.encode_image(items, progress=progress).cpu()
    return Index(features, list(names), model.digest, {**(about or {}), "precision": name_of(features.dtype)})


def save_index(index: Index, path: Path) -> None:
    """Write an index to one safetensors file, whole or not at all."""
    words = {"format": FORMAT, "names": json.dumps(list(index.names)), "model": index.model}
    words["about"] = json.dumps(dict(index.about))
    with replacing(path) as partial, partial.open("wb") as stream:
        write_safetensors(stream, {"features": index.features}, words)


def load_index(path: Path) -> Index:
    """Read an index.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise StoreError(f"there is no index {str(path)!r}; krossfuse index MODEL IMAGES -o FILE makes one")
    try:
        with safe_open(path, "pt") as file:
            words = dict(file.metadata() or {})
            features = file.get_tensor("features") if words.get("format") == FORMAT else torch.empty(0)
        if words.get("format") != FORMAT:
            raise StoreError(f"{str(path)!r} is no index: it holds {words.get('format', 'no format')!r}, expected "
                             f"{FORMAT!r}; krossfuse index makes one")  # fmt: skip
        names, about = json.loads(words["names"]), json.loads(words["about"])
        if features.ndim != 2 or len(names) != len(features):
            raise ValueError(f"{len(names)} names for features of shape {tuple(features.shape)}")
        return Index(features, names, words["model"], about)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StoreError(f"index {str(path)!r} is damaged ({error}); make it again") from None
