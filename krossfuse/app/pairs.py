"""Pairs that are composed by name: ``pair=clip_b32+dinov2_b14+e5_large``, of the options of group ``encoder``.

The names are those of files ``encoder/NAME.yaml`` in the package's configuration and in the user's. Which place in the
pair an encoder takes follows from what it encodes (``about.encodes`` in its file): the one of both modalities is the
cross-modal encoder, the others are experts, each under its name. ``NAME.image`` and ``NAME.text`` make a cross-modal
encoder an expert of one modality. A name alone is a pair without experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from krossfuse.app.paths import CONFIG_DIR, user_config_dirs
from krossfuse.core.errors import ConfigError, did_you_mean
from krossfuse.core.parts import CROSS_MODAL, MODALITIES

GROUP, JOIN = "encoder", "+"
PLACES = {"image": "image_experts", "text": "text_experts"}


def encoder_files() -> dict[str, Path]:
    """Return the file of each encoder by its name.

    Raises:
        ConfigError: two folders of configuration have an encoder of one name.
    """
    files: dict[str, Path] = {}
    for folder in dict.fromkeys((CONFIG_DIR, *user_config_dirs())):
        for file in sorted((folder / GROUP).glob("*.yaml")):
            if file.stem in files:
                raise ConfigError(
                    f"encoder {file.stem!r} has two meanings: {str(files[file.stem])!r} and {str(file)!r}; give one of "
                    "them another name"
                )
            files[file.stem] = file
    return files


def pair_files() -> dict[str, Path]:
    """Return the file of each pair that has one, by its name."""
    folders = (CONFIG_DIR, *user_config_dirs())
    return {file.stem: file for folder in folders for file in sorted((folder / "pair").glob("*.yaml"))}


def is_composed(option: str) -> bool:
    """Return whether an option of group ``pair`` is composed: it joins names, or is one of an encoder alone.

    Raises:
        ConfigError: it is the name of a pair and of an encoder.
    """
    if JOIN in option:
        return True
    name = option.partition(".")[0]
    files = encoder_files()
    if name in files and name in (pairs := pair_files()):
        raise ConfigError(
            f"pair={name} has two meanings: the pair {str(pairs[name])!r} and the encoder {str(files[name])!r}; give "
            "one of them another name"
        )
    return name in files


def compose_pair(option: str) -> dict[str, Any]:
    """Return the configuration of a composed pair, with a defaults list that takes each encoder from its file.

    Args:
        option: names of encoders with ``+`` between them.

    Raises:
        ConfigError: there is no such encoder, one stands twice, its file does not say what it encodes, or they make no
            pair.
    """
    files = encoder_files()
    places: dict[str, str] = {}
    defaults: list[Any] = []
    for word in option.split(JOIN):
        name, _, modality = word.partition(".")
        if name not in files:
            raise ConfigError(
                f"pair={option}: there is no encoder {name!r}{did_you_mean(name, files)}; krossfuse list encoders "
                "shows all"
            )
        if name in places.values():
            raise ConfigError(f"pair={option}: encoder {name!r} stands twice; name each once")
        package = _package(option, name, modality, files[name])
        if package in places:
            raise ConfigError(
                f"pair={option}: {places[package]!r} and {name!r} are both cross-modal, and a pair has one such "
                f"encoder; say {name}.image or {name}.text for an expert of one modality"
            )
        places[package] = name
        defaults.append({f"/{GROUP}@{package}": name})
    if CROSS_MODAL not in places and len({package.partition(".")[0] for package in places}) != 1:
        raise ConfigError(
            f"pair={option} needs a cross-modal encoder, or experts of one modality: {', '.join(places.values())} are "
            "experts of both; krossfuse list encoders shows which are cross-modal"
        )
    return {"defaults": [*defaults, "_self_"], "_target_": "krossfuse.encoders.pair.Pair", "name": option}


def _package(option: str, name: str, modality: str, file: Path) -> str:
    """Return the place of an encoder in the pair."""
    read = yaml.safe_load(file.read_text("utf-8"))
    about: Any = read.get("about") if isinstance(read, Mapping) else None
    encodes = about.get("encodes") if isinstance(about, Mapping) else None
    if not (isinstance(encodes, list) and encodes and set(encodes) <= set(MODALITIES)):
        raise ConfigError(
            f"pair={option}: {str(file)!r} does not say what encoder {name!r} encodes: give it about.encodes=[image], "
            "[text] or [image, text]"
        )
    if not modality:
        return CROSS_MODAL if len(encodes) > 1 else f"{PLACES[encodes[0]]}.{name}"
    if modality not in encodes:
        raise ConfigError(f"pair={option}: encoder {name!r} encodes {encodes}, so it is no expert of {modality!r}")
    return f"{PLACES[modality]}.{name}"
