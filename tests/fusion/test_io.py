"""One file holds a method and its configuration: the same bits come back, and no other class is ever built."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, StoreError
from krossfuse.core.parts import Part
from krossfuse.fusion import io
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.kernels import GaussianKernel
from krossfuse.fusion.methods import (
    CCA,
    Attention,
    AverageKernel,
    PCAConcatenation,
    PostProcess,
    RFFConcatenation,
    RPKrossFuse,
)
from krossfuse.fusion.sketches import KPoMRPSketch, SpectralSketch

INPUTS = InputSpec(cross_modal=12, image_experts={"dino": 16})
METHODS = {
    "published": partial(RPKrossFuse, dim=40, seed=3),
    "exact_spectral": partial(RPKrossFuse, dim=30, alignment="exact", sketch=SpectralSketch),
    "gaussian_kpomrp": partial(
        RPKrossFuse, dim=30, kernel=partial(GaussianKernel, features=32), sketch=partial(KPoMRPSketch)
    ),
    "postprocessed": partial(PostProcess, method=partial(RPKrossFuse, dim=40), pca_dim=5, normalise=True),
    "average": partial(AverageKernel, weights={"dino": 2.0}, missing="zeros"),
    "pca": partial(PCAConcatenation, dim=6),
    "cca": partial(CCA, dim=6),
    "rff": partial(RFFConcatenation, dim=20),
    "attn": partial(Attention, dim=16, epochs=1, seed=2),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, toy_bundle: FeatureBundle) -> FusionMethod:
    return fit_method(METHODS[request.param](inputs=INPUTS), toy_bundle, label_set="animal")


def test_reload_gives_the_same_bits(method: FusionMethod, toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    again = io.load_fusion(io.save_fusion(method, tmp_path / "folder" / "fusion.safetensors"))
    assert again.describe() == method.describe()
    assert again.inputs == method.inputs
    for modality in method.modalities:
        x = toy_bundle[Part("test", modality)]
        assert torch.equal(again.encode(modality, x), method.encode(modality, x))


def test_precision_is_kept(method: FusionMethod, toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    method = method.double()
    again = io.load_fusion(io.save_fusion(method, tmp_path / "fusion.safetensors"))
    x = toy_bundle[Part("test", "image")]
    encoded = again.encode("image", x)
    assert encoded.dtype == torch.float64
    assert torch.equal(encoded, method.encode("image", x))


def test_state_dict_fits_a_fresh_method(method: FusionMethod, toy_bundle: FeatureBundle) -> None:
    fresh = type(method)(**method.arguments)
    fresh.load_state_dict(method.state_dict())
    x = toy_bundle[Part("test", "image")]
    assert torch.equal(fresh.encode("image", x), method.encode("image", x))


@pytest.mark.gpu
def test_device_moves_keep_what_was_drawn(toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    method = fit_method(METHODS["published"](inputs=INPUTS), toy_bundle)
    again = io.load_fusion(io.save_fusion(method.cuda(), tmp_path / "fusion.safetensors"), device="cuda")
    x = {role: tensor.cuda() for role, tensor in toy_bundle[Part("test", "image")].items()}
    assert torch.equal(again.encode("image", x), method.encode("image", x))
    drawn = METHODS["published"](inputs=INPUTS).state_dict()
    assert all(torch.equal(again.state_dict()[name].cpu(), tensor) for name, tensor in drawn.items())


def test_another_process_reads_the_same_bits(toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    method = fit_method(METHODS["exact_spectral"](inputs=INPUTS), toy_bundle)
    io.save_fusion(method, tmp_path / "fusion.safetensors")
    x = dict(toy_bundle[Part("test", "image")])
    save_file(x, tmp_path / "x.safetensors")
    code = (
        "import krossfuse, safetensors.torch as s; m = krossfuse.load_fusion('fusion.safetensors');"
        "s.save_file({'e': m.encode('image', s.load_file('x.safetensors'))}, 'e.safetensors')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert torch.equal(load_file(tmp_path / "e.safetensors")["e"], method.encode("image", x))


def rewrite(path: Path, **changes: Any) -> None:
    """Change the configuration of a saved file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    config = {**json.loads(metadata["config"]), **changes}
    save_file(load_file(path), path, {**metadata, "config": json.dumps(config)})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("builtins.eval", "neither a class of krossfuse.fusion"),
        ("os.system", "neither a class"),
        ("krossfuse.fusion.io.save_fusion", "no fusion method"),
        ("krossfuse.fusion.io.Path", "no fusion method"),
        ("krossfuse.fusion.nowhere.Thing", "cannot be imported"),
    ],
)
def test_only_fusion_classes_are_built(target: str, message: str, tmp_path: Path) -> None:
    path = io.save_fusion(AverageKernel(inputs=INPUTS), tmp_path / "fusion.safetensors")
    rewrite(path, _target_=target)
    with pytest.raises(ConfigError, match=message):
        io.load_fusion(path)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no fusion file"):
        io.load_fusion(tmp_path / "none.safetensors")
    path = io.save_fusion(PCAConcatenation(inputs=INPUTS, dim=3), tmp_path / "fusion.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"):
        io.load_fusion(path)
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(StoreError, match="expected 'krossfuse-fusion-1'"):
        io.load_fusion(tmp_path / "other.safetensors")
    path.write_bytes(whole)
    rewrite(path, _target_="krossfuse.fusion.baselines.AverageKernel", dim=None)
    with pytest.raises(ConfigError, match="dim"):
        io.load_fusion(path)


def test_classes_from_elsewhere_are_registered(tmp_path: Path) -> None:
    class Mine(AverageKernel):
        """A method of someone else's, which no other process can import."""

    path = tmp_path / "fusion.safetensors"
    with pytest.raises(ConfigError, match="register it"):
        io.save_fusion(Mine(inputs=INPUTS), path)
    assert not path.exists()
    io.register(Mine)
    try:
        assert isinstance(io.load_fusion(io.save_fusion(Mine(inputs=INPUTS), path)), Mine)
    finally:
        io.REGISTERED.clear()
    with pytest.raises(ConfigError, match="neither a class"):
        io.load_fusion(path)
    with pytest.raises(ConfigError, match="cannot save"):
        io.check_saveable(AverageKernel(inputs=INPUTS, kernel=lambda in_dim, seed: GaussianKernel(in_dim)))


PLUGIN = """
from krossfuse.fusion import Alignment, AverageKernel, CosineKernel, ExactAlignment

class Mine(AverageKernel):
    pass

class MyAlignment(ExactAlignment):
    name = "mine"

class MyKernel(CosineKernel):
    name = "my_cosine"

from os import system
"""


def test_plugins_are_loaded_from_named_modules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    (tmp_path / "my_plugin_too.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = importlib.import_module("my_plugin")
    methods = [
        plugin.Mine(inputs=INPUTS),
        RPKrossFuse(inputs=INPUTS, dim=40, kernel=plugin.MyKernel, alignment=partial(plugin.MyAlignment)),
    ]
    x = {"cross_modal": torch.randn(3, 12), "dino": torch.randn(3, 16)}
    for method in methods:
        path = io.save_fusion(method, tmp_path / "mine.safetensors")
        with pytest.raises(ConfigError, match="KROSSFUSE_PLUGINS"):
            io.load_fusion(path)
        with pytest.raises(ConfigError, match="my_plugin"):
            io.load_fusion(path, plugins=["my_plugin_too", "my_plug"])
        again = io.load_fusion(path, plugins=["my_plugin"])
        assert type(again) is type(method)
        assert torch.equal(again.encode("image", x), method.encode("image", x))
        monkeypatch.setenv("KROSSFUSE_PLUGINS", "my_plugin_too, my_plugin")
        assert io.load_fusion(path).describe() == method.describe()
        monkeypatch.delenv("KROSSFUSE_PLUGINS")
    rewrite(path, _target_="my_plugin.system")
    with pytest.raises(ConfigError, match="no fusion method"):
        io.load_fusion(path, plugins=["my_plugin"])


@pytest.mark.parametrize("name", ["published_both", "exact_spectral", "postprocessed_nystrom", "cca"])
def test_files_of_the_first_version_are_read(name: str) -> None:
    folder = Path(__file__).parent / "saved"
    method = io.load_fusion(folder / f"{name}.safetensors")
    expected = load_file(folder / "encoded.safetensors")
    for modality in method.modalities:
        x = {r: expected[f"x/{modality}/{r}"] for r in ("cross_modal", *method.inputs.experts(modality))}
        # Not to the bit: other versions of torch bring other builds of BLAS.
        torch.testing.assert_close(method.encode(modality, x), expected[f"{name}/{modality}"], rtol=1e-6, atol=1e-6)
