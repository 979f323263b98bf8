"""The writer: any number of rows, and the right to write."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from store_toys import DIM, ROWS, key, values

from krossfuse.core.errors import DataError, StoreError
from krossfuse.features import npy, writer
from krossfuse.features.stores import LocalStore
from krossfuse.features.writer import FeatureWriter


def test_reads_that_come_in_pieces(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As past 2,147,479,552 bytes, more than which no single read gives."""
    pread = os.pread
    monkeypatch.setattr(npy.os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 24), offset))
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        w.write(range(3), values()[:3])
        assert w.done().tolist() == [True] * 3 + [False] * 7
        with pytest.raises(StoreError, match="7 of 10 rows are missing, the first is 3"):
            w.finish()
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        assert w.missing() == (7, 3)  # the checksums fitted
        w.write(range(3, ROWS), values()[3:])
        w.finish()
    assert torch.equal(store.read(key()), values())


def test_more_rows_than_one_read_gives(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse files: 2.2 GB of marks, 1.1 GB of features, no disk space."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
    rows = 270_000_000
    with store.lock([key()]), store.writer(key(), rows=rows, dim=2, dtype="float16") as w:
        w.write([rows - 1], torch.ones(1, 2))
        assert (store.root / f"{key().digest}.partial" / "progress.bin").stat().st_blocks < 1000
        with pytest.raises(StoreError, match=f"{rows - 1} of {rows} rows are missing, the first is 0"):
            w.finish()


CHILD = """
import sys, time, pickle
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from store_toys import DIM, ROWS
w = pickle.loads(bytes.fromhex(sys.argv[2]))
print("open", flush=True)
sys.stdin.readline()
try:
    w.write(range(ROWS), torch.full((ROWS, DIM), 7.0))
    print("wrote", flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


def stale(w: FeatureWriter) -> subprocess.Popen[str]:
    """Start a process that has the entry open, as a worker of a job does."""
    command = [sys.executable, "-c", CHILD, Path(__file__).parents[1], pickle.dumps(w).hex()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def say(process: subprocess.Popen[str]) -> str:
    return process.communicate("go\n", timeout=60)[0]


def test_a_worker_that_outlives_its_job_is_waited_for(store: LocalStore) -> None:
    """It can write until it ends, and not a moment after the next job begins."""
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        worker = stale(w)
    # The job is gone (its lock too), its worker is not.
    second = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from store_toys import *\n"
            "store = LocalStore(sys.argv[2])\n"
            "with store.lock([key()]):\n"
            "    print('lock', flush=True)\n"
            "    with store.writer(key(), rows=ROWS, dim=DIM) as w:\n"
            "        print(int(w.done().sum()), flush=True)\n"
            "        w.write(range(ROWS), values())\n"
            "        w.finish()\n",
            Path(__file__).parents[1],
            store.root,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert second.stdout is not None
    assert second.stdout.readline() == "lock\n"
    time.sleep(1)
    assert key() not in store
    assert second.poll() is None  # it waits
    assert "another job has taken over" in say(worker)  # the token changed before the wait
    assert second.communicate(timeout=60)[0] == "0\n"
    assert torch.equal(store.read(key()), values())


def test_a_worker_that_does_not_end_keeps_the_old_files(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAIT_SECONDS", 0.3)
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        w.write(range(4), values()[:4])
        worker = stale(w)
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        assert not w.done().any()  # begun anew
        w.write(range(ROWS), values())
        w.finish()
    assert "another job has taken over" in say(worker)
    assert torch.equal(store.read(key()), values())


def test_a_worker_that_comes_late_is_turned_away(store: LocalStore) -> None:
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        late = pickle.dumps(w)
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        with pytest.raises(StoreError, match="another job has taken over"):
            pickle.loads(late)
        again = pickle.loads(pickle.dumps(w))
        again.write(range(ROWS), values())
        again.close()
        w.finish()
        with pytest.raises(StoreError, match="another job has taken over or finished"):
            w.write([0], values()[:1])


def test_finish_waits_for_the_workers_of_its_own_job(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAIT_SECONDS", 0.3)
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        w.write(range(ROWS), values())
        worker = pickle.loads(pickle.dumps(w))
        with pytest.raises(StoreError, match="has not ended"):
            w.finish()
        worker.close()
        w.finish()
    assert torch.equal(store.read(key()), values())


def test_what_an_earlier_version_left_is_taken_up(store: LocalStore) -> None:
    """A partial entry without an owner."""
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        w.write(range(4), values()[:4])
    (store.root / f"{key().digest}.partial" / "owner").unlink()
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as w:
        assert int(w.done().sum()) == 4


def test_a_value_that_is_too_large_is_not_called_nan(store: LocalStore) -> None:
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM, dtype="float16") as w:
        features = values()
        features[6, 1] = 1e30
        with pytest.raises(
            DataError, match=r"row 6 holds 1e\+30, and float16 goes up to 6\.55e\+04 \(1 such rows"
        ) as e:
            w.write(range(ROWS), features)
        assert "NaN" not in str(e.value)
    with store.lock([key(n=1)]), store.writer(key(n=1), rows=ROWS, dim=DIM) as w:
        w.write(range(ROWS), features)  # float32 holds it
        with pytest.raises(DataError, match=r"holds 1e\+300, and float32 goes up to 3\.4e\+38"):
            w.write([0], torch.full((1, DIM), 1e300, dtype=torch.float64))
