"""The report over many runs: seconds, CPU seconds and megabytes, and how long the page takes to answer a filter.

``python -m experiments.benchmarks.report --out FILE`` writes the JSON of :func:`measure`. The run folders are made by
:mod:`experiments.benchmarks.report_folders`; the report is that of the command, in a process of its own, first without
an index and then with it. The page is opened by an installed Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.benchmarks.report_folders import write_folders

RUNS = 10_000
FILTERS = (
    ("search", "input", "cca 512"),
    ("search", "input", ""),
    ("filter-method", "change", "gate"),
    ("filter-method", "change", ""),
    ("dim-low", "input", "1000"),
)


def measure(runs: int = RUNS, folder: Path | None = None) -> dict[str, float | None]:
    """Return what a report over so many runs costs.

    Args:
        runs: how many.
        folder: where the run folders are made, or lie already; None: in a temporary place.

    Returns:
        ``report_seconds_10000`` and ``report_cpu_seconds_10000`` of the first report of the folder, which makes the
        index; the same with ``again_`` before, of the next one; ``report_mb_10000``, the page; ``filter_seconds``, the
        slowest of some filters, until the page is painted (None without Chromium). The names say ``10000`` where
        ``runs`` is that, else the number.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return measure(runs, Path(scratch) / "sweep")
    if not folder.exists():
        write_folders(folder, runs)
    for index in folder.glob(".krossfuse-index.sqlite*"):
        index.unlink()
    figures: dict[str, float | None] = {}
    for prefix in ("", "again_"):
        wall, cpu = _reported(folder)
        figures |= {f"{prefix}report_seconds_{runs}": wall, f"{prefix}report_cpu_seconds_{runs}": cpu}
    page = folder / "report" / "report.html"
    figures[f"report_mb_{runs}"] = round(page.stat().st_size / 1e6, 2)
    figures["filter_seconds"] = filter_seconds(page)
    return figures


def _reported(folder: Path) -> tuple[float, float]:
    """Return the seconds and CPU seconds of ``krossfuse report FOLDER``."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "krossfuse", "report", str(folder), "--baseline", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(time.perf_counter() - began, 2), round(cpu, 2)


def filter_seconds(page: Path) -> float | None:
    """Return how long the page takes at most, from a filter's event until the rows that are left are painted.

    The page draws its table at once, and its pictures a moment later where they are in view.
    """
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from browser import chromium, started

    command = chromium()
    if command is None:
        return None
    slowest = 0.0
    with started(command) as browser:
        browser.size(1280, 900)
        browser.open(page.resolve().as_uri())
        for control, event, value in FILTERS:
            seconds = browser.run(
                f"""(async () => {{ const e = document.getElementById({json.dumps(control)});
                e.value = {json.dumps(value)};
                const began = performance.now(); e.dispatchEvent(new Event({json.dumps(event)}));
                await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
                return (performance.now() - began) / 1000; }})()"""
            )
            slowest = max(slowest, float(seconds))
    return round(slowest, 4)


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--folder", type=Path, help="where the run folders are made, or lie already")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.runs, arguments.folder), indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
