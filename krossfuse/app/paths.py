"""Where configuration lies: the package's own groups, and a user's beside them; and the user's own modules.

``krossfuse --config-dir my/conf fusion=mine`` (Hydra's own option), or ``KROSSFUSE_CONF=my/conf`` in the environment
(several folders with ``:`` between them), adds a folder of groups. The folder above each of them, and the folder one
stands in, can be imported from, so that ``_target_: mine.MyFusion`` finds ``my/mine.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from krossfuse.core.errors import ConfigError
from krossfuse.core.files import cache_dir

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configuration groups: inside the package in a wheel, beside it in a checkout."""

USER_CONFIG = "KROSSFUSE_CONF"

DATA = "KROSSFUSE_DATA"
"""Variable that names the folder of data sets, each in a folder of its own."""


def check_name(name: object) -> str:
    """Return the name of a run if it is a folder's.

    Raises:
        ConfigError: it is not, or it leads elsewhere.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\:\0\n"):
        raise ConfigError(f"name={name!r} must be the name of a folder in paths.runs, without / or \\")
    return name


def data_folder(name: str) -> str | None:
    """Return the folder of a data set below ``KROSSFUSE_DATA``; None where that is not set: then data.root= says it."""
    above = os.environ.get(DATA)
    return str(Path(above).expanduser() / name) if above else None


OmegaConf.register_new_resolver("krossfuse_cache", cache_dir, replace=True)
OmegaConf.register_new_resolver("krossfuse_data", data_folder, replace=True)
# Where Hydra makes the run folder, which is before a job can look at its configuration.
OmegaConf.register_new_resolver("krossfuse_name", check_name, replace=True)


def user_config_dirs() -> list[Path]:
    """Return the folders of configuration that the user has added.

    Raises:
        ConfigError: one is no folder, or has a file that the package has too (which would silently win).
    """
    folders = [Path(text).expanduser().resolve() for text in _listed()]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{USER_CONFIG}, --config-dir: there is no folder {str(folder)!r}")
        for file in folder.rglob("*.yaml"):
            name = file.relative_to(folder)
            if folder != CONFIG_DIR and (CONFIG_DIR / name).is_file():
                raise ConfigError(f"{str(file)!r}: {name} is one of krossfuse's own options; give yours another name")
    return folders


def take_up_user_code(arguments: Sequence[str] = ()) -> list[str]:
    """Make the user's configuration known and her modules importable, here and in processes that are started later.

    Args:
        arguments: of the command; ``--config-dir FOLDER`` is taken out and goes to the environment.

    Returns:
        The arguments that are left.

    Raises:
        ConfigError: a folder of configuration does not exist, or hides one of the package's files.
    """
    rest, given = [], []
    words = iter(arguments)
    for word in words:
        if word in ("--config-dir", "-cd"):
            given.append(next(words, ""))
        elif word.startswith("--config-dir="):
            given.append(word.partition("=")[2])
        else:
            rest.append(word)
    if any(not text for text in given):
        raise ConfigError("--config-dir is not followed by a folder; say --config-dir FOLDER")
    if given:
        fresh = [str(Path(text).expanduser().resolve()) for text in given]
        os.environ[USER_CONFIG] = os.pathsep.join(dict.fromkeys([*_listed(), *fresh]))
    for folder in (*(str(folder.parent) for folder in user_config_dirs()), str(Path.cwd())):
        # Behind everything else: a file of the user's named like a library's must not stand before it.
        if folder not in sys.path:
            sys.path.append(folder)
    return rest


def _listed() -> list[str]:
    return [text for text in os.environ.get(USER_CONFIG, "").split(os.pathsep) if text]
