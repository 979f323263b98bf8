"""Reading a file of embeddings, whichever of the two formats it is in: arrays by key, and a header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
            header[key] = _plain_text(key, text, where)
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
        elif {"image", "text"} & set(key.split("/")):
            raise DataError(f"{where}: key {key!r} holds texts, and features are (rows, dim) floats")
        elif path.suffix == ".npz":
            raise DataError(
                f"{where}: unknown array of texts {key!r}{did_you_mean(key, ['classes'])}; the only ones are "
                f"{['classes', *TEXTS]}"
            )
    _check_header(header, where)
    return arrays, header


def _check_header(header: Mapping[str, Any], where: str) -> None:
    def lists(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(of_key, list) for of_key in value.values())

    def mappings(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(of_key, dict) for of_key in value.values())

    of_names = "a mapping of 'LABEL SET/PROMPT SET' to list of texts"
    wanted: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "classes": (
            "a list of names, or a mapping of label set to list",
            lambda value: isinstance(value, list) or lists(value),
        ),
        "splits": (
            "a list of names",
            lambda value: isinstance(value, list) and all(isinstance(split, str) for split in value),
        ),
        "texts": (of_names, lists),
        "templates": (of_names, lists),
        "encoders": ("a mapping of encoder to what is known of it, a mapping", mappings),
        "fingerprint": ("a mapping", lambda value: isinstance(value, dict)),
    }
    for key, (what, is_so) in wanted.items():
        if key in header and not is_so(header[key]):
            raise DataError(f"{where}: {key!r} in the header must be {what}, got {str(header[key])[:60]}")


def _plain_text(key: str, text: Any, where: str) -> str:
    """Return a text as it stands, or as it was before ``json.dumps``."""
    try:
        decoded = json.loads(text)
    except (TypeError, ValueError):
        decoded = text
    if isinstance(decoded, list | dict):
        raise DataError(f"{where}: {key!r} in the header must be one text, got {str(text)[:60]}")
    return decoded if isinstance(decoded, str) else str(text)
