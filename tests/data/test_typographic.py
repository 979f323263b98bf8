from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.typographic import TypographicAttack, draw_misleading, write_over


def pixels(dm, part):
    return np.stack([np.asarray(image) for image in dm.items(part)])


def test_attack_changes_pixels_only(toy):
    clean, attacked = toy(), TypographicAttack(base=toy(), seed=0)
    assert attacked.info.name == "toy_typographic"
    assert attacked.parts() == clean.parts()
    assert attacked.info.label_sets["parity"].labels["val"].tolist() == [0, 1, 0, 1, 0, 1]
    for part in clean.parts():
        if part.modality == "text":
            assert attacked.items(part) == clean.items(part)
            assert attacked.part_fingerprint(part) == clean.part_fingerprint(part)
        else:
            difference = (pixels(attacked, part) != pixels(clean, part)).any(-1)
            assert difference.reshape(6, -1).any(1).all()
            assert attacked.part_fingerprint(part) != clean.part_fingerprint(part)
    red = (pixels(attacked, Part("val", "image")) == (255, 0, 0)).all(-1)
    assert red.reshape(6, -1).any(1).all()


def test_same_seed_same_pixels(toy):
    part = Part("test", "image")
    first, again = (TypographicAttack(base=toy(), seed=3) for _ in range(2))
    assert np.array_equal(pixels(first, part), pixels(again, part))
    assert first.info.fingerprint == again.info.fingerprint
    assert first.info.fingerprint != TypographicAttack(base=toy(), seed=4).info.fingerprint


def test_misleading_is_another_class():
    labels = torch.arange(3000) % 5
    drawn = draw_misleading(labels, 5, seed=0)
    assert not bool((drawn == labels).any())
    table = torch.stack([drawn[labels == c].bincount(minlength=5) for c in range(5)])
    assert bool((table[~torch.eye(5, dtype=torch.bool)] > 100).all())  # 150 expected of each other class
    assert draw_misleading(torch.tensor([-1, 0, 1]), 2, seed=0).tolist() == [1, 1, 0]


def test_misleading_is_at_hand(toy):
    dm = TypographicAttack(base=toy())
    dm.setup()
    for split in SPLITS:
        assert torch.equal(dm.misleading[split], 1 - torch.arange(6) % 2)


@pytest.mark.parametrize("size", [(224, 224), (40, 90), (300, 64), (8, 8), (1, 1)])
@pytest.mark.parametrize("text", ["dog", "an uncommonly long name of a class", "Donaudampfschifffahrtsgesellschaft"])
def test_text_stays_in_the_central_square(size, text):
    blank = Image.new("RGB", size, "white")
    written = np.asarray(write_over(blank, text))
    assert np.asarray(blank).min() == 255  # the original is untouched
    changed = np.argwhere((written != 255).any(-1))
    if min(size) >= 40:
        side, middle = min(size), np.array(size[::-1]) / 2
        assert len(changed)
        assert (np.abs(changed - middle) <= side / 2).all()
        assert np.ptp(changed[:, 1]) > 0.3 * side


def test_wrong_base(toy):
    with pytest.raises(ConfigError, match=r"data\.base must be a dataset of images, got str"):
        TypographicAttack(base="openmoji")
    with pytest.raises(ConfigError, match=r"label_set='partiy' is not one of .*did you mean 'parity'"):
        TypographicAttack(base=toy(), label_set="partiy").setup()


def test_no_images(tmp_path):
    from krossfuse.data.text import TextFiles

    (tmp_path / "all").write_text("".join(f"{i % 2} text {i}\n" for i in range(20)))
    with pytest.raises(DataError, match="no images to write on"):
        TypographicAttack(base=TextFiles(root=str(tmp_path), files={"all": "all"})).setup()
