"""What a tutorial tells its reader to do, done: files written, commands and Python run, output compared.

A block that begins with ``# FILE`` is that file. Blocks of ``sh`` are commands, those of ``python`` are one session a
page, and one of ``text`` is what the block before it printed: numbers to 2 %, columns of any width, and ``...`` for
lines that are left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from krossfuse.app.command import main

_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.(?:py|yaml|txt))\n")
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?|-?\d+")


@dataclass(frozen=True)
class Block:
    """One block of a page, with the line of the page that it begins in."""

    kind: str
    content: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text[: m.start()].count("\n") + 1) for m in _BLOCK.finditer(text)]


def follow(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Do all that a page says, in a folder, and return the names of its Python session."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    names: dict[str, object] = {"__name__": "__tutorial__"}
    said: str | None = ""
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.kind == "text":
            if said is not None and not same(said, block.content):
                pytest.fail(f"{where}: printed was\n{said}\nand the page says\n{block.content}")
        elif named := _FILE.match(block.content):
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.content, encoding="utf-8")
        elif block.kind == "python":
            missing = [m for m in re.findall(r"^import (\w+)", block.content, re.M) if not importlib.util.find_spec(m)]
            if missing:  # an extra, installed where `make test-extras` runs
                said = None
                continue
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * block.line + block.content, str(page), "exec"), names)
            said = out.getvalue()
        elif block.kind == "sh":
            for line in commands(block.content):
                said = command(line, where)
    return names


def commands(content: str) -> list[list[str]]:
    """Return the commands of a block: a line each, or several that end in a backslash."""
    joined = content.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def command(words: list[str], where: str) -> str:
    """Run krossfuse in this process and return what it printed; any other command is an error of the page."""
    from hydra.core.global_hydra import GlobalHydra

    assert words[0] == "krossfuse", f"{where}: {words[0]} is no command of ours"
    GlobalHydra.instance().clear()
    with contextlib.redirect_stdout(io.StringIO()) as out, mock.patch.object(sys, "argv", words):
        try:
            main()
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{where}: {' '.join(words)} ended with {end.code}")
    return out.getvalue()


def same(printed: str, stated: str) -> bool:
    """Whether an output is as a page states it.

    >>> same("a 1.00 b" + chr(10) + "c", "a 1.01 b" + chr(10) + "..."), same("a 1.00", "a 1.1"), same("a", "b")
    (True, False, False)
    """
    parts = [part.strip("\n").splitlines() for part in re.split(r"^\.\.\.$", stated, flags=re.MULTILINE)]
    lines = printed.strip("\n").splitlines()
    if len(parts) == 1:
        return len(lines) == len(parts[0]) and all(map(_same_line, lines, parts[0]))
    for part in parts:
        at = next((i for i in range(len(lines)) if all(map(_same_line, lines[i : i + len(part)], part))), None)
        if at is None or len(lines[at:]) < len(part):
            return False
        lines = lines[at + len(part) :]
    return True


def _same_line(printed: str, stated: str) -> bool:
    printed, stated = (re.sub("─+", "─", " ".join(line.split())) for line in (printed, stated))  # whatever the width
    if _NUMBER.sub("0", printed) != _NUMBER.sub("0", stated):
        return False
    return all(map(_near, map(float, _NUMBER.findall(printed)), map(float, _NUMBER.findall(stated))))


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 0.02 * max(abs(a), abs(b)) + 1e-9
