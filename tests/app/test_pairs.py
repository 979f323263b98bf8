"""Pairs that are composed by name, in one job, in a sweep, and with names that are wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from krossfuse.app.build import job_config, make
from krossfuse.app.pairs import compose_pair, encoder_files, is_composed
from krossfuse.app.paths import CONFIG_DIR
from krossfuse.core.errors import ConfigError
from krossfuse.encoders.pair import Pair


@pytest.fixture
def compose() -> Iterator[Callable[..., dict[str, Any]]]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        yield lambda *words: job_config(hydra.compose("config", overrides=list(words)))


def test_every_encoder_makes_a_pair(compose: Any) -> None:
    """All of them in four pairs, each encoder built by its class; what it encodes is what its file says."""
    files = encoder_files()
    encodes = {name: yaml.safe_load(file.read_text())["about"]["encodes"] for name, file in files.items()}
    crosses = [name for name, of in encodes.items() if len(of) == 2]
    experts = [name for name, of in encodes.items() if len(of) == 1]
    assert len(crosses) >= 20
    assert len(experts) >= 30
    cut = len(experts) // 2
    for name, few in ((crosses[0], experts[:cut]), (crosses[1], experts[cut:])):
        option = "+".join([name, *few])
        pair = make(compose(f"pair={option}")["pair"], "pair", Pair)
        assert pair.name == option
        assert pair.cross_modal is not None
        assert pair.cross_modal.name == name
        made = {**pair.image_experts, **pair.text_experts}
        assert list(made) == [x for m in ("image", "text") for x in few if encodes[x] == [m]]
        assert all(encoder.name == role for role, encoder in made.items())
    for name in crosses:
        node = OmegaConf.to_container(OmegaConf.load(files[name]))
        assert make(node, name).name == name


def test_a_composed_pair_is_the_one_of_a_file(compose: Any) -> None:
    composed = make(compose("pair=openmoji_clip+efficientnet_lite0+minilm_l6")["pair"], "pair", Pair)
    written = make(compose("pair=openmoji_both")["pair"], "pair", Pair)
    for role, encoder in written.every().items():
        for modality in encoder.modalities:
            assert composed.every()[role].fingerprint(modality) == encoder.fingerprint(modality)


def test_experts_of_one_modality(compose: Any) -> None:
    pair = make(compose("pair=openmoji_clip.image+efficientnet_lite0")["pair"], "pair", Pair)
    assert pair.cross_modal is None
    assert list(pair.image_experts) == ["openmoji_clip", "efficientnet_lite0"]
    alone = make(compose("pair=openmoji_clip")["pair"], "pair", Pair)
    assert (alone.image_experts, alone.text_experts) == ({}, {})


def test_options_and_encoders_of_a_composed_pair_can_be_set(compose: Any) -> None:
    words = ("pair=clip_b32+dinov2_b14+e5_large", "pair.image_experts.dinov2_b14.pooling=mean")
    cfg = compose(*words, "encoder@pair.cross_modal=clip_l14")["pair"]
    assert cfg["image_experts"]["dinov2_b14"]["pooling"] == "mean"
    assert cfg["cross_modal"]["architecture"] == "ViT-L-14-quickgelu"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("clip_b32+dinov2_b41", r"no encoder 'dinov2_b41' \(did you mean 'dinov2_b14'\?\)"),
        ("clip_b32+dinov2_b14+dinov2_b14", "'dinov2_b14' stands twice"),
        ("clip_b32+clip_b16", r"both cross-modal.* say clip_b16\.image or clip_b16\.text"),
        ("dinov2_b14+e5_large", "experts of both"),
        ("clip_b32+dinov2_b14.text", r"encodes \['image'\], so it is no expert of 'text'"),
        ("clip_b32+", "no encoder ''"),
    ],
)
def test_wrong_names(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_pair(option)


def user_conf(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("KROSSFUSE_CONF", ":".join(str(path) for path in sorted(folder.iterdir())))


def test_a_name_with_two_meanings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_conf(tmp_path, monkeypatch, one__encoder__mine="a: 1", two__encoder__mine="a: 1")
    with pytest.raises(ConfigError, match=r"encoder 'mine' has two meanings: .*one.*two"):
        encoder_files()
    (tmp_path / "two" / "encoder" / "mine.yaml").unlink()
    user_conf(tmp_path, monkeypatch, one__pair__mine="a: 1")
    with pytest.raises(ConfigError, match=r"pair=mine has two meanings: the pair .* and the encoder"):
        is_composed("mine")


def test_a_users_encoder_says_what_it_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: Any) -> None:
    node = "_target_: krossfuse.encoders.bundled.MiniLM\nmax_length: 16\n"
    user_conf(tmp_path, monkeypatch, one__encoder__mine=node)
    with pytest.raises(ConfigError, match=r"does not say what encoder 'mine' encodes"):
        compose_pair("openmoji_clip+mine")
    user_conf(tmp_path, monkeypatch, one__encoder__mine=node + "about: {encodes: [text]}\n")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = job_config(hydra.compose("config", overrides=["pair=openmoji_clip+mine"]))
    assert make(cfg["pair"], "pair", Pair).text_experts["mine"].fingerprint("text")["max_length"] == 16


@pytest.mark.slow
def test_pairs_are_swept(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "krossfuse", "-m", "pair=openmoji_clip+efficientnet_lite0,openmoji_clip+minilm_l6",
        "fusion=concatenation", "fusion.missing=zeros", "data.limit=60", "probe=[zero_shot]", "logger=none",
        f"paths.runs={tmp_path / 'runs'}", f"paths.store={tmp_path / 'store'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("openmoji_clip+efficientnet_lite0", "openmoji_clip+minilm_l6"):
        assert name in done.stdout
    wrong = [*command[:4], "pair=openmoji_clip+efficientnet_lite0,openmoji_clip+minilm", *command[5:]]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2
    assert "no encoder 'minilm' (did you mean 'minilm_l6'?)" in done.stderr
    assert "Traceback" not in done.stderr
