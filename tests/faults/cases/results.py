"""What runs leave: records that are damaged, torn, missing or hostile; ``krossfuse report``; disks and trackers."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.case import FAILED, Case, Outcome, measured
from faults.files import EMBEDDINGS, embeddings, run_folder, sweep_folder

RESULTS = "results"
SCRIPT = "<script>alert(1)</script>"


def report(
    name: str, *words: str | tuple[str, ...], run: tuple[str, ...] = ("run",), room: str = RESULTS,
    change: Callable[[Path], object] | None = None, **more: Any,
) -> Case:  # fmt: skip
    """Return a case of the command ``report`` on the folder of a real run, changed."""
    more.setdefault("files", run_folder(change))
    return Case(id=f"report-{name}", room=room, run=["report", *run], words=words, **more)


def lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    """Return what changes the lines of the records."""

    def edit(folder: Path) -> None:
        for path in folder.rglob("results.jsonl"):
            path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return edit


def fields(**values: Any) -> Callable[[Path], object]:
    """Return what sets fields of every record; None removes one."""

    def edit(old: list[str]) -> list[str]:
        new = []
        for line in old:
            record = json.loads(line)
            record.update(values)
            new.append(json.dumps({k: v for k, v in record.items() if v is not None}) + "\n")
        return new

    return lines(edit)


def reported(folder: Path, outcome: Outcome) -> None:
    assert (folder / "run/report/report.html").is_file()
    assert (folder / "run/report/results.csv").is_file()


def nothing_raw(folder: Path, outcome: Outcome) -> None:
    """Check that no page or table holds a script tag of a name."""
    reported(folder, outcome)
    for name in ("report.html", "results.md"):
        assert SCRIPT not in (folder / "run/report" / name).read_text(), name


def quiet(folder: Path, outcome: Outcome) -> None:
    """Check that no library's warning reaches the user."""
    assert "Warning" not in outcome.err + outcome.out, outcome.err


def write(path: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_text(content)


def older_index(folder: Path) -> None:
    """Leave an index of an earlier version, with a table of that time in it."""
    with contextlib.closing(sqlite3.connect(folder / ".krossfuse-index.sqlite")) as connection, connection:
        connection.execute("PRAGMA user_version = 0")
        connection.execute("DROP TABLE runs")
        connection.execute("CREATE TABLE runs (folder TEXT)")
        connection.execute("INSERT INTO runs VALUES ('elsewhere')")


def port_in_use(folder: Path) -> None:
    """Ask for a dashboard on a port that another process has."""
    from krossfuse.core.local_server import HOST
    from krossfuse.report.serve import main

    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        main([str(folder / "run"), "--port", str(taken.getsockname()[1])])


REPORT = [
    report("not-there", "no such folder", "nowhere", run=("nowhere",), short=True),
    report("of-a-file", "no such folder", "results.jsonl", run=("run/results.jsonl",)),
    report("of-an-empty-folder", "no results", "empty", "results.jsonl", run=("empty",),
           files=lambda folder, made: (folder / "empty").mkdir()),
    report("of-an-unset-variable", "folder", run=("",)),
    report("without-measurements", ("no measurements", "no figures", "measured nothing"), "run",
           change=lines(lambda old: [])),
    report("line-that-is-not-json", "results.jsonl, line 2", "JSON", change=lines(lambda old: [old[0], "{\n", *old[2:]]),
           short=True),
    report("line-that-is-a-list", "results.jsonl, line 1", "object", change=lines(lambda old: ["[1]\n", *old])),
    report("line-that-is-empty", "results.jsonl, line 2", change=lines(lambda old: [old[0], "\n", *old[1:]])),
    report("bytes-that-are-no-text", "results.jsonl, line 1",
           change=lambda folder: (folder / "results.jsonl").write_bytes(b"\xff\xfe\x00{}\n")),
    report("torn-last-line", status=0, after=reported,
           change=lines(lambda old: [*old, old[0][: len(old[0]) // 2]])),
    report("torn-only-line", ("no measurements", "no figures", "measured nothing", "unfinished"),
           change=lines(lambda old: [old[0][:100]])),
    report("unknown-field", "results.jsonl, line 1", "'vlaue'", "did you mean 'value'",
           change=fields(vlaue=1.0)),
    report("missing-field", "results.jsonl, line 1", "'probe'", "missing", change=fields(probe=None)),
    report("field-of-another-type", "results.jsonl, line 1", "'dim'", "'many'", change=fields(dim="many")),
    report("value-that-is-not-finite", "results.jsonl, line 1", "'value'", "finite", change=fields(value=float("nan"))),
    report("value-out-of-its-bounds", "results.jsonl, line 1", "accuracy", "1.5", change=lines(
        lambda old: [json.dumps({**json.loads(old[0]), "value": 1.5}) + "\n", *old[1:]])),
    report("damaged-status", "status.json", "damaged", change=write("status.json", "{")),
    report("unknown-state", "status.json", "'ended'", "finished", change=write("status.json", '{"state": "ended"}')),
    report("damaged-items", "per_item.npz", "damaged", change=write("per_item.npz", "no archive")),
    report("damaged-matrices", "kernels.npz", "damaged", change=write("kernels.npz", "no archive")),
    report("damaged-configuration", "config.yaml", "damaged", change=write("config.yaml", "a: [")),
    report("configuration-gone", status=0, after=reported, change=lambda folder: (folder / "config.yaml").unlink()),
    report("killed-run", status=0, after=lambda folder, outcome: is_said("not finished", outcome),
           change=lambda folder: (folder / "status.json").unlink()),
    report("script-in-names", status=0, after=nothing_raw, change=fields(data=SCRIPT, pair=SCRIPT, fusion=SCRIPT),
           short=True),
    report("markup-in-names", status=0, after=lambda folder, outcome: is_said("[red]x[/nope]", outcome),
           change=fields(data="[red]x[/nope]")),
    report("names-in-every-script", status=0, after=quiet, process=True,
           change=fields(data="数据 😀 $x_1$ a|b", fusion="方法 \\frac")),
    report("format", "format='htm'", "did you mean 'html'", run=("run", "--format", "htm"), short=True),
    report("figures", "'kernel'", "did you mean 'kernels'", run=("run", "--figures", "kernel")),
    report("baseline", "'Concatenaton'", ("baseline", "row"), run=("run", "--baseline", "Concatenaton")),
    report("out-below-a-file", "run/results.jsonl", run=("run", "--out", "run/results.jsonl/x"), status=FAILED),
    report("unknown-option", "--formt", run=("run", "--formt", "html")),
    report("index-that-is-no-database", "damaged", "made again", status=0, run=("sweep",),
           files=sweep_folder(write(".krossfuse-index.sqlite", "no database " * 500))),
    report("index-of-another-version", status=0, run=("sweep",), files=sweep_folder(older_index)),
    report("several-one-not-there", "no such folder", "nowhere", run=("run", "nowhere")),
    report("json-of-an-empty-folder", "no results", "empty", run=("empty", "--json"),
           files=lambda folder, made: (folder / "empty").mkdir()),
    Case(id="dashboard-not-there", room=RESULTS, run=["dashboard", "nowhere"], words=["no such folder", "nowhere"]),
    Case(id="dashboard-of-a-file", room=RESULTS, run=["dashboard", "run/results.jsonl"], files=run_folder(None),
         words=["no such folder", "results.jsonl"]),
    Case(id="dashboard-of-an-unset-variable", room=RESULTS, run=["dashboard", ""], words=["folder", "empty"]),
    Case(id="dashboard-port-in-use", room=RESULTS, call=port_in_use, files=run_folder(None),
         words=["port=", "in use", "--port 0"], short=True),
    Case(id="dashboard-port-out-of-range", room=RESULTS, run=["dashboard", "run", "--port", "70000"],
         files=run_folder(None), words=["port=70000", "65535"]),
    Case(id="dashboard-port-no-number", room=RESULTS, run=["dashboard", "run", "--port", "http"],
         files=run_folder(None), words=["--port", "http"]),
    report("two-runs-of-one-seed", status=0, after=reported,
           change=lambda folder: shutil.copytree(folder, folder / "again")),
    report("link-to-itself", status=0, after=reported, change=lambda folder: (folder / "self").symlink_to(".")),
    report("one-damaged-run-of-a-sweep", "1/results.jsonl, line 1", run=("sweep",),
           files=sweep_folder(write("1/results.jsonl", "{\n"))),
    report("one-killed-run-of-a-sweep", status=0, run=("sweep",), files=sweep_folder(
        lambda folder: ((folder / "1/status.json").unlink(), (folder / "1/results.jsonl").write_text("{"))),
        after=lambda folder, outcome: is_said("1 unfinished", outcome)),
]  # fmt: skip


def is_said(words: str, outcome: Outcome) -> None:
    assert words in outcome.out + outcome.err, outcome


PICTURES = [
    Case(id="figures-of-two-items", room="report", run=[*EMBEDDINGS, "figures.max_items=2"], files=embeddings(), status=0,
         after=measured),
    Case(id="nothing-leaks-from-libraries", room="report", process=True, status=0, after=quiet, files=embeddings(),
         run=[*EMBEDDINGS, "probe=[linear_probe,zero_shot,retrieval,clustering]", "probe.clustering.n_seeds=1",
              "probe.retrieval.ks=[1]"]),
    Case(id="a-dataset-with-a-script-for-a-name", room="report", status=0, short=True, files=embeddings(),
         run=[*EMBEDDINGS, f"data.name='{SCRIPT}'"],
         after=lambda folder, outcome: [no_script(path) for path in folder.rglob("results.md")]),
]  # fmt: skip


def no_script(path: Path) -> None:
    assert SCRIPT not in path.read_text(), path


CASES = [*REPORT, *PICTURES]
