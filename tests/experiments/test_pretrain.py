from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.pretrain.data import Batches, augment, caption, draw, training_emoji
from krossfuse.data.openmoji import split_emoji
from krossfuse.encoders.bundled import OpenMojiCLIP


def test_training_sees_nothing_that_is_held_out() -> None:
    held_out = [e for of_split in split_emoji().values() for e in of_split]
    assert not {e.family for e in training_emoji()} & {e.family for e in held_out}
    assert len(training_emoji(limit=10)) == 10


def test_skin_tones_belong_to_their_emoji() -> None:
    emoji = [e for e in training_emoji() if e.group == "People & Body"][:6]
    pictures = draw(emoji, 16)
    assert pictures.rgba.dtype == torch.uint8
    rows = [row for variants in pictures.variants for row in variants]
    assert sorted(rows) == list(range(len(emoji), len(pictures.rgba)))
    assert any(pictures.variants)
    assert len(draw(emoji, 16, skin_tones=False).rgba) == len(emoji)


def test_augment_strength_zero_is_the_picture_on_white() -> None:
    rgba = draw(training_emoji(limit=3), 24, skin_tones=False).rgba
    plain = augment(rgba, 24, strength=0.0, generator=torch.Generator().manual_seed(0))
    x = rgba.float() / 255
    torch.testing.assert_close(plain, x[:, :3] * x[:, 3:] + 1 - x[:, 3:], atol=1e-5, rtol=0)


def test_augment_repeats_with_its_seed_and_stays_in_range() -> None:
    rgba = draw(training_emoji(limit=8), 24, skin_tones=False).rgba
    a, b, c = (augment(rgba, 16, strength=1.0, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a.shape == (8, 3, 16, 16)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert 0 <= float(a.min()) <= float(a.max()) <= 1


def test_batches_hold_each_emoji_once_an_epoch() -> None:
    emoji = training_emoji(limit=10)
    batches = Batches(draw(emoji, 16), 3, batch_size=4, size=16, skin_tone=0.5, bare_name=0.5, strength=1.0, seed=0)
    seen = [list(batches), list(batches)]
    assert [len(epoch) for epoch in seen] == [2, 2] == [len(batches)] * 2
    for epoch in seen:
        rows = torch.cat([b.rows for b in epoch])
        assert len(rows.unique()) == len(rows) == 8
        assert all(int(b.templates.max()) < 3 for b in epoch)
    assert not torch.equal(seen[0][0].rows, seen[1][0].rows)


def test_captions() -> None:
    emoji = training_emoji(limit=5)
    written = caption(
        emoji,
        name_templates=["{name}", "{name}, {group}"],
        category_templates=["{}", "an emoji of {}"],
        class_names={"group": {emoji[0].group: "its group"}},
    )
    assert written.names[0] == [e.name for e in emoji]
    assert written.names[1][0] == f"{emoji[0].name}, its group"
    assert written.categories["group"][1][int(written.labels["group"][0])] == "an emoji of its group"


@pytest.mark.slow
def test_whole_run_at_toy_size(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "experiments.pretrain", "epochs=1", "limit=24", "batch_size=12", "threads=1"]
    command += ["data.limit=12", "logger.mode=offline", f"hydra.run.dir={tmp_path}"]
    subprocess.run(command, cwd=repository, check=True, env={**os.environ, "WANDB_SILENT": "true"})
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["measured"]["held_out"]["items"] == 36
    assert set(report["measured"]["test"]) == set(report["measured"]["held_out"])
    encoder = OpenMojiCLIP(weights=tmp_path / "openmoji_clip.safetensors")
    assert encoder.metadata["training_emoji"] == 24
    assert list(tmp_path.glob("wandb/offline-run-*"))
    model = encoder.load()
    assert model.encode_text(model.prepare_text(["a flag"])).shape == (1, model.dim)
