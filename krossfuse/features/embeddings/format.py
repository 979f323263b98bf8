"""Reading a file of embeddings, whichever of the two formats it is in: arrays by key, and a header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from krossfuse.core.errors import DataError, did_you_mean
from krossfuse.core.files import check_regular
from krossfuse.features.embeddings.npz import read_npz
from krossfuse.features.embeddings.safetensors_file import read_safetensors

SUFFIXES = (".safetensors", ".npz")
TEXTS = ("name", "pair")
JSON = ("classes", "splits", "texts", "templates", "encoders", "fingerprint")
"""What the header may hold: plain texts, and JSON."""


def read_arrays(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Map the arrays of a file.

    Args:
        path: the file.
        where: what messages call it.

    Returns:
        The arrays by key, and the header: texts, and JSON decoded.

    Raises:
        DataError: no such file, a damaged one, or a header that cannot be understood.
    """
    try:
        check_regular(path)
    except FileNotFoundError:
        raise DataError(f"{where}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error}") from None
    try:
        arrays, texts = read_safetensors(path) if path.suffix == ".safetensors" else read_npz(path, where)
    except DataError:
        raise
    except Exception as error:  # SafetensorError, BadZipFile, struct.error, ValueError, ...: damaged in some way
        raise DataError(f"{where} cannot be read ({type(error).__name__}: {error}); is it complete?") from error
    header: dict[str, Any] = {}
    for key, text in texts.items():
        if key in TEXTS:
            header[key] = _plain_text(text)
        elif key in JSON:
            try:
                header[key] = json.loads(text) if isinstance(text, str) else text
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: {key!r} in the header is not JSON ({error}): {text[:60]!r}; write it by json.dumps(...)"
                ) from error
        elif "labels" in key.split("/"):
            some = ", ".join(map(repr, list(text)[:3])) if isinstance(text, list) else repr(text)
            raise DataError(
                f"{where}: key {key!r} holds texts ({some}, ...), and labels are whole numbers; write "
                f"classes, numbers = np.unique(labels, return_inverse=True), then 'classes': classes, {key!r}: numbers"
            )
        elif path.suffix == ".npz":
            raise DataError(
                f"{where}: unknown array of texts {key!r}{did_you_mean(key, ['classes'])}; the only ones are "
                f"{['classes', *TEXTS]}"
            )
    if not isinstance(header.get("classes", []), list | dict):
        raise DataError(f"{where}: 'classes' must be a list of names, or a mapping of label set to list")
    return arrays, header


def _plain_text(text: Any) -> str:
    """Return a text as it stands, or as it was before ``json.dumps``."""
    try:
        decoded = json.loads(text)
    except (TypeError, ValueError):
        decoded = text
    return decoded if isinstance(decoded, str) else str(text)
