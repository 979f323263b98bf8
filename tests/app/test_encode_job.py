"""Encoding alone and fusing alone, by the real command: each shard a point of a sweep, then all that is left."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from krossfuse.features.stores import LocalStore
from krossfuse.fusion.shards import read_fused

OPTIONS = (
    *("data=shards", "data.manifest=tars/manifest.json", "pair=openmoji_image", "logger=none", "paths.store=store"),
    *("data.num_workers=0", "extraction.progress=false", "trainer=cpu"),
)


def krossfuse(folder: Path, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "krossfuse", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def tars(folder: Path) -> None:
    """Make a dataset of three tars, and its manifest."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (folder / "tars" / split).mkdir(parents=True)
        with tarfile.open(folder / "tars" / split / "0.tar", "w") as tar:
            for i in range(4):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(buffer, "png")
                for ending, data in (("png", buffer.getvalue()), ("cls", str(i % 2).encode())):
                    info = tarfile.TarInfo(f"{i}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "names.txt").write_text("cat\ndog\n")
    assert "train: 1 shards, 4 items" in krossfuse(folder, "shards", "tars", "--classes", "names.txt")


@pytest.mark.slow
def test_a_sweep_over_shards_and_a_job_that_takes_what_is_left(tmp_path: Path) -> None:
    tars(tmp_path)
    out = krossfuse(tmp_path, "-m", "job=encode", "job.shard=0,2", *OPTIONS)
    assert "2 of 2 points done" in out
    assert "nothing was measured" in out
    out = krossfuse(tmp_path, "job=encode", *OPTIONS)
    assert "2 shards encoded by this job" in out  # val, and the class texts
    out = krossfuse(tmp_path, "job=encode", *OPTIONS)
    assert "0 shards encoded by this job" in out
    assert "job.shard=9: 'shards' has 4 shards" in krossfuse(tmp_path, "job=encode", "job.shard=9", *OPTIONS, status=2)
    fuse = ("job=fuse", "job.folder=fused", "fusion.dim=24", *OPTIONS)
    out = krossfuse(tmp_path, "-m", "job.shard=0,3", *fuse)
    assert "2 of 2 points done" in out
    assert not (tmp_path / "fused" / "fused.json").exists()
    assert "2 shards fused by this job" in krossfuse(tmp_path, *fuse)
    assert "0 shards fused by this job" in krossfuse(tmp_path, *fuse)
    read = read_fused(tmp_path / "fused" / "fused.json", LocalStore(tmp_path / "store"))
    assert {str(part): tuple(x.shape) for part, x in read.items()} == {
        **{f"{split}:image": (4, 24) for split in ("train", "val", "test")},
        "prompts/class/default:text": (2, 24),
    }
    out = krossfuse(tmp_path, *fuse, "seed=1", status=2)
    assert "holds a fusion of another configuration and seed; take another folder" in out
    assert "job.folder is not set" in krossfuse(tmp_path, "job=fuse", *OPTIONS, status=2)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")),
    reason="krossfuse[ray] is not installed (make test-launchers)",
)
def test_actors_write_the_same_entries(tmp_path: Path) -> None:
    """Encoded and fused by Ray Data's actors, beside one process; a shard that fails is named, the others are done."""
    tars(tmp_path)
    fuse = ("job=fuse", "fusion.dim=24", *OPTIONS)
    krossfuse(tmp_path, *fuse, "job.folder=here")
    out = krossfuse(tmp_path, *fuse, "job.folder=there", "job.actors=2", "paths.store=other")
    assert "4 shards fused by this job" in out
    here, there = (
        read_fused(tmp_path / folder / "fused.json", LocalStore(tmp_path / store))
        for folder, store in (("here", "store"), ("there", "other"))
    )
    assert here.keys() == there.keys()
    assert all(torch.equal(here[part][:], there[part][:]) for part in here)
    assert "0 shards encoded by this job" in krossfuse(
        tmp_path, "job=encode", *OPTIONS, "job.actors=2", "paths.store=other"
    )
    changed = tmp_path / "tars/val/0.tar"
    changed.write_bytes(changed.read_bytes().replace(b"IDAT", b"IDOT"))
    out = krossfuse(tmp_path, "job=encode", *OPTIONS, "job.actors=2", "paths.store=third", status=2)
    assert "shard 1: " in out
    assert "0.tar" in out
    assert "Traceback" not in out
    entries = LocalStore(tmp_path / "third").entries()
    whole = [entry.key.about["part"] for entry in entries if not entry.partial]
    for split in ("train", "test"):
        assert any(f"{split}/0.tar" in part for part in whole), whole


@pytest.mark.parametrize(("actors", "words"), [("0", "positive integer"), ("two", "positive integer")])
def test_a_number_of_actors_that_cannot_be(actors: str, words: str, tmp_path: Path) -> None:
    out = krossfuse(tmp_path, "job=encode", f"job.actors={actors}", "logger=none", status=2)
    assert f"job.actors={actors!r}" in out or f"job.actors={actors}" in out
    assert words in out


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="krossfuse[ray] is installed")
def test_actors_name_their_extra(tmp_path: Path) -> None:
    out = krossfuse(tmp_path, "job=encode", "job.actors=2", "logger=none", status=2)
    assert "pip install 'krossfuse[ray]'" in out
