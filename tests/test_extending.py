"""docs/extending.md as a user follows it: every block of it a file in a folder of hers, against the wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder with what the wheel installs, and nothing else of this project."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(repository)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    installed = folder / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(built)]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    return installed


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The blocks of the document that name a file, written to it."""
    folder = tmp_path_factory.mktemp("mine")
    text = (repository / "docs" / "extending.md").read_text(encoding="utf-8")
    for name, content in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, flags=re.DOTALL):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def krossfuse(wheel: Path, folder: Path, *arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(wheel),
        "KROSSFUSE_STORE": str(folder / "store"),
        "PYTHONSAFEPATH": "1",  # as the console script: the folder one stands in is not there by itself
    }
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "krossfuse", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def records(folder: Path, name: str) -> list[dict[str, object]]:
    files = sorted((folder / "runs" / name).rglob("results.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


OWN = ["data=colours", "pair=clip_and_colour", "logger=none", "extraction.progress=false"]
CASES = {
    "all": [*OWN, "fusion=weighted_pair", "probe=[zero_shot,mean_norm]", "save_fusion=true"],
    "sketch": [*OWN, "fusion/sketch=first_products", "fusion.alignment=exact", "fusion.dim=300", "probe=[mean_norm]"],
    "source": ["data=two_clouds", "fusion=concatenation", "probe=[knn]", "logger=none"],
    "job": ["data=colours", "job=count", "logger=none"],
}


@pytest.mark.parametrize("case", CASES)
def test_each_of_a_users_own_runs(case: str, wheel: Path, own_folder: Path) -> None:
    done = krossfuse(wheel, own_folder, "--config-dir", "conf", *CASES[case], f"name={case}")
    assert done.returncode == 0, done.stdout + done.stderr
    if case == "job":
        (counts,) = (own_folder / "runs" / "job").rglob("counts.drawn.json")
        assert json.loads(counts.read_text())["test:image"] == 12
        return
    found = records(own_folder, case)
    assert found
    if case == "all":
        assert {record["metric"] for record in found} >= {"accuracy", "mean_norm"}
        assert "Weighted pair" in done.stdout


def test_a_saved_fusion_of_ones_own_is_read_where_its_module_is_named(wheel: Path, own_folder: Path) -> None:
    if not (own_folder / "runs" / "all").is_dir():
        krossfuse(wheel, own_folder, "--config-dir", "conf", *CASES["all"], "name=all")
    (saved,) = (own_folder / "runs" / "all").rglob("fusion.safetensors")
    start = f"import sys, krossfuse; sys.path.append({str(own_folder)!r}); path = {str(saved)!r}\n"
    refused = krossfuse(wheel, own_folder, code=start + "krossfuse.load_fusion(path)")
    assert "KROSSFUSE_PLUGINS" in refused.stderr
    read = krossfuse(wheel, own_folder, code=start + "print(krossfuse.load_fusion(path, plugins=['methods']).weight)")
    assert read.stdout.strip() == "1.0", read.stderr


def test_hints_know_a_users_own_keys(wheel: Path, own_folder: Path) -> None:
    done = krossfuse(wheel, own_folder, "--config-dir", "conf", *OWN, "fusion=weighted_pair", "fusion.wieght=2")
    assert done.returncode == 2
    assert "did you mean 'fusion.weight'" in done.stderr
