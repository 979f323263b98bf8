"""The bundled example: the preset fusion of the bundled pair, and an index of all emoji; made once, and cached."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra

from krossfuse.app.build import job_config, make
from krossfuse.app.fuse_and_probe import features, fit
from krossfuse.app.paths import CONFIG_DIR
from krossfuse.core.errors import KrossFuseError
from krossfuse.core.files import cache_dir
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.openmoji import RenderedEmoji, list_emoji
from krossfuse.encoders.pair import Pair
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.search import Index, load_index, make_index, save_index

PRESET = (
    "pair=openmoji_image",
    "data=openmoji",
    "fusion=spectral_krossfuse",
    "fusion.dim=768",
    "extraction.progress=false",
)
SIZE = 224
"""Pixels of a drawn emoji's side: that of ``data=openmoji``."""

KIND = "emoji"


def emoji_folder() -> Path:
    """Return the folder in the user's cache where the example lies."""
    return Path(cache_dir("emoji")) / version("krossfuse")


def emoji_model() -> FusedEncoder:
    """Return the preset fusion of the bundled pair, fitted on the training emoji (unlabelled)."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = job_config(hydra.compose("config", overrides=list(PRESET)))
    fusion = fit(cfg, features(cfg), TrainerFactory(cfg["trainer"])).method
    return FusedEncoder(make(cfg["pair"], "pair", Pair), fusion)


def all_emoji() -> RenderedEmoji:
    """Return all emoji, drawn when asked for."""
    return RenderedEmoji(list_emoji(), SIZE)


def emoji_search(*, progress: bool = True) -> tuple[FusedEncoder, Index]:
    """Return model and index of all emoji: those in the cache, or made now where there are none that still fit."""
    folder = emoji_folder()
    if (folder / "index.safetensors").is_file():
        try:
            model, index = FusedEncoder.from_pretrained(folder / "model"), load_index(folder / "index.safetensors")
            index.check_model(model)
            return model, index
        except KrossFuseError as error:
            print(f"{error}\nmade again now", file=sys.stderr)
    print(f"the bundled model and its index of {len(list_emoji())} emoji are made once, in {folder}", file=sys.stderr)
    model = emoji_model()
    model.save_pretrained(folder / "model")
    about = {"kind": KIND, "folder": str(folder / "model")}
    index = make_index(model, all_emoji(), [e.name for e in list_emoji()], progress=progress, about=about)
    save_index(index, folder / "index.safetensors")
    return model, index
