"""A model as a folder: written whole, and read with everything held against what was saved.

``config.json`` (format, versions, encoders by reference with their fingerprints, digests of the files),
``fusion.safetensors`` (:func:`~krossfuse.fusion.io.save_fusion`), ``golden.safetensors``
(:mod:`krossfuse.model.golden`), ``README.md`` (the model card) and, with ``weights=True``, ``encoders/ROLE/``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from krossfuse.core.errors import ConfigError, KrossFuseError, StoreError
from krossfuse.core.parts import CROSS_MODAL
from krossfuse.encoders.base import Encoder
from krossfuse.encoders.io import build_encoder, describe_encoder, fingerprints_of
from krossfuse.encoders.pair import Pair
from krossfuse.fusion.io import check_saveable, load_fusion, save_fusion
from krossfuse.model.card import model_card
from krossfuse.model.fused import Fused
from krossfuse.model.golden import differences, golden_file
from krossfuse.model.precision import dtype_named

log = logging.getLogger(__name__)

FORMAT = 1
KIND = "krossfuse.FusedEncoder"
CONFIG, FUSION, GOLDEN, CARD, ENCODERS = (
    "config.json",
    "fusion.safetensors",
    "golden.safetensors",
    "README.md",
    "encoders",
)
LIBRARIES = ("krossfuse", "torch", "torchvision", "numpy", "pillow")

_Model = TypeVar("_Model", bound=Fused)


def write_model(model: Fused, folder: Path, *, weights: bool) -> None:
    """Write a model to a folder; what is there of an older one is replaced when everything is written.

    Raises:
        ConfigError: an encoder or the fusion cannot be written, or weights cannot be copied.
    """
    check_saveable(model.fusion)
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is a file; give a folder for the model")
    folder.mkdir(parents=True, exist_ok=True)
    device, floats = model.device, {p.dtype for p in model.encoders.parameters() if p.is_floating_point()}
    with tempfile.TemporaryDirectory(prefix=".krossfuse-", dir=folder) as scratch:
        new = Path(scratch).resolve()
        encoders, fingerprints = _describe(model, new, weights)
        save_fusion(model.fusion, new / FUSION)
        try:
            # As it is loaded and checked: on the CPU, the encoders in the precision that they are loaded in.
            plain = floats <= {torch.float32}
            tensors, words = golden_file(model.to("cpu")) if plain else _golden_of_copy(model, new)
        finally:
            model.to(device)
        save_file(tensors, new / GOLDEN, words)
        config = {
            "format": FORMAT,
            "kind": KIND,
            "versions": {name: metadata.version(name) for name in LIBRARIES},
            "modalities": list(model.modalities),
            "dim": model.dim,
            "method": model.fusion.describe(),
            "pair": model.pair.name,
            "encoders": encoders,
            "fingerprints": fingerprints,
            "weights": weights,
            "digest": model.digest,
            "sha256": {name: _sha256(new / name) for name in (FUSION, GOLDEN)},
        }
        (new / CONFIG).write_text(json.dumps(config, indent=1, default=str) + "\n", encoding="utf-8")
        (new / CARD).write_text(model_card(model), encoding="utf-8")
        readable = (new / CARD).stat().st_mode
        if (folder / ENCODERS).is_dir():
            (folder / ENCODERS).rename(new / "old")
        for name in (ENCODERS, FUSION, GOLDEN, CARD, CONFIG):
            if (new / name).exists():
                if name in (FUSION, GOLDEN):  # which safetensors writes for their owner alone
                    (new / name).chmod(readable)
                os.replace(new / name, folder / name)


def _describe(model: Fused, folder: Path, weights: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the encoders by place and role as JSON, and the fingerprints of what will be loaded."""
    pair, fingerprints = model.pair, {}
    places: dict[str, dict[str, Encoder]] = {
        "image_experts": dict(pair.image_experts),
        "text_experts": dict(pair.text_experts),
        CROSS_MODAL: {} if pair.cross_modal is None else {CROSS_MODAL: pair.cross_modal},
    }
    described: dict[str, Any] = {}
    for place, of_place in places.items():
        described[place] = {}
        for number, (role, encoder) in enumerate(of_place.items()):
            copied: Mapping[str, Any] = {}
            if weights:
                target = folder / ENCODERS / f"{place}-{number}"
                target.mkdir(parents=True)
                copied = encoder.copy_weights(target)
                if not any(target.iterdir()):
                    target.rmdir()
            config = describe_encoder(encoder, copied=copied, folder=folder)
            described[place][role] = config
            # Of the copy where there is one: it may be known by another name.
            same = build_encoder(config, folder=folder, plugins=[type(encoder).__module__]) if copied else encoder
            fingerprints[role] = fingerprints_of(same, model.modalities)
    if weights and (folder / ENCODERS).is_dir() and not any((folder / ENCODERS).iterdir()):
        (folder / ENCODERS).rmdir()
    described[CROSS_MODAL] = described[CROSS_MODAL].get(CROSS_MODAL)
    return described, fingerprints


def _golden_of_copy(model: Fused, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the golden embeddings of a model whose encoders were rounded: of encoders that are loaded afresh."""
    return golden_file(type(model)(model.pair, load_fusion(folder / FUSION, plugins=_modules(model))))


def _modules(model: Fused) -> list[str]:
    return [type(part).__module__ for part in model.fusion.modules()]


def read_model(
    cls: type[_Model],
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    plugins: Iterable[str] = (),
    encoders: Mapping[str, Encoder] | None = None,
    check: bool = True,
) -> _Model:
    """Read the model in a folder; see :meth:`~krossfuse.model.encoder.FusedEncoder.from_pretrained`."""
    precision = None if dtype is None else dtype_named(dtype)
    folder, plugins = folder.expanduser().resolve(), list(plugins)
    config = read_config(folder)
    different = _altered(folder, config)
    if different and check:  # before anything is made of what the files hold
        raise _differs(folder, different)
    pair = _pair(config, folder, plugins, dict(encoders or {}))
    fusion = load_fusion(folder / FUSION, plugins=plugins)
    newer, other = _other_fingerprints(config, pair)
    newer |= {name: (was, metadata.version(name)) for name, was in config["versions"].items() if name in LIBRARIES}
    newer = {name: (was, now) for name, (was, now) in newer.items() if was != now}
    different += other
    if different and check:
        raise _differs(folder, different)
    model = cls(pair, fusion)
    with safe_open(folder / GOLDEN, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        words = dict(file.metadata() or {})
    found = differences(model, tensors, words)
    if found and check:
        cause = f"; other versions than when it was saved: {_versions(newer)}" if newer else ""
        raise _differs(folder, [f"{what} is not what it was{cause}" for what in found])
    if different or found:
        log.warning("model %s is used though it differs: %s", folder, "; ".join([*different, *found]))
    elif newer:
        log.warning("model %s: %s; the golden embeddings are the same", folder, _versions(newer))
    model.copied = bool(config.get("weights"))
    card = folder / CARD
    model.card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    return model.to(device=device, dtype=precision)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a model's folder.

    Raises:
        StoreError: there is none, it is damaged, no model's, or of a newer format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise StoreError(f"{str(folder)!r} holds no {CONFIG}: it is no saved model; krossfuse export RUN FOLDER and "
                         "FusedEncoder.save_pretrained make one")  # fmt: skip
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{str(path)!r} is damaged ({error}); save the model again") from None
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise StoreError(f"{str(path)!r} is not that of a {KIND}")
    if not isinstance(config.get("format"), int) or config["format"] > FORMAT:
        made_by = config.get("versions", {}).get("krossfuse", "?") if isinstance(config.get("versions"), dict) else "?"
        raise StoreError(
            f"model {str(folder)!r} has format {config.get('format')!r} (krossfuse {made_by}), and krossfuse "
            f"{metadata.version('krossfuse')} reads formats up to {FORMAT}: install a newer krossfuse"
        )
    wanted = {"encoders": dict, "fingerprints": dict, "sha256": dict, "versions": dict, "digest": str}
    lacking = [name for name, kind in wanted.items() if not isinstance(config.get(name), kind)]
    if lacking:
        raise StoreError(f"{str(path)!r} is damaged: {lacking} are missing or of another kind; save the model again")
    return config


def fetch_model(name: str, **hub: Any) -> Path:
    """Return the folder of a model on the Hugging Face hub, downloaded if need be.

    Raises:
        StoreError: there is no such folder here, and the hub cannot give it.
    """
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
        return Path(snapshot_download(name, allow_patterns=patterns, **hub))
    except Exception as error:  # the hub's errors, no network, an impossible name, ...
        said = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise StoreError(
            f"{name!r} is neither a folder here nor a model that the Hugging Face hub can give "
            f"({type(error).__name__}: {said}); without a network, give the folder's path"
        ) from error


def _altered(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return, in words, which files are not those that were saved.

    Raises:
        StoreError: one is missing.
    """
    found = []
    for name in (FUSION, GOLDEN):
        path = folder / name
        if not path.is_file():
            raise StoreError(f"model {str(folder)!r} has no {name}: the folder is incomplete; save or fetch it again")
        if _sha256(path) != config["sha256"].get(name):
            found.append(f"{name} is not the file that was saved (its SHA-256 is another)")
    for name in (FUSION, GOLDEN):
        try:
            with safe_open(folder / name, "pt") as file:
                file.keys()
        except SafetensorError as error:
            raise StoreError(f"model {str(folder)!r}: {name} is damaged ({error}); save or fetch it again") from None
    return found


def _pair(config: Mapping[str, Any], folder: Path, plugins: list[str], given: dict[str, Encoder]) -> Pair:
    described = config["encoders"]
    cross = described.get(CROSS_MODAL)
    every = {**({} if cross is None else {CROSS_MODAL: cross})}
    for place in ("image_experts", "text_experts"):
        every |= described.get(place) or {}
    unknown = sorted(set(given) - set(every))
    if unknown:
        raise ConfigError(f"encoders={unknown}: the model has no such role; it has {list(every)}")
    made: dict[str, Encoder] = dict(given)
    for role, of in every.items():
        if role not in made:
            try:
                made[role] = build_encoder(of, folder=folder, plugins=plugins)
            except ConfigError as error:
                raise ConfigError(
                    f"model {str(folder)!r}, encoder {role!r}: {error}. {_WAY_OUT.format(role)}"
                ) from None
    experts = {
        place: {role: made[role] for role in described.get(place) or {}} for place in ("image_experts", "text_experts")
    }
    return Pair(name=str(config.get("pair", "saved")), cross_modal=made.get(CROSS_MODAL), **experts)


_WAY_OUT = (
    "Save the model with its weights (save_pretrained(..., weights=True), krossfuse export --weights), or give the "
    "encoder: from_pretrained(..., encoders={{{!r}: ...}})"
)


def _other_fingerprints(config: Mapping[str, Any], pair: Pair) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Return the libraries' versions then and now, and in words what else of the encoders is not what was saved.

    Raises:
        ConfigError: an encoder is not there.
    """
    newer: dict[str, tuple[Any, Any]] = {}
    other: list[str] = []
    for role, encoder in pair.every().items():
        saved = config["fingerprints"].get(role)
        if not isinstance(saved, Mapping):
            raise StoreError(f"{CONFIG} is damaged: it has no fingerprint of encoder {role!r}; save the model again")
        try:
            now = fingerprints_of(encoder, tuple(saved))
        except KrossFuseError as error:
            raise ConfigError(f"encoder {role!r} is not here: {error}. {_WAY_OUT.format(role)}") from None
        for modality in saved:
            was, is_now = saved[modality], now.get(modality, {})
            for key in sorted({*was, *is_now}):
                if was.get(key) == is_now.get(key):
                    continue
                if key in encoder.libraries:
                    newer[key] = (was.get(key), is_now.get(key))
                else:
                    old, new = (_short(of.get(key)) for of in (was, is_now))
                    other.append(f"encoder {role!r} ({modality}s): {key} was {old}, and is {new} here")
    return newer, list(dict.fromkeys(other))


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text[:100]


def _versions(newer: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} is {now} here, and was {was}" for name, (was, now) in newer.items())


def _differs(folder: Path, what: Iterable[str]) -> StoreError:
    return StoreError(
        f"model {str(folder)!r} would not give the embeddings that it gave: {'; '.join(what)}. Restore what it was "
        "saved with, export it again, or take it as it is: from_pretrained(..., check=False)"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
