"""What is probed: the label sets, and the parts of the dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from krossfuse.core.errors import ConfigError, check_choice, did_you_mean
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import MODALITIES, SPLITS, TEST, Modality, Part
from krossfuse.probes.options import check_names
from krossfuse.probes.space import EmbeddingSpace

log = logging.getLogger(__name__)

ENSEMBLE = "+"
"""Between the names of prompt sets whose texts are pooled."""

Also = Callable[[EmbeddingSpace, Modality, str], str | None]
"""What a probe needs besides of the items of a modality with a label set: None if it is there, or what is not."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a probe looks at, from the flat options that users write.

    Attributes:
        label_sets: names, or None for every one that suits.
        modalities: of the items.
        splits: the first is needed, with labels; the others are used where they are (``split`` and
            ``extra_splits``). Where ``joined``, any one of them is enough.
        fitted: splits that are needed besides, with labels.
        joined: whether items of all ``splits`` are taken together.
        multilabel: whether sets with several labels an item suit.
        prompts: whether a label set needs class texts in the same space.
        prompt_sets: names, ``"a+b"`` for an ensemble; None for each that a label set has.
        streams: whether embeddings that only stream are enough.
        compared: whether labels of pairs of texts suit.

    Raises:
        ConfigError: a list is empty or holds no names, or a modality is unknown.
    """

    label_sets: Sequence[str] | None = None
    modalities: Sequence[Modality] = ("image",)
    splits: Sequence[str] = (TEST,)
    fitted: Sequence[str] = ()
    joined: bool = False
    multilabel: bool = False
    prompts: bool = False
    prompt_sets: Sequence[str] | None = None
    streams: bool = False
    compared: bool = False

    def __post_init__(self) -> None:
        for name in ("label_sets", "prompt_sets"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(dict.fromkeys(check_names(name, getattr(self, name)))))
        chosen = check_names("modalities", self.modalities, MODALITIES)
        object.__setattr__(self, "modalities", tuple(m for m in MODALITIES if m in chosen))
        object.__setattr__(self, "splits", tuple(dict.fromkeys(check_names("splits", self.splits))))
        object.__setattr__(self, "fitted", tuple(self.fitted))

    @property
    def split(self) -> str:
        """The split that is tested."""
        return self.splits[0]

    # Before any work

    def check(self, info: DatasetInfo, parts: Collection[Part] = ()) -> None:
        """Check the names that only the dataset knows, from its description alone.

        Args:
            info: the dataset.
            parts: that it has, where they are known.

        Raises:
            ConfigError: a label set, split or prompt set that it does not have, or that this probe cannot use.
        """
        labelled = [split for s in info.label_sets.values() for split in s.labels]
        there = [part.split for part in parts if "/" not in part.split]
        for split in self.splits:
            check_choice("split", split, dict.fromkeys([*SPLITS, *labelled, *info.caption_of, *there]))
        for name in self.label_sets or ():
            self._check_label_set(info, name)
        for prompt_set in self.prompt_sets or ():
            for member in prompt_set.split(ENSEMBLE):
                self._check_prompt_set(info, member)

    def _check_label_set(self, info: DatasetInfo, name: str) -> None:
        check_choice("label_sets", name, info.label_sets)
        usable = self._candidates(info)
        if name not in usable:
            kind = "single-label sets" if not self.multilabel else "label sets"
            texts = " with class texts" if self.prompts else ""
            raise ConfigError(f"label_sets={name!r}: this probe needs {kind}{texts}, of which there are {usable}")

    def _check_prompt_set(self, info: DatasetInfo, member: str) -> None:
        by_set = {name: list(info.label_sets[name].prompts) for name in self.label_sets or self._candidates(info)}
        lacking = [name for name, prompts in by_set.items() if member not in prompts]
        if (self.label_sets and lacking) or len(lacking) == len(by_set):
            available = sorted({prompt_set for prompts in by_set.values() for prompt_set in prompts})
            raise ConfigError(
                f"no prompt set {member!r} for the label sets {lacking} of {info.name!r}; there are {available}"
                f"{did_you_mean(member, available)}"
            )

    def _candidates(self, info: DatasetInfo) -> list[str]:
        """Return the label sets of a kind that this probe can use."""
        return [
            name
            for name, s in info.label_sets.items()
            if (self.multilabel or not s.multilabel) and (bool(s.prompts) or not self.prompts)
        ]

    # With the embeddings

    def pairs(self, space: EmbeddingSpace, also: Also | None = None) -> list[tuple[Modality, str]]:
        """Return the modalities and label sets that can be probed; a label set that was named and cannot is warned of.

        Args:
            space: the embedding.
            also: what a label set needs besides to be chosen without being named.
        """
        pairs, reasons = self._sorted(space, also)
        for name in self.label_sets or ():
            if not any(name == other for _, other in pairs):
                log.warning("label set %r of %r is left out: %s", name, space.info.name, "; ".join(reasons))
        return pairs

    def label_sets_of(self, space: EmbeddingSpace, also: Also | None = None) -> dict[Modality, list[str]]:
        """Return :meth:`pairs` by modality."""
        by_modality: dict[Modality, list[str]] = {}
        for modality, name in self.pairs(space, also):
            by_modality.setdefault(modality, []).append(name)
        return by_modality

    def why_not(self, space: EmbeddingSpace, also: Also | None = None) -> str | None:
        """Return None if there is a label set that can be probed, or why there is none."""
        pairs, reasons = self._sorted(space, also)
        return None if pairs else "; ".join(dict.fromkeys(reasons))

    def splits_with(self, space: EmbeddingSpace, modality: Modality, label_set: str) -> list[str]:
        """Return the splits that have items of this modality, with labels of this set."""
        labels = space.info.label_sets[label_set].labels
        return [s for s in self.splits if self._has(space, Part(s, modality)) and s in labels]

    def _has(self, space: EmbeddingSpace, part: Part) -> bool:
        return part in space or (self.streams and part in space.streams)

    def _sorted(self, space: EmbeddingSpace, also: Also | None) -> tuple[list[tuple[Modality, str]], list[str]]:
        info = space.info
        names = list(self.label_sets) if self.label_sets is not None else self._candidates(info)
        if not names:
            kind = "no label set" if self.multilabel else "no label set with one label an item"
            return [], [f"dataset {info.name!r} has {kind}{' and class texts' if self.prompts else ''}"]
        pairs, reasons = [], []
        for modality in self.modalities:
            missing = self._missing_parts(space, modality)
            if missing:
                reasons.append(missing)
                continue
            for name in names:
                lack = self._lack(space, modality, name)
                if lack is None and also is not None and self.label_sets is None:
                    lack = also(space, modality, name)
                if lack is None:
                    pairs.append((modality, name))
                else:
                    reasons.append(f"label set {name!r}: {lack}")
        return pairs, reasons

    def _missing_parts(self, space: EmbeddingSpace, modality: Modality) -> str | None:
        needed = [Part(split, modality) for split in dict.fromkeys([*self.fitted, *self.splits[: 1 - self.joined]])]
        missing = [part for part in needed if not self._has(space, part)]
        if self.joined and not missing:
            several = [Part(split, modality) for split in self.splits]
            missing = [] if any(self._has(space, part) for part in several) else several
        if not missing:
            return None
        available = [str(p) for p in sorted({*space.parts, *(space.streams if self.streams else ())})]
        streamed = [str(p) for p in missing if p in space.streams]
        only = f" ({streamed} only stream)" if streamed else ""
        return f"there are no embeddings of {' and '.join(map(str, missing))}{only}; there are {available}"

    def _lack(self, space: EmbeddingSpace, modality: Modality, name: str) -> str | None:
        sets = space.info.label_sets
        if name not in sets:
            return f"dataset {space.info.name!r} has no such label set; it has {list(sets)}"
        s = sets[name]
        if space.info.compared and not self.compared:
            return "its labels are of pairs of texts, which text_probe can take, and this probe cannot"
        if s.multilabel and not self.multilabel:
            return "its items have several labels, and this probe needs one an item"
        needed = dict.fromkeys([*self.fitted, *self.splits[: 1 - self.joined]])
        without = [split for split in needed if split not in s.labels]
        if without or (self.joined and not self.splits_with(space, modality, name)):
            return f"it has no labels for {without or list(self.splits)}; it has them for {list(s.labels)}"
        if self.prompts and not any(Part.prompts(name, prompt_set) in space for prompt_set in s.prompts):
            return "the embedding has no class texts of it"
        return None
