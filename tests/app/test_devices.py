"""Where each stage of a job computes, and in which precision; one test for the CPU and, where there is one, a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from experiments.benchmarks.gpu_data import checkpoint
from krossfuse.app.job import run
from krossfuse.core.errors import ConfigError
from krossfuse.encoders.bundled import EfficientNetLite0
from krossfuse.features.stores import LocalStore
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods import RPKrossFuse
from krossfuse.probes import knn, zero_shot
from krossfuse.probes.solvers.rows import Rows
from krossfuse.probes.streamed import StreamedHeads

SMALL = (
    *("data=image_folder", "data.num_workers=0", "pair=openmoji_image", "fusion.dim=32", "logger=none"),
    *("extraction.progress=false", "probe.sgd_probe.epochs=1"),
)


def pictures(folder: Path) -> Path:
    """Return a folder of 60 made pictures in three classes, which another call finds there."""
    root = folder / "pictures"
    rng = np.random.default_rng(0)
    for number, colour in enumerate(("red", "green", "blue")):
        (root / colour).mkdir(parents=True, exist_ok=True)
        for i in range(20):
            pixels = rng.integers(0, 100, (48, 48, 3), dtype=np.uint8)
            pixels[..., number] += 120
            if not (path := root / colour / f"{i}.png").exists():
                Image.fromarray(pixels).save(path)
    return root


def job(repository: Path, folder: Path, *overrides: str) -> None:
    import krossfuse.app.paths  # noqa: F401  (registers the resolver of the paths)

    root = pictures(folder.parent / "shared")
    if not any(o.startswith("probe=") for o in overrides):
        overrides = ("probe=[linear_probe,sgd_probe,knn]", *overrides)
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[*SMALL, f"data.root={root}", f"paths.store={folder / 'store'}", *overrides])
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    run(plain, folder / "run", choices={"fusion": "rp_krossfuse"}, with_report=False)


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, see: Callable[..., torch.Tensor]) -> set[str]:
    """Return the devices, as they come, of the tensors that a function is seen with."""
    seen: set[str] = set()
    original = getattr(owner, name)

    def spying(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen.add(see(result, *args).device.type)
        return result

    monkeypatch.setattr(owner, name, spying)
    return seen


@pytest.mark.parametrize(
    ("preset", "device"),
    [("cpu", "cpu"), *[pytest.param(p, "cuda", marks=pytest.mark.gpu) for p in ("gpu", "gpu_bf16")]],
)
def test_every_stage_is_on_the_trainer_s_device(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, device: str
) -> None:
    module = type(EfficientNetLite0().load())
    scores: set[str] = set()
    original = knn.nearest_in_tiles

    def tiles(queries: Any, gallery: Any, similarity: Any, *args: Any, **kwargs: Any) -> Any:
        def seen(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = similarity(x, y)
            scores.add(made.device.type)
            return made

        return original(queries, gallery, seen, *args, **kwargs)

    monkeypatch.setattr(knn, "nearest_in_tiles", tiles)
    seen = {
        "encoding": spy(monkeypatch, module, "encode_image", lambda out, *_: out),
        "fusing": spy(monkeypatch, RPKrossFuse, "encode", lambda out, *_: out),
        "SGD": spy(monkeypatch, StreamedHeads, "forward", lambda out, *_: out),
        "logistic regression": spy(monkeypatch, Rows, "_read", lambda out, *_: out),
        "k-NN": scores,
        "zero-shot": spy(monkeypatch, zero_shot, "rank_of", lambda out, *_: out),
        "exact kernel": spy(monkeypatch, CosineKernel, "kernel", lambda out, *_: out),
    }
    weights = checkpoint("ViT-S-32-alt", tmp_path).pretrained
    model = "krossfuse.encoders.open_clip_adapter.OpenCLIP"
    made = f"{{_target_: {model}, architecture: ViT-S-32-alt, pretrained: '{weights}'}}"
    clip = ("~pair.cross_modal", f"+pair.cross_modal={made}")
    probes = ("linear_probe", "ridge_probe", "sgd_probe", "knn", "zero_shot", "kernel_probe")
    job(repository, tmp_path, f"trainer={preset}", "trainer.devices=1", f"probe=[{','.join(probes)}]", *clip)
    assert all(devices == {device} for devices in seen.values()), seen


@pytest.mark.slow
def test_precisions_are_entries_of_their_own(repository: Path, tmp_path: Path) -> None:
    """Half precision rounds: near the float32 features, in the stored dtype, and never under the same key."""
    quick = ("probe=[sgd_probe]", "trainer=cpu")
    job(repository, tmp_path, *quick)
    store = LocalStore(tmp_path / "store")
    plain = {entry.key.about["part"] + entry.key.about["encoder"]: store.read(entry.key) for entry in store.entries()}
    for options, dtype, precision, near in (
        (["extraction.store_dtype=bfloat16"], "bfloat16", "32-true", 0.004),
        (["extraction.dtype=bfloat16", "extraction.store_dtype=float16"], "float16", "bf16-mixed", 0.08),
    ):
        folder = tmp_path / dtype
        folder.mkdir()
        job(repository, folder, *quick, *options)
        half = LocalStore(folder / "store")
        assert not {entry.name for entry in half.entries()} & {entry.name for entry in store.entries()}
        for entry in half.entries():
            x = half.read(entry.key)
            exact = plain[entry.key.about["part"] + entry.key.about["encoder"]]
            assert entry.key.ingredients["precision"] == precision
            assert entry.key.ingredients["dtype"] == dtype
            assert x.dtype == getattr(torch, dtype)
            assert float((x.float() - exact).norm() / exact.norm()) < near
            assert not torch.equal(x.float(), exact)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("extraction.dtype=float8", "extraction.dtype='float8'"),
        ("extraction.store_dtype=float64", "extraction.store_dtype='float64'"),
        ("extraction.keep_heap=3", "extraction.keep_heap=3 must be true or false"),
        ("extraction.shard_rows=100", "extraction.shard_rows=100 must be a multiple of 64"),
        ("trainer.float32_matmul_precision=low", "trainer.float32_matmul_precision='low'"),
    ],
)
def test_what_no_option_can_be(repository: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(repository, tmp_path, override)


def test_a_precision_of_stored_features_needs_a_store(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="store=none keeps none"):
        job(repository, tmp_path, "store=none", "extraction.dtype=bfloat16")
