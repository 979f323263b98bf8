"""Encoders by reference: their class and arguments as JSON, and encoders made from it again.

Only classes of this package's ``encoders`` room are built, registered ones (:func:`krossfuse.core.classes.register`)
and those of modules that the user names (:mod:`krossfuse.core.classes`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from krossfuse.core.classes import REGISTERED, check_allowed, check_found_again, defined_class, path_of
from krossfuse.core.errors import ConfigError
from krossfuse.core.parts import Modality
from krossfuse.core.plugins import plugin_modules
from krossfuse.encoders.base import Encoder

TARGET = "_target_"
FOLDER = "${folder}"
"""Stands in arguments for the folder that the description lies in."""

_HOME = "krossfuse.encoders."


def describe_encoder(encoder: Encoder, *, copied: Mapping[str, Any] | None = None, folder: Path | None = None) -> Any:
    """Return the JSON-able form of an encoder: ``_target_`` and its arguments.

    Args:
        encoder: a description; no weights are loaded.
        copied: arguments that its copy has instead (:meth:`Encoder.copy_weights`).
        folder: that the description will lie in; paths below it are written relative to it.

    Raises:
        ConfigError: an argument cannot be written as JSON, or no other process could find the class.
    """
    cls = type(encoder)
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"{path_of(cls)} does not derive from krossfuse.encoders.base.Encoder, so it does not know its arguments "
            "and cannot be saved"
        )
    check_found_again(cls, "krossfuse.core.classes.register")
    arguments = {**encoder.arguments, **(copied or {})}
    return {TARGET: path_of(cls), **{name: _plain(value, cls, name, folder) for name, value in arguments.items()}}


def build_encoder(config: Any, *, folder: Path | None = None, plugins: Iterable[str] = ()) -> Encoder:
    """Make the encoder that :func:`describe_encoder` described; it loads nothing yet.

    Args:
        config: the description.
        folder: that it lies in.
        plugins: modules whose classes may be built, beside those of ``KROSSFUSE_PLUGINS``.

    Raises:
        ConfigError: a class that may not be built, impossible arguments, a file that is not there, or a path that
            leads out of the folder.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get(TARGET), str):
        raise ConfigError(f"an encoder's description is a mapping with {TARGET!r}, got {str(config)[:80]}")
    path = config[TARGET]
    cls = REGISTERED.get(path)
    if cls is None:
        check_allowed(path, _HOME, plugin_modules(plugins), "from_pretrained(..., plugins=[{}])")
        cls = defined_class(path, Encoder, "encoder")
    arguments = {name: _placed(value, folder) for name, value in config.items() if name != TARGET}
    try:
        encoder = cls(**arguments)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(encoder, Encoder):
        raise ConfigError(f"{path!r} is no encoder")
    return encoder


def _plain(value: Any, cls: type, name: str, folder: Path | None) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value if folder is None else value.replace(str(folder), FOLDER)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, cls, name, folder) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, cls, name, folder) for v in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ConfigError(
        f"{path_of(cls)}: its argument {name}={value!r} ({type(value).__name__}) cannot be written as JSON; an encoder "
        "that is saved takes texts, numbers, lists and mappings"
    )


def _placed(value: Any, folder: Path | None) -> Any:
    if isinstance(value, Mapping):
        return {k: _placed(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_placed(v, folder) for v in value]
    if isinstance(value, str) and FOLDER in value:
        if folder is None or ".." in PurePath(value.partition(FOLDER)[2]).parts:
            raise ConfigError(f"the path {value!r} leads out of the model's folder")
        return value.replace(FOLDER, str(folder))
    return value


def fingerprints_of(encoder: Encoder, modalities: Iterable[Modality]) -> dict[str, dict[str, Any]]:
    """Return by modality the fingerprint of an encoder, as JSON has it."""
    made = {m: dict(encoder.fingerprint(m)) for m in encoder.modalities if m in modalities}
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(made, sort_keys=True, default=str))
    return plain
