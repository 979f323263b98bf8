"""Bring your own embeddings: features, labels and class texts from one safetensors or npz file, and no encoder.

The keys (all but the features are optional; ``docs/embeddings.md`` explains them)::

    {train,val,test}/image/ENCODER    (n, d) float        features of the images
    {train,val,test}/text/ENCODER     (m, d) float        features of the texts
    {train,val,test}/labels           (n,) integer        -1 = no label; or (n, classes) 0/1 = multilabel
    {train,val,test}/caption_of       (m,) integer        image row of each text; not needed when m = n and in order
    prompts/text/ENCODER              (t, d) float        class text features
    prompts/owner                     (t,) integer        class of each class text; not needed when t = classes
    classes                           class names: array of texts (npz) or JSON list in the metadata (safetensors)

More label sets and prompt sets: ``train/labels/SET``, ``prompts/SET/PROMPTS/text/ENCODER``,
``prompts/SET/PROMPTS/owner``, and ``classes`` as a JSON mapping. The plain forms mean ``SET = "class"`` and
``PROMPTS = "default"``.

Examples:
    >>> import numpy as np, pathlib, tempfile
    >>> rng = np.random.default_rng(0)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.npz"
    >>> arrays = {"classes": np.array(["cat", "dog"]), "prompts/text/clip": rng.normal(size=(2, 8))}
    >>> for split, n in {"train": 40, "test": 20}.items():
    ...     arrays[f"{split}/image/clip"] = rng.normal(size=(n, 8))
    ...     arrays[f"{split}/image/dinov2"] = rng.normal(size=(n, 12))
    ...     arrays[f"{split}/labels"] = np.arange(n) % 2
    >>> np.savez(path, **arrays)
    >>> bundle = EmbeddingsFile(path=str(path)).bundle()
    >>> bundle.pair, bundle.dims("image"), len(bundle[Part("val", "image")]["dinov2"])
    ('clip+dinov2', {'cross_modal': 8, 'dinov2': 12}, 4)
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, did_you_mean
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, SPLITS, TEST, TRAIN, VAL, Modality, Part
from krossfuse.data.common import check_fractions, check_info, required_path, stratified_split

LABEL_SET, PROMPT_SET = "class", "default"
SUFFIXES = (".safetensors", ".npz")
IN_MEMORY = 256 << 20
"""Bytes up to which the rows of a drawn split are copied in memory; above, to an unnamed temporary file."""

_BLOCK = 16 << 20
_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
}


class EmbeddingsFile:
    """A dataset that is its features already: the ``data`` component that needs no pair and no extraction.

    Arrays stay memory-mapped (safetensors, and npz that is not compressed). Without ``val`` keys the validation split
    is drawn from train, stratified by the first label set, captions with their images.

    Args:
        path: the file.
        name: of the dataset, in results; None = as saved in the file, or the file's stem.
        cross_modal: the cross-modal encoder; None = the only one with both image and text features, if there is one.
        image_experts: encoders used as image experts; None = all those with image features only.
        text_experts: encoders used as text experts; None = all those with text features only.
        val_fraction: share of train that a drawn validation split gets.
        split_seed: of that draw (not the run's seed).

    Attributes:
        provides_features: tells the runner to call :meth:`bundle` in place of an extraction.

    Raises:
        ConfigError: a bad value, or no path.
    """

    provides_features: ClassVar[bool] = True

    def __init__(
        self,
        *,
        path: str | None,
        name: str | None = None,
        cross_modal: str | None = None,
        image_experts: Sequence[str] | None = None,
        text_experts: Sequence[str] | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        self.path = required_path("path", path, "the safetensors or npz file of your embeddings")
        if self.path.suffix not in SUFFIXES:
            raise ConfigError(f"data.path={str(path)!r} must end in one of {list(SUFFIXES)}")
        for key, experts in (("image_experts", image_experts), ("text_experts", text_experts)):
            if isinstance(experts, str) or len(set(experts or [])) != len(experts or []):
                raise ConfigError(f"data.{key}={experts!r} must be a list of different names")
        self.name = name
        self.cross_modal = cross_modal
        self.experts: dict[Modality, list[str] | None] = {
            "image": None if image_experts is None else list(image_experts),
            "text": None if text_experts is None else list(text_experts),
        }
        self.val_fraction = val_fraction
        check_fractions({VAL: val_fraction})
        self.split_seed = split_seed
        self._bundle: FeatureBundle | None = None

    def setup(self, stage: str | None = None) -> None:
        """Map and check the file; the second call does nothing."""
        self.bundle()

    @property
    def info(self) -> DatasetInfo:
        """Everything about the dataset but its features."""
        return self.bundle().info

    def bundle(self) -> FeatureBundle:
        """Return the features, checked: shapes, NaN, labels, captions.

        Raises:
            DataError: a missing or damaged file, an unknown key, or arrays that do not fit each other.
            ConfigError: an encoder that the file does not have, or a choice of encoders that must be made.
        """
        if self._bundle is None:
            self._bundle = self._read()
        return self._bundle

    def _read(self) -> FeatureBundle:
        content = _Content(self.path)
        roles = self._roles(content)
        features: dict[Part, dict[str, Tensor]] = {}
        for part, by_encoder in content.features.items():
            if wanted := roles[part.modality]:
                for encoder in wanted.values():
                    if encoder not in by_encoder:
                        raise DataError(
                            f"{content.where}: key '{part.split}/{part.modality}/{encoder}' is missing, but there is "
                            f"{sorted(by_encoder)} for {part}; every part needs the same encoders"
                        )
                features[part] = {role: by_encoder[encoder] for role, encoder in wanted.items()}
        name = self.name or content.header.get("name") or self.path.stem
        stat = self.path.stat()
        fingerprint: dict[str, Any] = {
            "source": "embeddings",
            "file": self.path.name,
            "bytes": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "encoders": roles,
            **({"saved_from": content.header["fingerprint"]} if "fingerprint" in content.header else {}),
        }
        captions = content.captions(features)
        info = DatasetInfo(name, fingerprint, content.label_sets(features), captions)
        draws = not any(part.split == VAL for part in features)
        needed = (TRAIN, TEST) if draws else SPLITS
        check_info(info, _sizes(features), splits=needed)
        for part, by_role in features.items():
            for role, tensor in by_role.items():
                key = f"{part.split}/{part.modality}/{roles[part.modality][role]}"
                _check_finite(f"{content.where}: key {key!r}", tensor)
        if draws:
            fingerprint["splits"] = {VAL: f"{self.val_fraction} of train, stratified, seed {self.split_seed}"}
            info, features = _draw_val(info, features, self.val_fraction, self.split_seed)
            check_info(info, _sizes(features))
        encoders = {**roles["image"], **roles["text"]}
        saved = content.header.get("encoders", {})
        pair = content.header.get("pair") or "+".join(encoders.values())
        records = {role: {"name": encoder, **saved.get(encoder, {})} for role, encoder in encoders.items()}
        return FeatureBundle(info, pair, features, records)

    def _roles(self, content: _Content) -> dict[Modality, dict[str, str]]:
        """Return, by modality, the encoder that plays each role."""
        have: dict[Modality, list[str]] = {modality: content.encoders(modality) for modality in MODALITIES}
        every = [*have["image"], *(encoder for encoder in have["text"] if encoder not in have["image"])]
        both = [encoder for encoder in have["image"] if encoder in have["text"]]
        cross = self.cross_modal
        if cross is not None and cross not in every:
            raise ConfigError(
                f"data.cross_modal={cross!r} is not an encoder of {content.where}: {every}{did_you_mean(cross, every)}"
            )
        if cross is None and CROSS_MODAL in every:
            cross = CROSS_MODAL
        if cross is None and both:
            if len(both) > 1:
                raise ConfigError(f"{content.where}: {both} all have images and texts; choose one as data.cross_modal")
            cross = both[0]
        experts: dict[Modality, list[str]] = {}
        for modality in MODALITIES:
            chosen = self.experts[modality]
            if chosen is None:
                chosen = [encoder for encoder in have[modality] if encoder not in both and encoder != cross]
            for encoder in chosen:
                if encoder not in have[modality] or encoder == cross:
                    options = [other for other in have[modality] if other != cross]
                    raise ConfigError(
                        f"data.{modality}_experts: {encoder!r} is not an encoder of {modality}s beside the cross-modal "
                        f"{cross!r} in {content.where}: {options}{did_you_mean(encoder, options)}"
                    )
            experts[modality] = chosen
        if twice := sorted(set(experts["image"]) & set(experts["text"])):
            raise ConfigError(f"data.image_experts and data.text_experts both name {twice}; choose one side for each")
        if cross is None and bool(experts["image"]) == bool(experts["text"]):
            raise ConfigError(
                f"{content.where}: no encoder has images and texts, so experts of one modality are fused; choose "
                f"data.image_experts=[] or data.text_experts=[] (image: {experts['image']}, text: {experts['text']})"
            )
        return {
            modality: {
                **({CROSS_MODAL: cross} if cross is not None and cross in have[modality] else {}),
                # A side without its share of the cross-modal encoder cannot be fused.
                **({e: e for e in experts[modality]} if cross is None or cross in have[modality] else {}),
            }
            for modality in MODALITIES
        }


class _Content:
    """The arrays of a file, sorted by what they are, and its header."""

    def __init__(self, path: Path) -> None:
        self.where = f"embeddings {str(path)!r}"
        arrays, self.header = _read_arrays(path, self.where)
        extra = self.header.get("splits", [])
        self.splits = (*SPLITS, *(split for split in extra if split not in SPLITS))
        self.features: dict[Part, dict[str, Tensor]] = {}
        self.labels: dict[str, dict[str, Tensor]] = {}
        self.caption_of: dict[str, Tensor] = {}
        self.owners: dict[Part, Tensor] = {}
        for key, array in arrays.items():
            if not self._place(key, array):
                raise DataError(
                    f"{self.where}: unknown key {key!r}{did_you_mean(key, self._likely(key))}; keys are "
                    "SPLIT/image/ENCODER, SPLIT/text/ENCODER, SPLIT/labels, SPLIT/caption_of, prompts/text/ENCODER, "
                    f"prompts/owner, classes; splits are {list(self.splits)}; names hold no '/'"
                )
        if not self.features:
            raise DataError(f"{self.where} holds no features; keys are SPLIT/image/ENCODER or SPLIT/text/ENCODER")
        self._check_shapes()

    def _place(self, key: str, array: Tensor) -> bool:
        match key.split("/"):
            case [split, ("image" | "text") as modality, encoder] if split in self.splits:
                self.features.setdefault(Part(split, modality), {})[encoder] = array
            case [split, "labels", *rest] if split in self.splits and len(rest) < 2:
                self.labels.setdefault(rest[0] if rest else LABEL_SET, {})[split] = self._labels(key, array)
            case [split, "caption_of"] if split in self.splits:
                self.caption_of[split] = self._integers(key, array)
            case ["prompts", "text", encoder]:
                self.features.setdefault(Part.prompts(LABEL_SET, PROMPT_SET), {})[encoder] = array
            case ["prompts", label_set, prompt_set, "text", encoder]:
                self.features.setdefault(Part.prompts(label_set, prompt_set), {})[encoder] = array
            case ["prompts", "owner"]:
                self.owners[Part.prompts(LABEL_SET, PROMPT_SET)] = self._integers(key, array)
            case ["prompts", label_set, prompt_set, "owner"]:
                self.owners[Part.prompts(label_set, prompt_set)] = self._integers(key, array)
            case _:
                return False
        return True

    def _likely(self, key: str) -> list[str]:
        encoders = {key.split("/")[-1], *(encoder for of_part in self.features.values() for encoder in of_part)}
        rows = [f"{split}/{what}" for split in self.splits for what in ("labels", "caption_of")]
        sides = [*(f"{split}/{modality}" for split in self.splits for modality in MODALITIES), "prompts/text"]
        return [*rows, "prompts/owner", "classes", *(f"{side}/{encoder}" for side in sides for encoder in encoders)]

    def _integers(self, key: str, array: Tensor) -> Tensor:
        if array.is_floating_point() or array.ndim != 1:
            raise DataError(
                f"{self.where}: key {key!r} must be a row of integers, got {tuple(array.shape)} {array.dtype}"
            )
        return array.to(torch.int64)

    def _labels(self, key: str, array: Tensor) -> Tensor:
        if array.ndim != 2 or array.is_floating_point():
            return self._integers(key, array)
        if bool(((array != 0) & (array != 1)).any()):
            raise DataError(f"{self.where}: key {key!r} has two axes, so it is multilabel and must hold 0 and 1 only")
        return array.to(torch.bool)

    def _check_shapes(self) -> None:
        seen: dict[tuple[str, str], tuple[int, Part]] = {}
        for part, by_encoder in self.features.items():
            rows: dict[str, int] = {}
            for encoder, array in by_encoder.items():
                key = f"{part.split}/{part.modality}/{encoder}"
                if array.ndim != 2 or not array.is_floating_point():
                    raise DataError(
                        f"{self.where}: key {key!r} must be (rows, dim) floats, got {tuple(array.shape)} {array.dtype}"
                    )
                rows[encoder] = len(array)
                dim, first = seen.setdefault((encoder, part.modality), (array.shape[1], part))
                if dim != array.shape[1]:
                    raise DataError(
                        f"{self.where}: dimension mismatch: {encoder!r} has {dim} dimensions in {first} but "
                        f"{array.shape[1]} in {part}"
                    )
            if len(set(rows.values())) > 1:
                raise DataError(f"{self.where}: the encoders have different numbers of rows in {part}: {rows}")

    def encoders(self, modality: Modality) -> list[str]:
        """Return the encoders that have features of ``modality``, in the order of the file."""
        found = (e for part, by_encoder in self.features.items() if part.modality == modality for e in by_encoder)
        return list(dict.fromkeys(found))

    def captions(self, features: Mapping[Part, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the image row of each text, by split that has both modalities among ``features``."""
        sizes = _sizes(features)
        captions = {}
        for split in self.splits:
            n, m = sizes.get(Part(split, "image")), sizes.get(Part(split, "text"))
            if n is None or m is None:
                continue
            if split not in self.caption_of and n != m:
                raise DataError(
                    f"{self.where}: {split} has {n} images and {m} texts; key '{split}/caption_of' must give the image "
                    "row of each text"
                )
            captions[split] = self.caption_of.get(split, torch.arange(n))
        return captions

    def label_sets(self, features: Mapping[Part, Mapping[str, Tensor]]) -> dict[str, LabelSet]:
        """Return the label sets, with the prompts that are among ``features``."""
        sizes = _sizes(features, prompts=True)
        prompts: dict[str, dict[str, Part]] = {}
        for part in (*(part for part in features if part.split.startswith("prompts/")), *self.owners):
            _, label_set, prompt_set = part.split.split("/")
            if label_set not in self.labels:
                raise DataError(
                    f"{self.where}: class texts for label set {label_set!r}, which has no labels; label sets are "
                    f"{list(self.labels)} (a plain 'labels' key means {LABEL_SET!r})"
                )
            if part in sizes:
                prompts.setdefault(label_set, {})[prompt_set] = part
            elif part not in self.features:
                raise DataError(f"{self.where}: owners for {part}, which has no features")
        splits = {part.split for part in sizes}
        made = {}
        for name, labels in self.labels.items():
            if orphans := sorted(set(labels) - splits):
                raise DataError(f"{self.where}: labels of {name!r} for {orphans}, which have no features")
            parts = prompts.get(name, {})
            classes = self._classes(name, labels, [sizes[p] for p in parts.values() if p not in self.owners])
            filled = {key: self._prompts(part, classes, sizes[part]) for key, part in parts.items()}
            multilabel = any(of_split.ndim == 2 for of_split in labels.values())
            made[name] = LabelSet(tuple(classes), labels, filled, multilabel)
        return made

    def _classes(self, label_set: str, labels: Mapping[str, Tensor], counts: list[int]) -> list[str]:
        named = self.header.get("classes")
        if isinstance(named, dict):
            named = named.get(label_set)
        elif len(self.labels) > 1 and label_set != LABEL_SET:
            named = None
        if named is not None:
            return [str(name) for name in named]
        in_use = [x.shape[1] if x.ndim == 2 else int(x.max()) + 1 for x in labels.values() if x.numel()]
        return [str(i) for i in range(max([*in_use, *counts], default=0))]

    def _prompts(self, part: Part, classes: Sequence[str], n: int) -> Prompts:
        owner = self.owners.get(part)
        if owner is None:
            if n != len(classes):
                raise DataError(
                    f"{self.where}: {part} has {n} class texts for {len(classes)} classes; an owner key must give the "
                    "class of each"
                )
            owner = torch.arange(n)
        if len(owner) != n:
            raise DataError(f"{self.where}: {part} has {n} class texts but {len(owner)} owners")
        in_range = ((owner >= 0) & (owner < len(classes))).all()
        if not in_range:
            raise DataError(f"{self.where}: {part} has owners outside the {len(classes)} classes")
        _, label_set, prompt_set = part.split.split("/")
        saved = f"{label_set}/{prompt_set}"
        texts = self.header.get("texts", {}).get(saved) or [classes[i] for i in owner.tolist()]
        return Prompts(tuple(texts), owner, tuple(self.header.get("templates", {}).get(saved, ())))


def save_embeddings(path: str | Path, bundle: FeatureBundle) -> None:
    """Write a bundle in the format of this module, block by block, and atomically.

    Args:
        path: ends in ``.safetensors`` or ``.npz``.
        bundle: the features; its roles become the encoders' names in the keys.

    Raises:
        ConfigError: another ending.
        DataError: a name with ``/``, or a dtype that the format does not have (bfloat16 in npz).
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"path={str(path)!r} must end in one of {list(SUFFIXES)}")
    info = bundle.info
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
        if tensor.dtype not in _SAFETENSORS_DTYPES or (tensor.dtype == torch.bfloat16 and path.suffix == ".npz"):
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            if path.suffix == ".npz":
                contents = {key: tensor.numpy() for key, tensor in arrays.items()}
                np.savez(stream, **contents, **{key: np.array(text) for key, text in texts.items()})  # type: ignore[arg-type]
            else:
                _write_safetensors(stream, arrays, texts)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_safetensors(stream: IO[bytes], arrays: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the format of safetensors in blocks: its own writer copies every tensor into memory first."""
    order = list(_SAFETENSORS_DTYPES)  # the widest first, so that every array is aligned
    ordered = sorted(arrays.items(), key=lambda item: order.index(item[1].dtype))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for key, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        dtype = _SAFETENSORS_DTYPES[tensor.dtype]
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    stream.write(struct.pack("<Q", len(encoded)) + encoded)
    for _, tensor in ordered:
        for block in _blocks(tensor):
            raw = block.contiguous().view(torch.int16) if tensor.dtype == torch.bfloat16 else block.contiguous()
            stream.write(raw.cpu().numpy().tobytes())


def _read_arrays(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Map the arrays of a file; return them, and the header (texts, JSON decoded)."""
    if not path.is_file():
        raise DataError(f"{where}: there is no such file")
    try:
        arrays, texts = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path, where)
    except DataError:
        raise
    except Exception as error:  # SafetensorError, BadZipFile, struct.error, ValueError, ...: damaged in some way
        raise DataError(f"{where} cannot be read ({type(error).__name__}: {error}); is it complete?") from error
    header: dict[str, Any] = {}
    for key, text in texts.items():
        if key in {"classes", "name", "pair", "splits", "texts", "templates", "encoders", "fingerprint"}:
            try:
                header[key] = json.loads(text) if isinstance(text, str) else text
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: {key!r} in the header is not JSON: {error}") from error
        elif path.suffix == ".npz":
            raise DataError(f"{where}: unknown array of texts {key!r}{did_you_mean(key, ['classes'])}")
    if not isinstance(header.get("classes", []), list | dict):
        raise DataError(f"{where}: 'classes' must be a list of names, or a mapping of label set to list")
    return arrays, header


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _read_npz(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Map the members that are stored plainly (``np.savez``) and read those that are compressed."""
    arrays: dict[str, Tensor] = {}
    texts: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for member in archive.infolist():
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(stream)
                skipped = stream.tell()
            if dtype.hasobject:
                raise DataError(f"{where}: {key!r} holds Python objects; save texts as np.array([...], dtype=str)")
            if dtype.kind == "U" or member.compress_type != zipfile.ZIP_STORED or 0 in shape:
                with archive.open(member) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
            else:
                raw.seek(member.header_offset + 26)
                offset = member.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4))) + skipped
                array = np.memmap(path, dtype, "c", offset, shape, "F" if fortran else "C")
            if dtype.kind == "U":
                texts[key] = str(array) if array.ndim == 0 else array.tolist()
            elif dtype.kind in "iu":
                arrays[key] = torch.from_numpy(array.astype(np.int64))
            elif dtype.kind == "b" or dtype.name in ("float16", "float32", "float64"):
                arrays[key] = torch.from_numpy(array if dtype.isnative else array.astype(dtype.newbyteorder("=")))
            else:
                raise DataError(f"{where}: {key!r} has dtype {dtype}; use float16, float32, float64, integers or texts")
    return arrays, texts


def _sizes(features: Mapping[Part, Mapping[str, Tensor]], *, prompts: bool = False) -> dict[Part, int]:
    return {
        part: len(next(iter(by_role.values())))
        for part, by_role in features.items()
        if prompts or not part.split.startswith("prompts/")
    }


def _blocks(tensor: Tensor) -> Iterable[Tensor]:
    rows = max(1, _BLOCK // max(1, tensor.element_size() * math.prod(tensor.shape[1:])))
    return (tensor[start : start + rows] for start in range(0, len(tensor), rows))


def _check_finite(where: str, tensor: Tensor) -> None:
    start = 0
    for block in _blocks(tensor):
        # One pass without a mask; a sum of finite numbers may overflow, so only the mask decides.
        if not math.isfinite(float(block.sum(dtype=torch.float64))):
            bad = torch.nonzero(~torch.isfinite(block).all(1)).flatten()
            if len(bad):
                raise DataError(f"{where} holds NaN or infinity in row {start + int(bad[0])}")
        start += len(block)


def _draw_val(
    info: DatasetInfo, features: Mapping[Part, Mapping[str, Tensor]], fraction: float, seed: int
) -> tuple[DatasetInfo, dict[Part, dict[str, Tensor]]]:
    """Draw a validation split from train: items by stratum, captions with their images."""
    image, text = Part(TRAIN, "image"), Part(TRAIN, "text")
    main = image if image in features else text
    n = _sizes(features)[main]
    single = (s.labels[TRAIN] for s in info.label_sets.values() if not s.multilabel and TRAIN in s.labels)
    rows = stratified_split(next(single, torch.zeros(n, dtype=torch.int64)), {VAL: fraction}, seed=seed)
    drawn = {part: dict(by_role) for part, by_role in features.items() if part.split != TRAIN}
    captions = dict(info.caption_of)
    for split, of_split in rows.items():
        drawn[Part(split, main.modality)] = {role: _take(x, of_split) for role, x in features[main].items()}
        if main == image and text in features:
            position = torch.full((n,), -1, dtype=torch.int64)
            position[of_split] = torch.arange(len(of_split))
            new = position[info.caption_of[TRAIN]]
            texts = torch.nonzero(new >= 0).flatten()
            captions[split] = new[texts]
            drawn[Part(split, "text")] = {role: _take(x, texts) for role, x in features[text].items()}
    label_sets = {
        name: LabelSet(
            s.classes,
            {**s.labels, **{split: s.labels[TRAIN][r] for split, r in rows.items() if TRAIN in s.labels}},
            s.prompts,
            s.multilabel,
        )
        for name, s in info.label_sets.items()
    }
    return DatasetInfo(info.name, info.fingerprint, label_sets, captions), drawn


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Gather rows, in memory or (above ``IN_MEMORY`` bytes) into a temporary file that vanishes with the tensor."""
    if len(rows) * tensor.shape[1] * tensor.element_size() <= IN_MEMORY:
        return tensor[rows]
    raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    with tempfile.TemporaryFile(prefix="krossfuse-") as file:
        out = torch.from_numpy(np.memmap(file, raw[:0].numpy().dtype, "w+", shape=(len(rows), tensor.shape[1])))
    start = 0
    for block in _blocks(out):
        block.copy_(raw[rows[start : start + len(block)]])
        start += len(block)
    return out.view(tensor.dtype)
