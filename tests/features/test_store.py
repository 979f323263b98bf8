from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_toys import DIM, ROWS, key, values

from krossfuse.core.errors import ConfigError, DataError, StoreError
from krossfuse.features import npy
from krossfuse.features.entry import DamagedEntryError
from krossfuse.features.keys import FeatureKey, canonical_json
from krossfuse.features.stores import LocalStore


def fill(store: LocalStore, k: FeatureKey, features: torch.Tensor, dtype: str = "float32") -> None:
    with store.lock([k]), store.writer(k, rows=len(features), dim=features.shape[1], dtype=dtype) as writer:
        for start in range(0, len(features), 4):
            writer.write(range(start, min(start + 4, len(features))), features[start : start + 4])
        writer.finish()


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in another process that has the helpers of ``store_toys``."""
    source = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\nfrom store_toys import *\n{code}"
    return subprocess.Popen([sys.executable, "-c", source, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(store: LocalStore, dtype: str) -> None:
    fill(store, key(), values(), dtype)
    read = store.read(key())
    assert read.dtype == getattr(torch, dtype)
    assert torch.equal(read, values().to(read.dtype))
    assert np.array_equal(np.load(store.root / key().digest / "features.npy"), read.numpy())


def test_writing_to_a_read_tensor_leaves_the_file_alone(store: LocalStore) -> None:
    fill(store, key(), values())
    store.read(key()).zero_()
    assert torch.equal(store.read(key()), values())


def test_reading_costs_address_space_only(store: LocalStore) -> None:
    rows = 40_000
    fill(store, key(), torch.zeros(rows, 256))  # 41 MB
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = store.read(key())
    assert read.shape == (rows, 256)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB


def test_entry_says_what_it_is(store: LocalStore) -> None:
    fill(store, key(prompts=["a cat"]), values())
    meta = json.loads((store.root / key(prompts=["a cat"]).digest / "entry.json").read_text())
    assert meta["key"]["prompts"] == ["a cat"]
    assert meta["about"]["encoder"] == "net"
    assert (meta["rows"], meta["dim"], meta["dtype"]) == (ROWS, DIM, "float32")
    assert {file.name for file in (store.root / key(prompts=["a cat"]).digest).iterdir()} == {
        "entry.json",
        "features.npy",
    }


def test_another_encoder_of_the_same_name_has_another_key(store: LocalStore) -> None:
    fill(store, key(), values())
    other = key(encoder={"weights": "xyz"})
    assert other.about == key().about
    assert other not in store
    with pytest.raises(StoreError, match="no entry"):
        store.read(other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), json_values))
def test_digest_depends_on_contents_not_on_order(ingredients: dict[str, object]) -> None:
    shuffled = dict(reversed(ingredients.items()))
    assert FeatureKey(ingredients).digest == FeatureKey(shuffled, {"dataset": "x"}).digest
    assert FeatureKey({**ingredients, "one more": 1}).digest != FeatureKey(ingredients).digest
    assert json.loads(canonical_json(ingredients)) == ingredients


@pytest.mark.parametrize("bad", [float("nan"), object(), b"bytes", {1: 2}])
def test_key_that_is_no_json_is_refused(bad: object) -> None:
    with pytest.raises(StoreError, match=r"key\.encoder"):
        _ = FeatureKey({"encoder": bad}).digest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_unusable_feature_is_refused_and_its_row_named(store: LocalStore, value: float) -> None:
    features = values()
    features[7, 2] = value
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as writer:
        writer.write(range(4), features[:4])
        with pytest.raises(DataError, match=r"net on toy, train:image.*row 7 is NaN"):
            writer.write(range(4, 10), features[4:])
        assert writer.done().tolist() == [True] * 4 + [False] * 6


def test_value_out_of_range_of_half_precision_is_refused(store: LocalStore) -> None:
    with (
        store.lock([key()]),
        store.writer(key(), rows=1, dim=DIM, dtype="float16") as writer,
        pytest.raises(DataError, match="infinite as float16"),
    ):
        writer.write([0], torch.full((1, DIM), 1e6))


def test_wrong_shapes_and_rows(store: LocalStore) -> None:
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as writer:
        with pytest.raises(DataError, match=r"expected features \(4, 6\), got \(4, 5\)"):
            writer.write(range(4), torch.zeros(4, 5))
        with pytest.raises(DataError, match="do not fit an entry of 10 rows"):
            writer.write([9, 10], torch.zeros(2, DIM))
        with pytest.raises(StoreError, match="10 of 10 rows are missing, the first is 0"):
            writer.finish()
    with pytest.raises(ConfigError, match="rows=0"):
        store.writer(key(), rows=0, dim=DIM)
    with pytest.raises(ConfigError, match="float64"):
        store.writer(key(), rows=1, dim=DIM, dtype="float64")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_torch_s_own_rounding(store: LocalStore, dtype: str) -> None:
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM, dtype=dtype) as writer:
        writer.write(range(ROWS), values())
        with pytest.raises(DataError, match=f"{dtype} goes up to"):
            writer.write([0], torch.full((1, DIM), 3.4e38))
        writer.write(range(ROWS), values())
        writer.finish()
    half = getattr(torch, dtype)
    assert store.read(key()).dtype == half
    assert torch.equal(store.read(key()), values().to(half))
    (entry,) = store.entries()
    store.verify(entry, again=True)
    assert entry.dtype == dtype


def test_rows_in_any_order(store: LocalStore) -> None:
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as writer:
        for rows in ([9, 1, 3], [0, 2, 4, 5], [8, 6, 7]):
            writer.write(rows, values()[rows])
        writer.finish()
    assert torch.equal(store.read(key()), values())


def test_killed_writer_loses_its_batch_only(store: LocalStore) -> None:
    code = """
store = LocalStore(sys.argv[1])
with store.lock([key()]):
    writer = store.writer(key(), rows=ROWS, dim=DIM)
    writer.write(range(4), values()[:4])
    writer.write(range(4, 8), values()[4:8])
    print("ready", flush=True)
    time.sleep(60)
"""
    process = child(code, store.root)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert key() not in store
    (entry,) = store.entries()
    assert (entry.partial, entry.done, entry.rows) == (True, 8, ROWS)
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as writer:
        assert writer.done().tolist() == [True] * 8 + [False] * 2
        writer.write([8, 9], values()[8:])
        writer.finish()
    assert torch.equal(store.read(key()), values())


def test_two_writers_at_once_one_computes(store: LocalStore, tmp_path: Path) -> None:
    code = """
import logging
logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s")
store = LocalStore(sys.argv[1])
with store.lock([key()]):
    if key() not in store:
        print("computing", flush=True)
        with store.writer(key(), rows=ROWS, dim=DIM) as writer:
            writer.write(range(ROWS), values())
            while not Path(sys.argv[2]).exists():
                time.sleep(0.01)
            writer.finish()
assert torch.equal(store.read(key()), values())
print("used", flush=True)
"""
    go = tmp_path / "go"
    first, second = (child(code, store.root, go) for _ in range(2))
    said = [process.stdout.readline() for process in (first, second) if process.stdout is not None]
    assert sorted(line.split()[0] for line in said) == ["computing", "waiting"]
    go.touch()
    for process in (first, second):
        assert process.communicate(timeout=60)[0] == "used\n"
        assert process.returncode == 0


@pytest.fixture
def fresh_process() -> None:
    """Forget what this process has checked already."""
    npy.verified.clear()


def damage(path: Path, how: str) -> None:
    match how:
        case "truncated":
            os.truncate(path, path.stat().st_size - 5)
        case "flipped":
            with path.open("r+b") as file:
                file.seek(-9, os.SEEK_END)
                byte = file.read(1)[0]
                file.seek(-9, os.SEEK_END)
                file.write(bytes([byte ^ 4]))
        case "other shape":
            np.save(path, np.zeros((ROWS + 1, DIM), dtype=np.float32))
        case "missing":
            path.unlink()


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(
    ("how", "why"),
    [("truncated", "bytes instead of"), ("flipped", "SHA-256"), ("other shape", "record says"), ("missing", "missing")],
)
def test_damaged_data(store: LocalStore, how: str, why: str) -> None:
    fill(store, key(), values())
    damage(store.root / key().digest / "features.npy", how)
    with pytest.raises(DamagedEntryError, match=why) as caught:
        store.read(key())
    assert key().digest in str(caught.value)
    assert "krossfuse store delete" in str(caught.value)
    fill(store, key(), values())  # it is replaced
    assert torch.equal(store.read(key()), values())


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("text", ["", "{}", '{"key": {}, "about": {}, "rows": 10', "[]"])
def test_damaged_record(store: LocalStore, text: str) -> None:
    fill(store, key(), values())
    (store.root / key().digest / "entry.json").write_text(text)
    with pytest.raises(DamagedEntryError, match=r"entry\.json"):
        store.read(key())
    (entry,) = store.entries()  # so that it can be seen and deleted
    assert entry.name == key().digest
    assert store.delete(entry.name)
    assert store.entries() == []


def test_record_of_another_key(store: LocalStore) -> None:
    fill(store, key(), values())
    path = store.root / key().digest / "entry.json"
    path.write_text(path.read_text().replace('"abc"', '"abd"'))
    with pytest.raises(DamagedEntryError, match="another key"):
        store.read(key())


def test_a_file_that_changed_is_checked_again(store: LocalStore) -> None:
    fill(store, key(), values())
    store.read(key())
    time.sleep(0.02)  # the clock of the file system
    damage(store.root / key().digest / "features.npy", "flipped")
    with pytest.raises(DamagedEntryError):
        store.read(key())


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damaged_partial_entry_is_not_trusted(store: LocalStore, how: str) -> None:
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as writer:
        writer.write(range(ROWS), values())
    damage(store.root / f"{key().digest}.partial" / "features.npy", how)
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as writer:
        assert writer.done().sum() == (9 if how == "flipped" else 0)
        rest = np.flatnonzero(~writer.done())
        writer.write(rest, values()[rest])
        writer.finish()
    assert torch.equal(store.read(key()), values())


def test_partial_entry_of_another_shape_is_begun_anew(store: LocalStore) -> None:
    with store.lock([key()]), store.writer(key(), rows=ROWS, dim=DIM) as writer:
        writer.write(range(4), values()[:4])
    with store.lock([key()]), store.writer(key(), rows=ROWS + 1, dim=DIM) as writer:
        assert not writer.done().any()


def test_delete(store: LocalStore) -> None:
    fill(store, key(), values())
    held = store.read(key())
    with store.lock([key()]):
        # Locks of one process exclude each other too.
        assert not LocalStore(store.root).delete(key().digest)
    assert store.delete(key().digest)
    assert key() not in store
    assert store.entries() == []
    assert torch.equal(held, values())  # a reader keeps what it has mapped


def test_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LocalStore(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match=r"paths\.store"), store.lock([key()]):
        pass
