"""The model from the wheel: another process, an empty folder to stand in, nothing of the checkout, no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.parts import Part
from krossfuse.fusion.plain import fuse_bundle
from krossfuse.model.encoder import FusedEncoder

pytestmark = pytest.mark.slow

CODE = """
import sys, numpy as np, krossfuse
model = krossfuse.FusedEncoder.from_pretrained(sys.argv[1])
np.save(sys.argv[2], model.encode_image(sys.argv[3:], convert_to="numpy"))
print(krossfuse.__file__)
"""


def test_the_wheel_gives_the_runs_embeddings(
    repository: Path, model: FusedEncoder, saved: Path, bundle: FeatureBundle, emoji_files: Path, tmp_path: Path
) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(repository)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    paths = sorted(map(str, emoji_files.iterdir()))
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(saved), str(tmp_path / "x.npy"), *paths],
        cwd=empty, env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stdout.strip().startswith(str(installed))
    part = Part("test", "image")
    fused = fuse_bundle(model.fusion, bundle, parts=[part])[part]
    assert np.abs(np.load(tmp_path / "x.npy") - fused[: len(paths)].numpy()).max() <= 1e-6
