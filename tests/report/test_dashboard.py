"""The page in a real headless Chromium: what a person does with it, and that it computes as the report does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser
from run_folders import Sweep

from krossfuse.report.boards import arranged, compare_with
from krossfuse.report.page import report
from krossfuse.results.aggregate import MEASURE, cells
from krossfuse.results.index import open_runs
from krossfuse.results.snapshot import make_snapshot, save_snapshot

SCRIPT = "<script>document.title='broken'</script><b>bold</b>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets; dimensions, seeds, shots and folds; names that are markup; kernels."""
    sweep = Sweep(tmp_path_factory.mktemp("study") / "sweep")
    for data in ("openmoji", SCRIPT):
        sweep.run("cross_modal", {"group": 0.60, "subgroup": 0.40}, dim=256, deterministic=True, data=data)
        sweep.run("image_expert", {"group": 0.70}, dim=1280, deterministic=True, data=data)
        for dim in (64, 512, 2048):
            for seed in (0, 1, 2):
                gain = np.log2(dim) / 100 + 0.01 * seed
                sweep.run("rp_krossfuse", {"group": 0.62 + gain, "subgroup": 0.5 + gain}, dim=dim, seed=seed, data=data)
    sweep.run(SCRIPT, {"group": 0.3, SCRIPT: 0.2}, title=SCRIPT, alignment=SCRIPT)
    shots = [
        {"shots": k, "form": "I", "subset_seed": s, "shift": 0.05 * k + 0.01 * s} for k in (1, 2, 4) for s in (1, 2, 3)
    ]
    sweep.run("cross_modal", {"group": 0.4}, dim=256, protocols=shots, deterministic=True)
    for seed in (0, 1):
        sweep.run("rp_krossfuse", {"group": 0.45}, dim=512, seed=seed, protocols=shots)
    labels = torch.arange(90) % 3
    draw = torch.Generator().manual_seed(0)
    psi, gamma = (torch.randn(90, 8, generator=draw) + labels[:, None] for _ in range(2))
    fused = torch.cat([psi, gamma], dim=1)
    snapshot = make_snapshot(
        labels, ["cat", SCRIPT, "dog"], cross_modal=psi, experts={"dino": gamma}, fused=fused, label_set="group"
    )
    save_snapshot(snapshot, sweep.written[8])
    report(sweep.folder, formats=("html",), pictures=())
    return sweep.folder


@pytest.fixture
def page(browser: Browser, study: Path) -> Iterator[Browser]:
    browser.size(1280, 900)
    browser.open((study / "report" / "report.html").as_uri())
    yield browser
    # Software rendering of WebGL says how slow it is; nothing else may be said.
    assert [line for line in browser.said if "GL Driver Message" not in line] == []
    local = [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert local == [], "the page needs nothing from elsewhere"


def names(page: Browser) -> list[str]:
    return [str(name) for name in page.run("[...document.querySelectorAll('#rows .open')].map(e => e.textContent)")]


def column(page: Browser, title: str, part: str = "") -> list[str]:
    return [
        str(text)
        for text in page.run(
            f"""(() => {{ const i = [...document.querySelectorAll('#head th')].findIndex(
              e => e.textContent.replace(/[▴▾]/g, '') === {json.dumps(title)});
              return [...document.querySelectorAll('#rows tr')].map(
                r => (r.cells[i].querySelector({json.dumps(part)} || null) ?? r.cells[i]).textContent); }})()"""
        )
    ]


def choose(page: Browser, control: str, value: str) -> None:
    page.run(
        f"(() => {{ const e = document.getElementById({json.dumps(control)}); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input')); })()"
    )


def sort(page: Browser, title: str) -> str:
    """Click a heading and return its ``aria-sort``."""
    return str(
        page.run(
            f"""(() => {{ const find = () => [...document.querySelectorAll('#head th')].find(
              e => e.textContent.replace(/[▴▾]/g, '') === {json.dumps(title)});
              find().querySelector('button').click(); return find().getAttribute('aria-sort'); }})()"""
        )
    )


def test_headings_sort_and_say_so(page: Browser) -> None:
    title = "linear probe, group"
    values = [float(text.split()[0]) for text in column(page, title, ".value") if text != "–"]
    assert values == sorted(values, reverse=True), "the best first"
    assert sort(page, title) == "ascending"
    values = [float(text.split()[0]) for text in column(page, title, ".value") if text != "–"]
    assert values == sorted(values)
    assert sort(page, title) == "descending"
    assert sort(page, "dim") == "ascending"
    dims = list(map(int, column(page, "dim")))
    assert dims == sorted(dims)
    assert page.run("document.activeElement.dataset.key") == "dim", "the focus stays where it was"
    assert page.run("document.querySelectorAll('#head [aria-sort]:not([aria-sort=none])').length") == 1


def test_rows_are_searched_and_filtered(page: Browser) -> None:
    everything = len(names(page))
    choose(page, "search", "rp_kross 2048")
    assert set(column(page, "dim")) == {"2048"}
    assert page.run("document.getElementById('count').textContent") == f"2 of {everything} rows"
    choose(page, "search", "no such row")
    assert page.run("!document.getElementById('nothing').hidden")
    page.run("document.getElementById('clear').click()")
    assert len(names(page)) == everything
    choose(page, "filter-data", SCRIPT)
    assert set(column(page, "data")) == {SCRIPT}
    choose(page, "filter-method", "image_expert")
    assert len(names(page)) == 1
    page.run("document.getElementById('clear').click()")
    choose(page, "dim-low", "300")
    choose(page, "dim-high", "1300")
    assert set(map(int, column(page, "dim"))) == {512, 1280}
    page.run("document.getElementById('clear').click()")
    choose(page, "filter-probe", "few_shot")
    assert len(names(page)) == 2
    heads = page.run("[...document.querySelectorAll('#head th')].map(e => e.textContent)")
    assert any("shots=4" in head for head in heads)
    assert not any("linear" in head for head in heads)


DIFFERENCE = re.compile(r"(~?)([+−][\d.]+) (.)(.*)")


def shown_differences(page: Browser, title: str) -> list[tuple[str, str]]:
    found = []
    for text in column(page, title, ".difference"):
        if match := DIFFERENCE.fullmatch(text):
            found.append((match[2].replace("−", "-"), match[4]))
    return found


@pytest.mark.parametrize(("label", "dim"), [("rp_krossfuse", 512), ("image_expert", 1280), ("cross_modal", 256)])
def test_any_row_can_be_the_baseline_and_the_page_computes_as_the_report_does(
    page: Browser, study: Path, label: str, dim: int
) -> None:
    """Every difference, interval, p-value and verdict of the page, against those of Python."""
    script = f"""(() => {{
      const t = window.krossfuse.table, m = t.model;
      const row = m.fusion.findIndex((f, r) => f === {json.dumps(label)} && m.dim[r] === {dim});
      const base = m.baselineOf(row), kept = m.data.compared; m.data.compared = []; m.comparisons.clear();
      const all = [];
      m.measures.forEach((_, k) => m.compare(base, k).forEach((one, c) => {{
        const [low, high] = m.interval(one);
        all.push([m.id[m.cells.row[c]], m.measures[k].title, one.difference, low, high, one.p, one.verdict,
          one.paired]);
      }}));
      m.data.compared = kept; m.comparisons.clear();
      return all; }})()"""
    page_says = {(str(i), str(t)): rest for i, t, *rest in page.run(script)}
    verdicts = ["no difference shown", "better", "worse", "different"]
    expected = {}
    with open_runs([study]) as (runs, _):
        for board in arranged(cells(runs)[0]):
            base = next((row for row in board.rows if (row.fusion, row.dim) == (label, dim)), None)
            titles = titles_of(page)
            for row in compare_with(board, base).rows:
                identity = json.dumps(
                    [board.data, board.pair, row.name, row.dim], ensure_ascii=False, separators=(",", ":")
                )
                for key, made in row.against.items():
                    expected[identity, titles[tuple(map(str, key))]] = made
    assert page_says.keys() == expected.keys()
    assert len(expected) > 8
    for key, (difference, low, high, p, verdict, paired) in page_says.items():
        made = expected[key]
        assert paired
        assert (difference, low, high) == pytest.approx((made.difference, made.low, made.high), abs=2e-6)
        assert p == pytest.approx(made.p_value, rel=1e-4, abs=1e-9)
        assert verdicts[verdict] == made.verdict


def titles_of(page: Browser) -> dict[tuple[str, ...], str]:
    fields = list(MEASURE)
    measures = page.run(
        f"window.krossfuse.table.model.measures.map(m => [{json.dumps(fields)}.map(f => m[f]), m.title])"
    )
    return {tuple(key): title for key, title in measures}


def test_choosing_a_baseline_changes_every_difference_and_can_be_undone(page: Browser) -> None:
    title = "linear probe, group"
    before = shown_differences(page, title)
    choose(page, "search", "image_expert openmoji")
    assert page.run("document.querySelector('#rows .base').getAttribute('aria-pressed')") == "false"
    page.run("document.querySelector('#rows .base').click()")
    assert page.run("document.querySelector('#rows .base').getAttribute('aria-pressed')") == "true"
    choose(page, "search", "")
    text = str(page.run("document.getElementById('baseline').textContent"))
    assert "Differences to Image expert alone (1280)" in text
    assert "Paired on the same test items" in text
    after = shown_differences(page, title)
    assert after
    assert after != before
    assert all(verdict in ("better", "worse", "no difference shown") for _, verdict in after)
    assert page.run("document.querySelectorAll('#rows tr.baseline').length") == 2, "the same method on the other data"
    page.run("document.getElementById('reset').click()")
    assert shown_differences(page, title) == before


def test_differences_without_items_scores_are_said_not_to_be_paired(page: Browser) -> None:
    script = """(() => { const t = window.krossfuse.table, m = t.model;
      m.data.compared = []; m.cells.offset.fill(-1); m.comparisons.clear(); t.changed(); })()"""
    paired = shown_differences(page, "linear probe, group")
    page.run(script)
    assert "not paired (marked ~)" in str(page.run("document.getElementById('baseline').textContent"))
    texts = [text for text in column(page, "linear probe, group", ".difference") if DIFFERENCE.fullmatch(text)]
    assert texts
    assert all(text.startswith("~") for text in texts)
    assert [one for one, _ in shown_differences(page, "linear probe, group")] == [one for one, _ in paired]


def test_a_row_opens_with_configuration_protocol_and_pictures(page: Browser) -> None:
    choose(page, "search", "rp_krossfuse 2048 openmoji")
    page.run("document.querySelector('#rows .open').focus()")
    page.press("Enter", 13, "\r")
    assert page.run("document.getElementById('details').open")
    text = str(page.run("document.getElementById('details').textContent"))
    for part in ("2048 dimensions", "method: rp_krossfuse", "n_test: 240", "torch ", "seeds and items", "0 1 2"):
        assert part in text, part
    assert page.wait("document.querySelectorAll('#row-kernels .hm').length") == 5
    page.press("Escape", 27)
    assert not page.run("document.getElementById('details').open")
    assert page.run("document.activeElement.classList.contains('open')"), "the focus is back"


def test_every_picture_is_drawn_of_the_rows_that_are_left(page: Browser) -> None:
    for name in ("dimension", "trade", "shots", "pareto", "parallel", "kernels"):
        page.run(f"document.getElementById('{name}').scrollIntoView()")
        page.wait(f"document.querySelector('#{name}-chart .main-svg') || '{name}' === 'parallel' &&"
                  f" document.getElementById('{name}-chart').textContent.includes('WebGL')")  # fmt: skip
        assert (
            page.run(f"document.getElementById('{name}-chart').getAttribute('aria-label') !== null")
            or name == "parallel"
        )
    front = page.run("[...document.querySelectorAll('#pareto-list li')].map(e => e.textContent)")
    assert len(front) >= 3
    page.run("document.getElementById('dimension').scrollIntoView()")
    choose(page, "search", "image_expert")
    page.wait("document.querySelector('#dimension .said').textContent.startsWith('2 rows')")
    assert page.run("document.querySelectorAll('#dimension-chart .modebar-btn').length") == 6, "none that uploads"


def test_the_pareto_front_holds_what_nothing_is_better_than(page: Browser) -> None:
    draw = np.random.default_rng(0)
    points = draw.integers(0, 30, size=(300, 2)).tolist()
    front = page.run(f"window.krossfuse.paretoFront({json.dumps(points)}, 'lower', 'higher')")
    kept = {tuple(points[i]) for i in front}
    for x, y in map(tuple, points):
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in kept) == (not beaten)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(page: Browser, study: Path, dark: bool) -> None:
    page.size(400, 800, dark=dark)
    page.open((study / "report" / "report.html").as_uri())
    for name in ("dimension", "pareto", "kernels"):
        page.run(f"document.getElementById('{name}').scrollIntoView()")
        page.wait(f"document.querySelector('#{name}-chart .main-svg')")
    assert page.run("document.documentElement.scrollWidth") == 400
    page.run("document.querySelector('#rows .open').click()")
    assert page.run("document.getElementById('details').scrollWidth <= 400")
    assert page.run("document.documentElement.scrollWidth") == 400


def contrast(page: Browser, selector: str) -> float:
    script = f"""(() => {{ const light = c => {{ const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => {{ v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }});
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; }};
      const e = document.querySelector({json.dumps(selector)});
      const a = light(getComputedStyle(e).color), b = light(getComputedStyle(document.body).backgroundColor);
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }})()"""
    return float(page.run(script))


def test_dark_and_light_follow_the_user_and_are_readable(page: Browser) -> None:
    grounds = []
    for dark in (False, True):
        page.size(1280, 900, dark=dark)
        for selector in ("h1", "#summary", "#rows .open", "#rows .difference", "#rows .better", "#rows .worse"):
            assert contrast(page, selector) >= 4.5, (selector, dark)
        grounds.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_names_are_texts_wherever_they_stand(page: Browser, study: Path) -> None:
    assert SCRIPT not in (study / "report" / "report.html").read_text()
    choose(page, "filter-method", SCRIPT)
    assert any(SCRIPT in name for name in names(page))
    page.run("document.querySelector('#rows .open').click()")
    assert SCRIPT in str(page.run("document.getElementById('details').textContent"))
    page.run("document.getElementById('details').close()")
    page.run("document.getElementById('clear').click()")
    for name in ("dimension", "parallel"):
        page.run(f"document.getElementById('{name}').scrollIntoView()")
        page.wait(f"document.querySelector('#{name}-chart').textContent.length > 20")
    assert page.run("document.querySelectorAll('main b, dialog b, main script').length") == 0
    assert str(page.run("document.title")).startswith("KrossFuse")


def test_everything_can_be_reached_by_keyboard_and_has_a_name(page: Browser) -> None:
    unnamed = page.run("""[...document.querySelectorAll('button, input, select, [tabindex="0"]')].filter(e =>
      e.checkVisibility() && !e.closest('.modebar') && !(e.textContent.trim() || e.getAttribute('aria-label')
        || e.getAttribute('aria-labelledby') || e.labels?.length)).map(e => e.outerHTML)""")
    assert unnamed == []
    page.run("document.body.focus()")
    page.press("Tab", 9)
    assert page.run("document.activeElement.className") == "skip"
    page.press("Tab", 9)
    assert page.run("document.activeElement.id") == "search"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.run("document.querySelectorAll('table th:not([scope])').length") == 0


def test_more_rows_than_a_page_are_paged(browser: Browser, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep")
    for dim in range(1, 121):
        sweep.run("cca", {"group": 0.5}, dim=dim)
    report(sweep.folder, formats=("html",), pictures=())
    browser.open((sweep.folder / "report" / "report.html").as_uri())
    assert len(names(browser)) == 50
    assert browser.run("document.getElementById('page').textContent") == "page 1 of 3"
    browser.run("document.getElementById('next').click(); document.getElementById('next').click()")
    assert len(names(browser)) == 20
    assert browser.run("document.getElementById('next').disabled")
    choose(browser, "search", "cca 7")
    assert browser.run("document.getElementById('previous').disabled"), "a filter begins at the first page"
    assert browser.said == []
    plain: Any = browser.run("[...document.querySelectorAll('main > details > .scroll tbody tr')].length")
    assert plain == 24, "the plain tables show the best"
