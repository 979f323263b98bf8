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
import socket, sys

def refuse(*_):
    raise OSError("this test has no network")

socket.socket.connect = socket.getaddrinfo = refuse
import numpy as np, krossfuse
model = krossfuse.FusedEncoder.from_pretrained(sys.argv[1])
parents = {role: x.numpy() for role, x in model.encode_parents("image", sys.argv[3:]).items()}
np.savez(sys.argv[2], fused=model.encode_image(sys.argv[3:], convert_to="numpy"), **parents)
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
    # Nothing of this process's environment, and a home without caches.
    environment = {"PATH": os.environ["PATH"], "HOME": str(empty), "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(saved), str(tmp_path / "x.npz"), *paths],
        cwd=empty, env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stdout.strip().startswith(str(installed))
    part, made = Part("test", "image"), np.load(tmp_path / "x.npz")
    fused = fuse_bundle(model.fusion, bundle, parts=[part])[part]
    assert np.abs(made["fused"] - fused[: len(paths)].numpy()).max() <= 1e-6
    assert set(made) == {"fused", *bundle[part]}
    for role, stored in bundle[part].items():  # what the run's store has of each encoder
        assert np.abs(made[role] - stored[: len(paths)].numpy()).max() <= 1e-6, role
