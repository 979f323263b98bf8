"""``krossfuse diagnose``: a configuration or flags in, the figures out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from krossfuse.app.diagnose import main
from krossfuse.core.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of embeddings: 8 classes, an image expert, texts."""
    generator = torch.Generator().manual_seed(0)
    centres = {name: torch.randn(8, dim, generator=generator) for name, dim in (("clip", 12), ("dino", 16))}
    arrays = {}
    for split, n in (("train", 160), ("val", 40), ("test", 80)):
        arrays[f"{split}/labels"] = torch.arange(n) % 8
        for modality, names in (("image", ("clip", "dino")), ("text", ("clip",))):
            for name in names:
                noise = 0.7 * torch.randn(n, centres[name].shape[1], generator=generator)
                arrays[f"{split}/{modality}/{name}"] = centres[name][arrays[f"{split}/labels"]] + noise
    path = tmp_path / "mine.safetensors"
    save_file(arrays, path, {"classes": json.dumps(list("abcdefgh"))})
    return path


def test_the_flags(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = path.with_suffix(".json")
    assert (
        main([str(path), "--dim", "40", "--C", "auto", "--expert-weight", "2", "--target", "0.2", "--out", str(out)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "zero-shot agreement" in printed
    report = json.loads(out.read_text())
    assert report["config"]["C_rule"] == "auto"
    assert report["zero_shot_agreement"][0] == 1
    assert str(report["smallest_dim"]) in printed
    with pytest.raises(ConfigError, match="did you mean 'spectral'"):
        main([str(path), "--sketch", "spectre"])


def test_a_preset_and_its_options(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = path.with_suffix(".json")
    assert main([str(path), "fusion=spectral_krossfuse", "fusion.dim=40", "--target", "0.3", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["config"]["C_rule"] == "variance"
    assert report["config"]["product_kernel"] == "centred"
    assert report["config"]["dim"] == 40
    assert report["zero_shot_agreement"][0] == 1
    assert str(report["smallest_dim"]) in capsys.readouterr().out
    random = ["fusion=rp_krossfuse", "fusion.dim=60", "fusion/sketch=srht"]
    assert main([str(path), *random, "--seeds", "3", "--out", str(out)]) == 0
    drawn = json.loads(out.read_text())
    assert drawn["interval_over"] == "seeds"
    assert drawn["rmse_image_image"][1] < drawn["rmse_image_image"][2]


def test_one_way_of_configuring(path: Path) -> None:
    with pytest.raises(ConfigError, match="both configure the method"):
        main([str(path), "fusion=spectral_krossfuse", "--dim", "40"])
    with pytest.raises(ConfigError, match="does not configure a fusion method"):
        main([str(path), "probe=knn"])
