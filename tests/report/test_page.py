from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from krossfuse.core.errors import ConfigError
from krossfuse.report.command import main
from krossfuse.report.page import report
from krossfuse.results.errors import ResultsError
from krossfuse.results.snapshot import make_snapshot, save_snapshot
from krossfuse.results.writer import RunWriter


@pytest.fixture
def complete(quickstart: Path, sweep: Any) -> Path:
    """A sweep with all that a report can show: a snapshot a run, few shots, clustering."""
    labels = torch.arange(36) % 3
    generator = torch.Generator().manual_seed(0)
    psi, gamma, text = (torch.randn(36, 8, generator=generator) + labels[:, None] for _ in range(3))
    for folder in sweep.written:
        snapshot = make_snapshot(
            labels,
            ["a", "b", "c"],
            cross_modal=psi,
            experts={"dino": gamma},
            fused=torch.cat([psi, gamma], dim=1),
            text_cross_modal=text,
            text_fused=torch.cat([text, 0 * text], dim=1),
            text_of=torch.arange(36),
            label_set="group",
        )
        save_snapshot(snapshot, folder)
    shots = [
        {"shots": k, "form": form, "subset_seed": s, "shift": 0.05 * k + 0.01 * s}
        for k in (1, 2)
        for form in ("I", "I+T")
        for s in (1, 2)
    ]
    clusters = [{"space": "embedding/kmeans", "subset_seed": s, "shift": 0.01 * s} for s in (0, 1)]
    for fusion in ("cross_modal", "concatenation"):
        sweep.run(fusion, {"group": 0.4}, protocols=shots, deterministic=True)
        folder = sweep.run(fusion, {"group": 0.4}, protocols=clusters, deterministic=True)
        path = folder / "results.jsonl"
        path.write_text(path.read_text().replace('"few_shot"', '"clustering"'))
    return sweep.folder


def page_data(page: str) -> dict[str, Any]:
    """Return what a page's leaderboard knows."""
    (text,) = re.findall(r'<script type="text/plain" id="data">(.*?)</script>', page)
    return dict(json.loads(gzip.decompress(base64.b64decode(text))))


PICTURES = {
    "linear_against_zero_shot.png",
    "accuracy_against_dimension.png",
    "few_shot.png",
    "clustering.png",
    "kernels.png",
    "similarities.png",
}


def quiet() -> Console:
    return Console(width=120, quiet=True)


def test_a_sweeps_report_is_complete_and_needs_nothing_else(complete: Path) -> None:
    before = {path: path.read_bytes() for path in complete.rglob("*") if path.is_file()}
    written = report(complete, console=quiet())
    assert {path.name for path in written} == PICTURES | {"results.csv", "few_shot.csv", "results.md", "report.html"}
    assert all(path.parent == complete / "report" for path in written)
    assert {path: path.read_bytes() for path in before} == before
    page = (complete / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http://" not in page
    assert "https://" not in page
    for text in ("RP-KrossFuse, exact", "75.7 ±5.1", "better, p =", "Few-shot"):
        assert text in page, text
    held = page_data(page)
    for text in (
        "method: rp_krossfuse",
        "n_test: 240",
        "fusion:\n  method: rp_krossfuse\n  dim: 1500\n  alignment: exact\n  C: 1.0",
    ):
        assert text in held["texts"], text
    assert any(text.startswith("torch ") for text in held["texts"])
    assert len(pd.read_csv(complete / "report" / "results.csv")) == 7 * 4 + 2 * 4 + 2


def test_reporting_twice_gives_the_same_tables_and_pages(quickstart: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        report(quickstart, tmp_path / name, formats=("csv", "md", "html"), pictures=())
    for name in ("results.csv", "results.md", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_one_run_has_a_report_too(quickstart: Path) -> None:
    written = report(quickstart / "0", console=quiet())
    assert {path.name for path in written} >= {"results.csv", "report.html", "linear_against_zero_shot.png"}


def test_unfinished_and_failed_runs_are_named(sweep: Any) -> None:
    sweep.run("cross_modal", {"group": 0.5})
    sweep.run("concatenation", {"group": 0.6}, error=RuntimeError("out of memory"))
    RunWriter(sweep.folder / "2")
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    report(sweep.folder, formats=("terminal", "html"), pictures=(), console=console)
    expected = "not finished, so measurements may be missing: 1 failed (RuntimeError: out of memory); 2 unfinished"
    assert expected in console.export_text()
    assert expected in (sweep.folder / "report" / "report.html").read_text()


def test_names_from_outside_are_escaped(sweep: Any) -> None:
    sweep.run("cross_modal", {"<script>alert(1)</script>": 0.5})
    report(sweep.folder, formats=("html",), pictures=())
    page = (sweep.folder / "report" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


NAMES = "<script>alert(1)</script> [x](y) *b* `c` a|b $x$ [red]z[/red]"


def test_markdown_holds_names_as_they_are(sweep: Any) -> None:
    sweep.run("cross_modal", {NAMES: 0.5}, data="<b>data</b>")
    sweep.run(NAMES, {NAMES: 0.5}, protocols=[{"shots": 1, "form": "I", "subset_seed": 1}], data="<b>data</b>")
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report(sweep.folder, formats=("md", "terminal"), pictures=(), console=console)
    text = (sweep.folder / "report" / "results.md").read_text()
    assert "<" not in text.replace("<br>", "")
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \[x\](y) \*b\* \`c\` a\|b \$x\$" in text
    shown = console.export_text()
    assert "[red]z[/red]" in shown
    assert "<b>data</b>" in shown


def test_any_row_can_be_the_baseline(quickstart: Path, capsys: Any) -> None:
    def verdicts(*arguments: str) -> Any:
        assert main([str(quickstart), "--format", "csv", "terminal", "--figures", "kernels", *arguments]) == 0
        return pd.read_csv(quickstart / "report" / "results.csv")

    by_default = verdicts()
    assert set(by_default["baseline"]) == {"Cross-modal alone (256)"}
    by_name, by_number = verdicts("--baseline", "Concatenation"), verdicts("--baseline", "3")
    pd.testing.assert_frame_equal(by_name, by_number)
    assert "Difference to Concatenation:" in capsys.readouterr().out
    compared = by_name.dropna(subset=["difference"])
    assert set(compared["label"]) == set(by_name["label"]) - {"Concatenation"}
    means = by_name.set_index(["label", "dim", "probe", "label_set"])["mean"]
    for _, row in compared.iterrows():
        base = means[("Concatenation", 1536, row["probe"], row["label_set"])]
        assert row["difference"] == pytest.approx(row["mean"] - base)
    with pytest.raises(ConfigError, match=r"several rows .* 6: RP-KrossFuse, exact \(768\); 7"):
        verdicts("--baseline", "rp-krossfuse, exact")
    assert len(verdicts("--baseline", "RP-KrossFuse, exact (1500)")) == len(by_default)
    with pytest.raises(ConfigError, match=r"no row 'Concat'.*3: Concatenation \(1536\)"):
        verdicts("--baseline", "Concat")
    with pytest.raises(ConfigError, match="no row 12"):
        verdicts("--baseline", "12")


def console_of(width: int = 200) -> Console:
    return Console(width=width, record=True, file=open("/dev/null", "w"))


def test_several_baselines_have_a_table_of_differences_each(quickstart: Path, tmp_path: Path) -> None:
    console = console_of(120)
    names = ["cross_modal", "Image expert alone", "RP-KrossFuse, exact (1500)"]
    report(
        quickstart, tmp_path, formats=("terminal", "md", "csv", "html"), pictures=(), baseline=names, console=console
    )
    shown = console.export_text()
    compared = pd.read_csv(tmp_path / "comparisons.csv")
    assert list(dict.fromkeys(compared["baseline"])) == [
        "Cross-modal alone (256)", "Image expert alone (1280)", "RP-KrossFuse, exact (1500)"
    ]  # fmt: skip
    results = pd.read_csv(tmp_path / "results.csv")
    means = results.set_index(["label", "dim", "probe", "label_set"])["mean"]
    for _, row in compared.iterrows():
        label, _, dim = row["baseline"].rpartition(" (")
        base = means[(label, int(dim[:-1]), row["probe"], row["label_set"])]
        assert row["difference"] == pytest.approx(row["mean"] - base)
        assert row["difference_low"] < row["difference"] < row["difference_high"]
    for text in (shown, (tmp_path / "results.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "openmoji · openmoji_image: difference to Image expert alone" in text
        assert "openmoji · openmoji_image: difference to RP-KrossFuse, exact (1500)" in text
    assert "difference to cross-modal alone" not in shown, "that is in the main table"
    lines = shown[shown.index("difference to Image expert alone") :].splitlines()
    concatenation = next(line for line in lines if line.strip().startswith("Concatenation"))
    one = compared[(compared["baseline"] == "Image expert alone (1280)") & (compared["label"] == "Concatenation")]
    group = one[(one["probe"] == "linear_probe") & (one["label_set"] == "group")].iloc[0]
    half = (group["difference_high"] - group["difference_low"]) / 2
    assert f"{group['difference'] * 100:+.1f} ±{half * 100:.1f}" in concatenation
    assert not any(line.strip().startswith("Image expert alone") for line in lines[: lines.index(concatenation)])


def test_several_folders_are_one_report(quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    (quickstart / "0").rename(other)
    monkeypatch.chdir(tmp_path)
    written = report([quickstart, other], formats=("html", "csv"), pictures=())
    assert {path.parent.resolve() for path in written} == {tmp_path / "report"}
    assert len(pd.read_csv(tmp_path / "report" / "results.csv")) == 7 * 4
    held = page_data((tmp_path / "report" / "report.html").read_text())
    assert held["title"] == "KrossFuse: sweep, other"
    assert "other/other" in held["rows"]["runs"]


def test_programs_get_json_and_nothing_else(quickstart: Path, capsys: Any) -> None:
    (quickstart / "3" / "status.json").unlink()
    assert main([str(quickstart), "--json", "--baseline", "cross_modal", "Concatenation"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not (quickstart / "report").exists()
    assert {run["name"]: run["state"] for run in said["runs"]}["3"] == "unfinished"
    assert "3 unfinished" in " ".join(said["notes"])
    (board,) = said["boards"]
    rows = {(row["label"], row["dim"]): row for row in board["rows"]}
    best = rows["RP-KrossFuse, exact", 1500]
    measured = {(m["probe"], m["label_set"]): m for m in best["measurements"]}
    linear = measured["linear_probe", "group"]
    report(quickstart, formats=("csv",), pictures=(), baseline=["cross_modal", "Concatenation"])
    table = pd.read_csv(quickstart / "report" / "comparisons.csv")
    table = table[(table["label"] == "RP-KrossFuse, exact") & (table["dim"] == 1500) & (table["label_set"] == "group")]
    table = table[table["probe"] == "linear_probe"].set_index("baseline")
    assert set(linear["comparisons"]) == set(table.index) == {"Cross-modal alone (256)", "Concatenation (1536)"}
    for name, made in linear["comparisons"].items():
        assert made["difference"] == pytest.approx(table.loc[name, "difference"])
        assert made["p_value"] == pytest.approx(table.loc[name, "p_value"])
        assert made["verdict"] == table.loc[name, "verdict"]
    assert rows["Cross-modal alone", 256]["measurements"][0]["low"] > 0
    assert main([str(quickstart), "--json", "--format", "csv"]) == 0
    json.loads(capsys.readouterr().out)
    assert (quickstart / "report" / "results.csv").is_file()


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("70", 70), ("x", 120), ("0", 120)])
def test_what_is_piped_is_as_wide_as_columns_says(
    quickstart: Path, columns: str, width: int, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main([str(quickstart), "--format", "terminal"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert width - 25 < max(map(len, lines)) <= width
    assert sum(line.lstrip().startswith("method") for line in lines) == 1


def test_a_large_sweep_is_printed_in_part_and_says_where_the_rest_is(sweep: Any) -> None:
    for dim in range(1, 61):
        sweep.run("cca", {f"set {number}": 0.3 + dim / 100 for number in range(8)}, dim=dim)
    console = console_of(80)
    report(sweep.folder, formats=("terminal", "csv"), pictures=(), console=console)
    text = " ".join(console.export_text().split())
    assert "These are the best 40 of 60 rows in linear probe, set 0: krossfuse report FOLDER writes all of it" in text
    assert "No room here for linear probe, set" in text
    assert "zero shot" in text.partition("No room")[0], "every probe's first before any second one"
    assert len(pd.read_csv(sweep.folder / "report" / "results.csv")) == 60 * 16


def test_a_configuration_names_the_baselines_and_a_row_that_is_not_there_is_noted(quickstart: Path) -> None:
    for run in quickstart.iterdir():
        path = run / "config.yaml"
        path.write_text(path.read_text() + "report:\n  baselines: [concatenation, gate, rp_krossfuse, image_expert]\n")
    console = console_of()
    report(quickstart, formats=("terminal", "csv"), pictures=(), console=console)
    text = console.export_text()
    assert "Difference to Concatenation:" in text
    assert ": difference to Image expert alone" in text
    assert "openmoji has no row 'gate'" in text
    assert "'rp_krossfuse' is several rows of openmoji" in text
    assert set(pd.read_csv(quickstart / "report" / "results.csv")["baseline"]) == {"Concatenation (1536)"}
    report(quickstart, formats=("csv",), pictures=(), baseline=2)
    assert set(pd.read_csv(quickstart / "report" / "results.csv")["baseline"]) == {"Image expert alone (1280)"}


def test_rows_on_other_items_are_not_compared(sweep: Any) -> None:
    sweep.run("cross_modal", {"group": 0.6}, deterministic=True)
    folder = sweep.run("concatenation", {"group": 0.9}, deterministic=True)
    report(sweep.folder, formats=("csv",), pictures=())
    path = sweep.folder / "report" / "results.csv"
    assert set(pd.read_csv(path)["verdict"].dropna()) == {"better"}
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("  name: openmoji\n", "  name: openmoji\n  split_seed: 1\n"))
    report(sweep.folder, formats=("csv",), pictures=())
    assert pd.read_csv(path)["verdict"].dropna().empty, "as many items, but others"


def test_one_seed_and_more_seeds_are_said(sweep: Any) -> None:
    sweep.run("cross_modal", {"group": 0.6}, deterministic=True)
    sweep.run("gate", {"group": 0.9})
    for seed, accuracy in enumerate((0.60, 0.68, 0.70)):
        sweep.run("attn", {"group": accuracy}, seed=seed)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report(sweep.folder, formats=("terminal",), pictures=(), console=console)
    text = console.export_text()
    assert "† one seed of a method that depends on it" in text
    assert re.search(r"89\.\d ±\d\.\d† \+\d+\.\d ▲", text)
    assert re.search(r"More seeds would be needed to show a difference.*: \d+ for \+\d\.\d of ATTN \(64\)", text)


def test_nothing_to_report_says_why(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such folder"):
        report(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="no results in"):
        report(tmp_path)
    with RunWriter(tmp_path / "0"):
        pass
    with pytest.raises(ResultsError, match="its runs measured nothing"):
        report(tmp_path)
    RunWriter(tmp_path / "1")
    with pytest.raises(ResultsError, match="1 unfinished"):
        report(tmp_path)


def test_the_command_writes_what_is_asked_and_where(quickstart: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert (
        main([str(quickstart), "--out", str(out), "--format", "csv", "svg", "--figures", "linear_against_zero_shot"])
        == 0
    )
    assert {path.name for path in out.iterdir()} == {"results.csv", "linear_against_zero_shot.svg"}
    assert "2 files in" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="format='pgn' is not one of .*did you mean 'png'"):
        main([str(quickstart), "--format", "pgn"])
    with pytest.raises(ConfigError, match="did you mean 'kernels'"):
        main([str(quickstart), "--figures", "kernel"])
