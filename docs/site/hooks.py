"""What `mkdocs build` makes beside the written pages: the references, the pictures, and links that leave the site."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import configuration
import pictures
import reference

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
CONFIGURATION, PYTHON = "reference/configuration", "reference/python"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made into the navigation, below the entries that stand for them."""
    made = {
        "Configuration": [f"{CONFIGURATION}/index.md"]
        + [{group: f"{CONFIGURATION}/{configuration.page_name(group)}"} for group in configuration.GROUPS],
        "Python": [f"{PYTHON}/index.md"] + [{page.title: f"{PYTHON}/{page.file}.md"} for page in reference.PAGES],
    }

    def fill(entries: list[Any]) -> None:
        for entry in entries:
            for title, below in entry.items() if isinstance(entry, dict) else ():
                if title in made:
                    entry[title] = made[title]
                elif isinstance(below, list):
                    fill(below)

    assert config.nav is not None
    fill(config.nav)
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are made."""
    made = {
        f"{CONFIGURATION}/index.md": configuration.index_page(CONF),
        f"{PYTHON}/index.md": reference.index_text(ROOT),
    }
    for group in configuration.GROUPS:
        made[f"{CONFIGURATION}/{configuration.page_name(group)}"] = configuration.group_page(CONF, group)
    for page in reference.PAGES:
        made[f"{PYTHON}/{page.file}.md"] = reference.page_text(ROOT, page)
    for name, drawing in pictures.ALL.items():
        made[f"pictures/{name}.svg"] = drawing()
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave the folder of the pages to the reference of the file's group, or make them plain."""
    depth = page.file.src_uri.count("/")

    def follow(match: re.Match[str]) -> str:
        shown, target = match[1], match[2]
        above = re.match(r"(?:\.\./)*", target)
        assert above is not None
        if above[0].count("../") <= depth:
            return match[0]
        inside = Path(target[above.end() :].partition("#")[0])
        if not (ROOT / inside).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}, which is not there")
        if (index := {"conf": CONFIGURATION, "krossfuse": PYTHON}.get(inside.as_posix())) is not None:
            return f"[{shown}]({'../' * depth}{index}/index.md)"
        group = (inside if inside.suffix == "" else inside.parent).as_posix().removeprefix("conf/")
        if inside.parts[0] == "conf" and group in configuration.GROUPS:
            anchor = f"#{inside.stem}" if inside.suffix else ""
            return f"[{shown}]({'../' * depth}{CONFIGURATION}/{configuration.page_name(group)}{anchor})"
        return f"`{inside.as_posix()}`" if shown == inside.as_posix() else f"{shown} (`{inside.as_posix()}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)", follow, markdown)
