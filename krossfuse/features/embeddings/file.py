"""The feature source that is a file: embeddings of one's own, and no encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, check_choice, did_you_mean
from krossfuse.core.files import check_regular
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, SPLITS, TEST, TRAIN, VAL, Modality, Part
from krossfuse.data.common import check_fractions, check_info, check_split_seed, required_path
from krossfuse.data.duplicates import CHOICES, check_duplicates
from krossfuse.data.folds import check_folds, draw_folds
from krossfuse.features.embeddings.content import Content
from krossfuse.features.embeddings.format import SUFFIXES
from krossfuse.features.embeddings.rows import ItemRows, check_finite, draw_val, sizes_of


class EmbeddingsFile:
    """A dataset that is its features already: the feature source that needs no pair and no extraction.

    Arrays stay memory-mapped (safetensors, and npz that is not compressed). Without ``val`` keys the validation split
    is drawn from train, stratified by the first label set, captions with their images.

    Args:
        path: the file.
        name: of the dataset, in results; None = as saved in the file, or the file's stem.
        cross_modal: the cross-modal encoder; None = the only one with both image and text features, if there is one.
        image_experts: encoders used as image experts; None = all those with image features only.
        text_experts: encoders used as text experts; None = all those with text features only.
        val_fraction: share of train that a drawn validation split gets.
        split_seed: of that draw, and of folds (not the run's seed).
        folds: test all items of train, val and test, in so many folds (:mod:`krossfuse.data.folds`), captions with
            their images; None = the file's splits. Other splits stay as they are.
        duplicates: what to do about items whose features are the same in two splits: ``warn``, ``error`` or ``ignore``
            (:func:`krossfuse.data.duplicates.check_duplicates`).

    Raises:
        ConfigError: a bad value, or no path.
    """

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
        folds: int | None = None,
        duplicates: str = "warn",
    ) -> None:
        self.path = required_path("path", path, "the safetensors or npz file of your embeddings")
        if self.path.suffix not in SUFFIXES:
            raise ConfigError(f"data.path={str(path)!r} must end in one of {list(SUFFIXES)}")
        for key, experts in (("image_experts", image_experts), ("text_experts", text_experts)):
            if isinstance(experts, str) or len(set(experts or [])) != len(experts or []):
                raise ConfigError(f"data.{key}={experts!r} must be a list of different names")
        self._name = None if name is None else str(name)
        self.cross_modal = cross_modal
        self.experts: dict[Modality, list[str] | None] = {
            "image": None if image_experts is None else list(image_experts),
            "text": None if text_experts is None else list(text_experts),
        }
        self.val_fraction = val_fraction
        check_fractions({VAL: val_fraction})
        self.split_seed = check_split_seed(split_seed)
        self.folds = check_folds(folds)
        self.duplicates = check_choice("data.duplicates", duplicates, CHOICES)
        self._bundle: FeatureBundle | None = None

    @property
    def name(self) -> str:
        """The dataset's name for messages, before the file is read."""
        return self._name or self.path.stem

    def check(self) -> None:
        """Check that the file is there.

        Raises:
            DataError: it is not.
        """
        try:
            check_regular(self.path)
        except OSError as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise DataError(f"data.path={str(self.path)!r}: {why}") from None

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
        content = Content(self.path)
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
        name = self._name or content.header.get("name") or self.path.stem
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
        check_info(info, sizes_of(features), splits=needed)
        for part, by_role in features.items():
            for role, tensor in by_role.items():
                key = f"{part.split}/{part.modality}/{roles[part.modality][role]}"
                check_finite(f"{content.where}: key {key!r}", tensor)
        if draws:
            fingerprint["splits"] = {VAL: f"{self.val_fraction} of train, stratified, seed {self.split_seed}"}
            info, features = draw_val(info, features, self.val_fraction, self.split_seed)
            check_info(info, sizes_of(features))
        main: Modality = "image" if any(part.modality == "image" for part in sizes_of(features)) else "text"
        compared = {part.split: ItemRows(features[part]) for part in sizes_of(features) if part.modality == main}
        if self.folds is not None:
            sizes = {split: len(items) for split, items in compared.items()}
            fold_of = draw_folds(info.label_sets, sizes, self.folds, self.split_seed)
            info = check_info(replace(info, fold_of=fold_of), sizes_of(features))
        check_duplicates(name, compared, self.duplicates, info.fold_of)
        encoders = {**roles["image"], **roles["text"]}
        saved = content.header.get("encoders", {})
        pair = content.header.get("pair") or "+".join(encoders.values())
        records = {role: {"name": encoder, **saved.get(encoder, {})} for role, encoder in encoders.items()}
        return FeatureBundle(info, pair, features, records)

    def _roles(self, content: Content) -> dict[Modality, dict[str, str]]:
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
