"""Writing a bundle as a file of embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.files import replacing
from krossfuse.core.labels import Prompts
from krossfuse.core.parts import Part
from krossfuse.features.embeddings.format import SUFFIXES
from krossfuse.features.embeddings.safetensors_file import DTYPES, write_safetensors


def save_embeddings(path: str | Path, bundle: FeatureBundle) -> None:
    """Write a bundle as a file of embeddings, block by block, and atomically.

    Args:
        path: ends in ``.safetensors`` or ``.npz``.
        bundle: the features; its roles become the encoders' names in the keys.

    Raises:
        ConfigError: another ending.
        DataError: labels of pairs of texts, a name with ``/``, or a dtype that the format does not have (bfloat16 in
            npz).
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"path={str(path)!r} must end in one of {list(SUFFIXES)}")
    info = bundle.info
    if info.compared:
        raise DataError(f"dataset {info.name!r} has labels of pairs of texts, which such a file cannot say")
    arrays: dict[str, Tensor] = {}
    for part, by_role in bundle.features.items():
        for role, tensor in by_role.items():
            if "/" in role:
                raise DataError(f"role {role!r} cannot be part of a key: it holds '/'")
            arrays[f"{part.split}/{part.modality}/{role}"] = tensor
    prompt_sets: dict[str, Prompts] = {}
    for name, label_set in info.label_sets.items():
        arrays.update({f"{split}/labels/{name}": labels for split, labels in label_set.labels.items()})
        for prompt_set, prompts in label_set.prompts.items():
            part = Part.prompts(name, prompt_set)
            if part in bundle:
                arrays[f"{part.split}/owner"] = prompts.owner
                prompt_sets[f"{name}/{prompt_set}"] = prompts
    arrays.update({f"{split}/caption_of": rows for split, rows in info.caption_of.items()})
    for key, tensor in arrays.items():
        if tensor.dtype not in DTYPES or (tensor.dtype == torch.bfloat16 and path.suffix == ".npz"):
            raise DataError(f"{key!r} is {tensor.dtype}, which {path.suffix} cannot hold here; convert it to float32")
    header = {
        "name": info.name,
        "pair": bundle.pair,
        "splits": sorted({part.split for part in bundle.features if not part.split.startswith("prompts/")}),
        "classes": {name: list(label_set.classes) for name, label_set in info.label_sets.items()},
        "texts": {key: list(prompts.texts) for key, prompts in prompt_sets.items()},
        "templates": {key: list(prompts.templates) for key, prompts in prompt_sets.items()},
        "encoders": {role: dict(record) for role, record in bundle.encoders.items()},
        "fingerprint": dict(info.fingerprint),
    }
    texts = {key: json.dumps(value) for key, value in header.items()}
    with replacing(path) as partial, partial.open("wb") as stream:
        if path.suffix == ".npz":
            contents = {key: tensor.numpy() for key, tensor in arrays.items()}
            np.savez(stream, **contents, **{key: np.array(text) for key, text in texts.items()})  # type: ignore[arg-type]
        else:
            write_safetensors(stream, arrays, texts)
