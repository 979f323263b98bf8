"""Where weights come from: a local file or folder, the Hugging Face cache, or the hub; and their digest."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from krossfuse.core.errors import ConfigError
from krossfuse.encoders.base import EncoderModule

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_KEPT = (".safetensors", ".bin", ".json", ".txt", ".model")


def local_or_hub(source: str, revision: str | None, *, needs: Sequence[Sequence[str]]) -> Path:
    """Return the folder that holds a model: ``source`` itself, its snapshot in the cache, or else a download.

    What lies in the cache is used without asking the hub.

    Args:
        source: a local folder, or ``owner/name`` on the Hugging Face hub.
        revision: branch, tag or commit on the hub; None = ``main``.
        needs: groups of file patterns; the folder must have a file of each group.

    Raises:
        ConfigError: no such folder, a file is missing, or the hub cannot give it; the message names the way out.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        lacking = _lacking(folder, needs)
        if lacking:
            raise ConfigError(f"model folder {source!r} has none of the files {list(lacking)}")
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise ConfigError(f"model={source!r} is neither a folder here nor a name OWNER/NAME on the Hugging Face hub")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
        if _lacking(folder, needs) is None:
            return folder
    except (OSError, ValueError):
        pass  # not in the cache
    try:
        # Pickled weights only where there are no others.
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model"]
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
        if _lacking(folder, [WEIGHTS]) is not None:
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=["pytorch_model*.bin"]))
    except Exception as error:  # requests, the hub's own errors, no network, no such revision, ...
        raise ConfigError(
            f"cannot get model {source!r} (revision {revision or 'main'}) from the Hugging Face hub: "
            f"{type(error).__name__}: {error}. Without a network, put the model's folder on this machine and give its "
            "path as model=..., or set HF_HOME to a cache that has it"
        ) from error
    lacking = _lacking(folder, needs)
    if lacking:
        raise ConfigError(f"model {source!r} on the Hugging Face hub has none of the files {list(lacking)}")
    return folder


def _lacking(folder: Path, needs: Sequence[Sequence[str]]) -> Sequence[str] | None:
    """Return the first group of ``needs`` of which the folder has no file."""
    for index in folder.rglob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        absent = sorted(shard for shard in shards if not (index.parent / shard).is_file())
        if absent:
            return absent
    return next((group for group in needs if not any(any(folder.rglob(pattern)) for pattern in group)), None)


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a weights file; of a folder, that of its weights, configuration and tokenizer files."""
    if path.is_file():
        stat = path.stat()
        return _file_digest(path, stat.st_size, stat.st_mtime_ns)
    files = [file for file in sorted(path.rglob("*")) if file.suffix in _KEPT and file.is_file()]
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if file.suffix != ".bin"]
    digests = [f"{file.relative_to(path).as_posix()} {weights_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    # The hub's cache names a large file by its SHA-256.
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file, or an empty one where there is no file."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def output_dim(module: EncoderModule, modality: str) -> int:
    """Return the width of what a module gives, by encoding one blank input."""
    with torch.inference_mode():
        if modality == "text":
            return int(module.encode_text(module.prepare_text(["a"])).shape[1])
        return int(module.encode_image(module.prepare_image(Image.new("RGB", (32, 32)))[None]).shape[1])


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool token vectors.

    Args:
        hidden: (batch, tokens, dim), right-padded.
        mask: (batch, tokens), 1 where there is a token.
        pooling: ``mean`` of the tokens, the first (``cls``), or the ``last``.

    Returns:
        (batch, dim).
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def copy_safetensors(path: Path, folder: Path) -> Path:
    """Copy a weights file into a folder, and return the copy.

    Raises:
        ConfigError: it is not in the format of safetensors.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"weights {str(path)!r} are no safetensors, and only those are copied into a folder that others load; "
            "convert them (safetensors.torch.save_file), or save without weights=True"
        )
    return Path(shutil.copyfile(path, folder / path.name))


def copy_model(source: Path, folder: Path) -> Path:
    """Copy a model's folder, its safetensors, configuration and tokenizer, and return ``folder``.

    Raises:
        ConfigError: its weights are not in the format of safetensors.
    """
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and file.suffix in _KEPT]
    if not any(file.suffix == ".safetensors" for file in files):
        raise ConfigError(
            f"model folder {str(source)!r} has no safetensors, and only those are copied into a folder that others "
            "load; convert them (model.save_pretrained), or save without weights=True"
        )
    for file in [*files, *source.glob("README.md")]:
        if file.suffix != ".bin":
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return folder


def licence_of(folder: Path) -> str:
    """Return the licence that a model folder's card names, or an empty text."""
    card = folder / "README.md"
    found = (
        re.search(r"^license:\s*(\S.*)$", card.read_text("utf-8", "replace")[:4096], re.M) if card.is_file() else None
    )
    return found[1].strip().strip("'\"") if found else ""
