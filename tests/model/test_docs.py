"""docs/model.md: every block of it runs, in order, in a folder of its own."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from model.conftest import krossfuse

pytestmark = pytest.mark.slow


def test_every_block_runs(
    repository: Path, shared_store: Path, emoji_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KROSSFUSE_STORE", str(shared_store))
    shutil.copytree(emoji_files, tmp_path / "pictures")
    text = (repository / "docs" / "model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL)
    assert [kind for kind, _ in blocks].count("python") >= 4
    names: dict[str, object] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/model.md", "exec"), names)
            continue
        for line in block.splitlines():
            krossfuse(*shlex.split(line)[1:])
    for made in (
        "run/fusion.safetensors",
        "fused/config.json",
        "features.safetensors",
        "emoji.safetensors",
        "found.html",
    ):
        assert (tmp_path / made).is_file(), made
    model = names["model"]
    assert (names["images"].shape, names["text"].shape, names["scores"].shape) == ((2, 300), (300,), (1, 2))  # type: ignore[attr-defined]
    assert names["embeddings"].shape == (2, model.dim)  # type: ignore[attr-defined]
