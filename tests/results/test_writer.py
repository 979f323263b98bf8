"""What was measured stays, whatever happens to the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from krossfuse.results.errors import ResultsError
from krossfuse.results.records import Record
from krossfuse.results.runs import read_run
from krossfuse.results.snapshot import load_snapshot
from krossfuse.results.writer import RunWriter

RECORD = Record("openmoji", "pair", "rp_krossfuse", 64, "zero_shot", "accuracy", "image", 3, 0.625)

FULL = """
import resource, sys
import numpy as np
from krossfuse.results.records import Record
from krossfuse.results.writer import RunWriter

record = Record("d", "p", "f", 1, "zero_shot", "accuracy", "image", 0, 0.5, protocol={"text": "x" * 200})
with RunWriter(sys.argv[1]) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    for _ in range(100):
        writer.append(record, np.random.default_rng(0).random(int(sys.argv[3])))
        if len(writer.records) == int(sys.argv[4]):
            break
"""
"""No file may grow beyond a size: the kernel then writes a part of a line and fails, as on a full disk."""


def run_out_of_space(folder: Path, limit: int, items: int, records: int) -> str:
    command = [sys.executable, "-c", FULL, str(folder), str(limit), str(items), str(records)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    return ended.stderr


def test_a_disk_that_fills_up_in_the_middle_of_a_record_keeps_those_before(tmp_path: Path) -> None:
    message = run_out_of_space(tmp_path / "run", 3000, 3, 100)
    run = read_run(tmp_path / "run")
    assert 2 < len(run.records) < 20
    assert f"the {len(run.records)} measurements before this one are kept" in message
    assert (run.state, len(run.per_item)) == ("failed", len(run.records))


def test_a_disk_without_room_for_the_items_scores_keeps_the_records(tmp_path: Path) -> None:
    message = run_out_of_space(tmp_path / "run", 5000, 5000, 2)
    run = read_run(tmp_path / "run")
    assert (len(run.records), run.state, run.per_item) == (2, "failed", {})
    assert "its 2 measurements are kept" in message
    assert not [path.name for path in (tmp_path / "run").iterdir() if "partial" in path.name]


def test_a_lines_fields_are_those_that_users_know(tmp_path: Path) -> None:
    described = {"alignment": "exact", "sketch": "srht", "C": 0.1, "power": 3}
    with RunWriter(tmp_path) as writer:
        writer.append(Record("d", "p", "f", 1, "knn", "accuracy", "image", 0, 0.5, fusion_config=described))
        writer.append(Record("d", "p", "f", 1, "knn", "accuracy", "image", 0, 0.5, fusion_config={"C": "auto"}))
    first, second = (json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())
    assert [first[name] for name in ("alignment", "sketch", "kernel", "C")] == ["exact", "srht", "", 0.1]
    assert first["fusion_config"] == described
    assert first["declared"]["unit"] == "fraction"
    assert (second["C"], second["fusion_config"]) == (None, {"C": "auto"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("status.json", b"[1]", "status.json is damaged"),
        ("status.json", b'{"state": "done"}', "status.json is damaged .state 'done'"),
        ("status.json", b"\xff\xfe", "status.json is damaged"),
        ("results.jsonl", b"\x00\x00\n", "line 1: not a line of JSON"),
        ("results.jsonl", b"\xff\xfe\n", "line 1"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append(RECORD)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultsError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize("content", [b"a: [1", b"- 1\n- 2\n", b"\xff\xfe"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append(RECORD)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ResultsError, match=r"config\.yaml is damaged"):
        _ = read_run(tmp_path).config


@pytest.mark.parametrize("meta", ["", "[]", '{"classes": 3, "label_set": "", "about": {}}'])
def test_damaged_snapshots_are_named(tmp_path: Path, meta: str) -> None:
    np.savez(tmp_path / "kernels.npz", labels=np.zeros(2), matches=np.zeros((0, 0)), meta=np.array(meta))
    with pytest.raises(ResultsError, match=r"kernels\.npz is damaged"):
        load_snapshot(tmp_path)
