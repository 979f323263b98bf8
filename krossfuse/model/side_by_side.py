"""One query, answered by the fused embedding and by each of its parents alone, from the same items."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from krossfuse.core.errors import StoreError
from krossfuse.core.files import replacing
from krossfuse.core.parts import CROSS_MODAL, Modality
from krossfuse.features.embeddings.safetensors_file import read_safetensors, write_safetensors
from krossfuse.model.fused import Fused
from krossfuse.model.golden import TOLERANCE as GOLDEN
from krossfuse.model.search import Hit, Index

log = logging.getLogger(__name__)

FORMAT = "krossfuse-index-parents-1"
FUSED = "fused"
TOLERANCE = 1e-2
"""Of a fused row, relative to its norm: other devices and precisions round otherwise, another picture is far beyond."""


@dataclass(frozen=True)
class Column:
    """What one space found.

    Attributes:
        key: ``fused``, or the parent's role.
        title: for people.
        hits: the best first; None where it cannot answer.
        reason: why it cannot; empty where it can.
    """

    key: str
    title: str
    hits: list[Hit] | None
    reason: str = ""


def parents_of(
    model: Fused, index: Index, pictures: Sequence[Image.Image], path: Path, *, progress: bool = False
) -> dict[str, Tensor]:
    """Return by role the parents' own features (n, d) of an index's items; encoded once, and kept in a file.

    Args:
        model: that made the index.
        index: of the items.
        pictures: the items.
        path: of the file; where it cannot be written, they are encoded again the next time.
        progress: show a progress bar.

    Raises:
        StoreError: the pictures are not those that the index was made of; the message says how many.
        DataError: a picture cannot be read.
    """
    made_of = _digest(index)
    try:
        features, words = read_safetensors(path)
        if (words.get("format"), words.get("index")) == (FORMAT, made_of):
            return {role: features[role] for role in model.loaded("image")}
        log.info("%s is of another index; made again", path)
    except FileNotFoundError:
        pass
    except (SafetensorError, KeyError, OSError) as error:
        log.warning("%s cannot be used (%s); made again", path, error)
    features = model.encode_parents("image", pictures, progress=progress)
    _check_same(model.fuse("image", features), index)
    features = {role: x.float() for role, x in features.items()}
    try:
        with replacing(path) as partial, partial.open("wb") as stream:
            write_safetensors(stream, features, {"format": FORMAT, "index": made_of})
    except OSError as error:
        log.warning("the parents' features are not kept (%s): they are made again the next time", error)
    return features


def _digest(index: Index) -> str:
    sha = hashlib.sha256(json.dumps([index.model, list(index.names)]).encode())
    sha.update(index.features.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _check_same(fused: Tensor, index: Index) -> None:
    then, now = index.features.float(), fused.float().to(index.features.device)
    allowed = max(TOLERANCE, 3 * GOLDEN.get(index.features.dtype, 0.0))  # an index may be in half precision
    far = torch.linalg.vector_norm(then - now, dim=1) > allowed * torch.linalg.vector_norm(then, dim=1)
    if bool(far.any()):
        first = int(far.nonzero()[0])
        raise StoreError(
            f"{int(far.sum())} of {len(far)} pictures are not those that the index was made of, the first is "
            f"{index.names[first]!r}; make the index again: krossfuse index MODEL IMAGES -o FILE"
        )


class SideBySide:
    """Answers queries in the fused space and in each parent's.

    Args:
        model: encodes queries.
        index: the fused rows.
        parents: by role, the parents' own features of the same items, (n, d); see :func:`parents_of`.
        cosine: compare fused embeddings by cosine; False = by inner product, the fused kernel. Parents' features are
            always compared by cosine, as their makers do.
    """

    def __init__(self, model: Fused, index: Index, parents: Mapping[str, Tensor], *, cosine: bool = False) -> None:
        self.model, self.index, self.cosine = model, index, cosine
        names = {role: encoder.name for role, encoder in model.pair.every().items()}
        self.titles = {
            **{role: f"{_kind(role, parents)}: {names[role]}" for role in parents},
            FUSED: f"Fused: {type(model.fusion).__name__}",
        }
        self.parents = {role: Index(x, index.names, index.model) for role, x in parents.items()}

    def text(self, text: str, k: int) -> list[Column]:
        """Return what each space finds for a text; a parent that reads none says so.

        Raises:
            ConfigError: the fusion has no text side.
            DataError: the text cannot be encoded.
        """
        return self._find("text", text, k)

    def image(self, image: Image.Image, k: int) -> list[Column]:
        """Return what each space finds for an image.

        Raises:
            DataError: the image cannot be encoded.
        """
        return self._find("image", image, k)

    def _find(self, modality: Modality, item: str | Image.Image, k: int) -> list[Column]:
        self.model.check_modality(modality)
        features = self.model.encode_parents(modality, item)
        fused = self.model.fuse(modality, features)
        columns = []
        for role, index in self.parents.items():
            if role in features:
                hits = index.nearest(features[role][0], k, cosine=True)
                columns.append(Column(role, self.titles[role], hits))
            else:
                reason = f"This expert sees images only: it reads no {modality}."
                columns.append(Column(role, self.titles[role], None, reason))
        columns.append(Column(FUSED, self.titles[FUSED], self.index.nearest(fused[0], k, cosine=self.cosine)))
        return columns


def _kind(role: str, parents: Mapping[str, Tensor]) -> str:
    if role == CROSS_MODAL:
        return "CLIP"
    return "Expert" if len(set(parents) - {CROSS_MODAL}) == 1 else f"Expert {role}"
