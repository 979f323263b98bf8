"""The faults of docs/faq.md: each command there fails, and says what the page says."""

from __future__ import annotations

import contextlib
import io
import sys
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from hydra.core.global_hydra import GlobalHydra

from docs.tutorials import Block, blocks, commands
from krossfuse.app.command import main

FOUND = blocks(Path(__file__).resolve().parents[2] / "docs" / "faq.md")
FAULTS = [(a, b) for a, b in pairwise(FOUND) if (a.kind, b.kind) == ("sh", "text")]


def test_every_command_of_the_page_is_tried() -> None:
    assert len(FAULTS) == sum(block.kind == "sh" for block in FOUND) >= 6


@pytest.mark.parametrize(("asked", "told"), FAULTS, ids=lambda block: f"line {block.line}")
def test_a_fault_is_as_the_page_says(
    asked: Block, told: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = commands(asked.content)
    GlobalHydra.instance().clear()
    said = io.StringIO()
    with contextlib.redirect_stderr(said), mock.patch.object(sys, "argv", words), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (1, 2), said.getvalue()
    at = 0
    for part in told.content.strip().split("..."):
        found = said.getvalue().find(part.strip(), at)
        assert found >= 0, f"{part!r} is not said, or not in this order:\n{said.getvalue()}"
        at = found + len(part.strip())
