"""``krossfuse list``: everything that has a file is listed, from the files alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from krossfuse.app import catalogue
from krossfuse.app.paths import CONFIG_DIR
from krossfuse.core.errors import ConfigError

GROUPS = {"data": "data", "encoders": "encoder", "pairs": "pair", "fusion": "fusion", "probe": "probe"}


@pytest.mark.parametrize("kind", GROUPS)
def test_it_is_complete(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main([kind, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    files = {file.stem for file in (CONFIG_DIR / GROUPS[kind]).glob("*.yaml")} - (
        {"none"} if kind == "pairs" else set()
    )
    assert {entry["name"] for entry in entries} == files
    assert all(set(catalogue.COLUMNS[kind]) <= set(entry) for entry in entries)
    if "what" in catalogue.COLUMNS[kind]:
        assert all(len(entry["what"]) > 3 for entry in entries)
    assert catalogue.main([kind]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in files)


def test_encoders_say_dimension_size_licence_and_source() -> None:
    for entry in catalogue.catalogue("encoders"):
        assert entry["encodes"], entry
        assert entry["licence"], entry
        assert entry["source"], entry
        if not entry["name"].startswith("openvision"):  # not known without the weights
            assert entry["dim"] >= 200, entry
            assert entry["size"] > 1e6, entry


def test_published_sets_say_licence_source_and_counts() -> None:
    published = [entry for entry in catalogue.catalogue("data") if entry["items"]]
    assert len(published) >= 29
    assert all(entry["licence"] and entry["source"] for entry in published)
    assert all(entry["classes"] or entry["name"] in ("mscoco", "flickr30k") for entry in published)


def test_what_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_hand(kind: str, name: str) -> bool | None:
        (entry,) = [entry for entry in catalogue.catalogue(kind) if entry["name"] == name]
        found: bool | None = entry["at hand"]
        return found

    for name in ("KROSSFUSE_DATA", "KROSSFUSE_TORCHVISION", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert [at_hand("data", n) for n in ("openmoji", "typographic", "imagenet", "food101")] == [
        True,
        True,
        False,
        False,
    ]
    assert at_hand("data", "image_folder") is None
    assert at_hand("encoders", "minilm_l6") is True
    assert [at_hand("pairs", n) for n in ("openmoji_both", "clip_dinov2")] == [True, False]
    monkeypatch.setenv("KROSSFUSE_DATA", str(tmp_path))
    monkeypatch.setenv("KROSSFUSE_TORCHVISION", str(tmp_path / "vision"))
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "vision" / "food-101").mkdir(parents=True)
    for model in ("timm--vit_base_patch32_clip_224.openai", "facebook--dinov2-base"):
        snapshot = tmp_path / "hf" / "hub" / f"models--{model}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(b"")
    found = [at_hand("data", name) for name in ("imagenet", "imagenet_a", "food101", "cifar10")]
    assert found == [True, False, True, False]
    assert at_hand("pairs", "clip_dinov2") is True
    assert at_hand("pairs", "clip_e5") is False


@pytest.mark.skipif(
    version("open_clip_torch").startswith("3.0."), reason="open_clip 3.0 does not know the newest of them"
)
def test_the_names_of_the_hub_are_those_of_the_libraries() -> None:
    """What is declared as the source of a tag is where the library gets it."""
    import yaml
    from open_clip.pretrained import get_pretrained_cfg

    for file in (CONFIG_DIR / "encoder").glob("*.yaml"):
        node = yaml.safe_load(file.read_text())
        if node["_target_"].endswith("OpenCLIP") and node["pretrained"]:
            found = get_pretrained_cfg(node["architecture"], node["pretrained"])
            assert found["hf_hub"].rstrip("/") == node["about"]["source"], file.stem
        elif node["_target_"].endswith("Timm"):
            assert node["about"]["source"] == f"timm/{node['model']}"
        elif "model" in node:
            assert node["about"]["source"] == node["model"]


def test_no_such_kind() -> None:
    with pytest.raises(ConfigError, match=r"'encoder' is not one of .*did you mean 'encoders'"):
        catalogue.main(["encoder"])


def test_it_is_fast_and_imports_no_model_library(tmp_path: Path) -> None:
    code = """
import sys
from krossfuse.app.catalogue import main
main(["encoders"])
print([name for name in ("torch", "transformers", "open_clip", "timm", "datasets", "lightning") if name in sys.modules])
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - start < 15  # a second on an idle machine
