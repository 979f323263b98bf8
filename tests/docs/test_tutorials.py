"""Every tutorial of the site, followed to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.tutorials import blocks, follow

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "tutorials").glob("*.md"))
SLOW = {"encoders", "deploy", "fusion", "federated"}  # the bundled encoders, or many runs
MARKED = [pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW else (), id=page.stem) for page in PAGES]


@pytest.mark.parametrize("page", MARKED)
def test_a_tutorial_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {block.kind for block in blocks(page)} >= {"sh", "python", "text"}
    follow(page, tmp_path, monkeypatch)
