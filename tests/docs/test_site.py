"""The documentation: its links, its reference and, where `make docs` has built it, the site in a browser."""

from __future__ import annotations

import doctest
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from browser import Browser

import krossfuse

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SITE = ROOT / "site"
PAGES = sorted(p for p in DOCS.rglob("*.md"))
sys.path.insert(0, str(DOCS / "site"))

import configuration  # noqa: E402
import pictures  # noqa: E402
import reference  # noqa: E402

MADE = ("pictures/",)
"""What the build draws, so that no file is there."""


def slugs(text: str) -> set[str]:
    """Return the anchors of a page's headings, as the site and forges make them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.*)$", plain, flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h.replace("`", "").lower()).strip()) for h in found}


def test_examples_of_what_makes_the_reference() -> None:
    tried = doctest.testmod(configuration)
    assert tried.attempted >= 2
    assert not tried.failed


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        path, _, anchor = target.partition("#")
        if "://" in target or path.startswith(MADE):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in slugs(file.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = set(re.findall(r": (\S+\.md)$", text, flags=re.MULTILINE))
    assert nav == {page.relative_to(DOCS).as_posix() for page in PAGES}


def test_every_group_and_every_key_is_in_the_reference() -> None:
    groups = {f.parent.relative_to(ROOT / "conf").as_posix() for f in (ROOT / "conf").rglob("*.yaml")}
    assert groups - set(configuration.GROUPS) <= {".", "hydra/job_logging", "hydra/hydra_logging"}
    assert set(configuration.GROUPS) <= groups

    def leaves(value: object, above: tuple[str, ...] = ()) -> list[str]:
        if (
            isinstance(value, dict)
            and value
            and not (len(value) > configuration.MANY and not any(map(_deep, value.values())))
        ):
            return [leaf for key, deeper in value.items() for leaf in leaves(deeper, (*above, str(key)))]
        return [".".join(above)]

    for file in (ROOT / "conf").rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        content.pop("defaults", None)
        wanted = [leaf for leaf in leaves(content) if leaf]
        assert set(wanted) <= {key.name for key in configuration.keys(text)}, file


def _deep(value: object) -> bool:
    return isinstance(value, dict | list)


def test_the_reference_of_a_group_has_values_and_comments() -> None:
    page = configuration.group_page(ROOT / "conf", "fusion").replace("<wbr>", "")
    assert "| <code>fusion.alignment</code> | `published` | published (symmetrised), offset (constant), exact" in page
    assert "| <code>fusion/sketch</code> | `uniform` |" in page
    probe = configuration.group_page(ROOT / "conf", "probe").replace("<wbr>", "")
    assert "| <code>probe.federated_probe.local.lr</code> | `10.0` | large for unit embeddings" in probe
    assert "| <code>probe.linear_probe.grid</code> | `[0.01, 0.1, 1, 10, 100, 1000]` |" in probe


def test_every_public_class_is_in_the_reference() -> None:
    documented = {name for page in reference.PAGES for name in reference.documented(ROOT, page)}
    for name in reference.exports(ROOT, "krossfuse"):
        assert reference.home(ROOT, name) in documented, name
    assert len(reference.exports(ROOT, "krossfuse")) == len(krossfuse.__all__) - 1  # the version is no class
    for file in (ROOT / "conf").rglob("*.yaml"):
        for target in re.findall(r"_target_: (krossfuse\.[\w.]+)", file.read_text(encoding="utf-8")):
            assert reference.home(ROOT, target) in documented, f"{file}: {target}"
    for package in (p for page in reference.PAGES for p in page.packages):
        if package != "krossfuse.flower":  # an extra
            module = sys.modules[package] if package in sys.modules else __import__(package, fromlist=["_"])
            classes = {n for n in getattr(module, "__all__", ()) if isinstance(getattr(module, n), type)}
            assert classes <= {name.rpartition(".")[2] for name in documented}, package


def test_the_made_kernels_are_what_the_picture_says() -> None:
    first, second = pictures.parents()

    def mean(kernel: list[list[float]], a: int, b: int) -> float:
        n = len(kernel) // 4
        cells = [kernel[i][j] for i in range(a * n, a * n + n) for j in range(b * n, b * n + n) if i != j]
        return sum(cells) / len(cells)

    product = [[a * b for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
    assert mean(first, 0, 1) > 0.6 > 0.2 > abs(mean(first, 1, 2))
    assert mean(second, 1, 2) > 0.6 > 0.2 > abs(mean(second, 0, 1))
    for a in range(4):
        assert mean(product, a, a) > 0.5
        assert all(abs(mean(product, a, b)) < 0.25 for b in range(4) if b != a)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of the built site, on the loopback."""
    if not (SITE / "index.html").is_file():
        pytest.skip("make docs builds the site that this test looks at")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def visit(browser: Browser, address: str) -> None:
    browser.requests, browser.said = [], []
    browser.send("Page.navigate", url=address)
    browser.wait(f"location.href === {address!r} && document.readyState === 'complete'")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_pages_in_a_browser(browser: Browser, served: str, width: int) -> None:
    """No page is wider than the window, misses a picture or style, complains, or asks another machine for anything."""
    browser.size(width, 900)
    for page in sorted(SITE.rglob("*.html")):
        where = page.relative_to(SITE).as_posix()
        visit(browser, served + where)
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), f"{where} exceeds {width}"
        assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), where
        assert browser.run("document.querySelector('h1').textContent.length > 0"), where
        assert not [asked for asked in browser.requests if not asked.startswith((served, "data:", "blob:"))], where
        assert not browser.said, f"{where}: {browser.said}"


@pytest.mark.slow
def test_the_search_finds_an_option(browser: Browser, served: str) -> None:
    browser.size(1280, 900)
    visit(browser, served + "index.html?q=expert_weight")
    browser.wait("document.querySelectorAll('.md-search-result__item').length > 0")
    assert browser.run("document.querySelector('.md-search-result__list').textContent.includes('expert_weight')")
