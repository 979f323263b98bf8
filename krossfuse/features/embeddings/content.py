"""What a file of embeddings holds, sorted by what it is: features, labels, captions, class texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, did_you_mean
from krossfuse.core.labels import LabelSet, Prompts
from krossfuse.core.parts import MODALITIES, SPLITS, Modality, Part
from krossfuse.features.embeddings.format import read_arrays
from krossfuse.features.embeddings.rows import sizes_of

LABEL_SET, PROMPT_SET = "class", "default"
"""The names that the plain keys stand for."""


class Content:
    """The arrays of a file, sorted by what they are, and its header."""

    def __init__(self, path: Path) -> None:
        self.where = f"embeddings {str(path)!r}"
        arrays, self.header = read_arrays(path, self.where)
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
                if not array.shape[1]:
                    raise DataError(f"{self.where}: key {key!r} has 0 columns: its features have no dimensions")
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
        sizes = sizes_of(features)
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
        sizes = sizes_of(features, prompts=True)
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
            unknown = sorted(set(named) - set(self.labels))
            if label_set not in named and unknown:
                raise DataError(
                    f"{self.where}: 'classes' names the classes of {list(named)}, but the label sets are "
                    f"{list(self.labels)} (a plain 'labels' key means {LABEL_SET!r}); {unknown} have no labels"
                )
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
        if len(texts) != n:
            raise DataError(f"{self.where}: 'texts' has {len(texts)} for {saved!r}, but {part} has {n} class texts")
        return Prompts(tuple(texts), owner, tuple(self.header.get("templates", {}).get(saved, ())))
