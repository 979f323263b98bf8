"""What every store has to do, for each store: a folder, and URLs of two of fsspec's file systems."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from store_toys import DIM, ROWS, key, values

from krossfuse.core.errors import ConfigError, StoreError
from krossfuse.features import npy
from krossfuse.features.entry import DamagedEntryError, EntryFormatError
from krossfuse.features.keys import FeatureKey
from krossfuse.features.stores import FeatureStore, FsspecStore, LocalStore, open_store

KINDS = ("local", "file", "memory")
Make = Callable[..., FeatureStore]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make the store again, as another process would: with nothing in memory; or another machine: no cache either."""
    name = uuid.uuid4().hex
    url = {"file": f"file://{tmp_path}/remote", "memory": f"memory://{name}/features"}.get(request.param)

    def again(cache: str = "cache") -> FeatureStore:
        npy.verified.clear()
        return LocalStore(tmp_path / "local") if url is None else FsspecStore(url, cache=tmp_path / cache)

    yield again
    if request.param == "memory" and fsspec.filesystem("memory").exists(f"/{name}"):
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def fill(store: FeatureStore, k: FeatureKey, features: torch.Tensor, dtype: str = "float32") -> None:
    with store.lock([k]):
        writer = store.writer(k, rows=len(features), dim=features.shape[1], dtype=dtype)
        for start in range(0, len(features), 4):
            writer.write(range(start, min(start + 4, len(features))), features[start : start + 4])
        writer.finish()
        writer.close()
        assert writer.finished


def change(store: FeatureStore, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change one file of an entry, ``features`` or ``entry.json``, where it is kept for good."""
    fs, root = (
        (fsspec.filesystem("file"), str(store.root)) if isinstance(store, LocalStore) else (store._fs, store._root)  # type: ignore[attr-defined]
    )
    (path,) = (p for p in fs.ls(f"{root}/{key().digest}", detail=False) if p.rsplit("/", 1)[-1].startswith(name))
    content = change(fs.cat_file(path))
    if content is None:
        fs.rm_file(path)
    else:
        fs.pipe_file(path, content)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(make: Make, dtype: str) -> None:
    assert key() not in make()
    with pytest.raises(StoreError, match="has no entry .*run the extraction first"):
        make().read(key())
    fill(make(), key(), values(), dtype)
    for _ in range(2):
        assert key() in make()
        read = make().read(key())
        assert read.dtype == getattr(torch, dtype)
        assert torch.equal(read, values().to(read.dtype))
        read.zero_()
    assert torch.equal(make().read(key()).float(), values().to(read.dtype).float())


def test_entries_say_what_they_are(make: Make) -> None:
    assert make().entries() == []
    fill(make(), key(), values())
    with make().lock([key(n=2)]), make().writer(key(n=2), rows=ROWS, dim=DIM) as writer:  # type: ignore[attr-defined]
        writer.write([3, 4], values()[:2])
    store = make()
    finished, partial = store.entries()
    assert (finished.name, finished.partial, finished.rows, finished.dim) == (key().digest, False, ROWS, DIM)
    assert finished.size >= 4 * ROWS * DIM
    assert store.where in finished.where
    assert (partial.name, partial.partial, partial.done, partial.rows) == (key(n=2).digest, True, 2, ROWS)
    record = json.loads(store.record(finished))
    assert (record["format"], record["about"]["encoder"]) == (1, "net")
    assert json.loads(store.record(partial))["key"]["n"] == 2


def test_a_killed_writer_is_taken_up(make: Make) -> None:
    with make().lock([key()]):
        writer = make().writer(key(), rows=ROWS, dim=DIM)
        writer.write([1, 2], values()[1:3])
        writer.close()
    with make().lock([key()]):
        writer = make().writer(key(), rows=ROWS, dim=DIM)
        assert np.flatnonzero(writer.done()).tolist() == [1, 2]
        with pytest.raises(StoreError, match="8 of 10 rows are missing, the first is 0"):
            writer.finish()
        rest = np.flatnonzero(~writer.done())
        writer.write(rest, values()[rest])
        writer.finish()
    assert torch.equal(make().read(key()), values())


@pytest.mark.parametrize(
    ("file", "how", "why"),
    [
        ("features", lambda raw: raw[:-4], "bytes instead|SHA-256"),
        ("features", lambda raw: raw[:-9] + bytes([raw[-9] ^ 4]) + raw[-8:], "SHA-256"),
        ("features", lambda raw: None, "missing"),
        ("entry.json", lambda raw: raw[:40], "cannot be read"),
        ("entry.json", lambda raw: b"[]", "cannot be read"),
        ("entry.json", lambda raw: raw.replace(b'"abc"', b'"abd"'), "another key"),
        ("entry.json", lambda raw: raw.replace(b'"rows": 10', b'"rows": -10'), "rows=-10"),
    ],
)
def test_damage_is_seen_named_and_repaired(
    make: Make, file: str, how: Callable[[bytes], bytes | None], why: str
) -> None:
    fill(make(), key(), values())
    change(make(), file, how)
    for check in (lambda: make("new").read(key()), lambda: make().verify(make().entries()[0], again=True)):
        with pytest.raises(DamagedEntryError, match=why) as caught:
            check()
        assert key().digest in str(caught.value)
        assert "krossfuse store delete" in str(caught.value)
    assert [entry.name for entry in make().entries()] == [key().digest]
    fill(make(), key(), values())  # it is replaced
    assert torch.equal(make("new").read(key()), values())
    make().verify(make().entries()[0], again=True)


@pytest.mark.parametrize("number", [b"0", b"99", b'"1"', b"null"])
def test_another_format_is_refused_with_the_reason(make: Make, number: bytes) -> None:
    fill(make(), key(), values())
    change(make(), "entry.json", lambda raw: raw.replace(b'"format": 1', b'"format": ' + number))
    with pytest.raises(EntryFormatError, match=r"was written in format .*reads format 1 only; use the version that"):
        make().read(key())
    (entry,) = make().entries()
    assert entry.key.about["encoder"] == "(another format)"
    assert make().delete(entry.name)
    assert make().entries() == []


def test_delete(make: Make) -> None:
    fill(make(), key(), values())
    held = make().read(key())
    with make().lock([key()]):
        assert not make().delete(key().digest)
    assert make().delete(key().digest)
    assert key() not in make()
    assert make().entries() == []
    assert torch.equal(held, values())  # a reader keeps what it has mapped
    with make().lock([key()]):
        make().writer(key(), rows=ROWS, dim=DIM).close()
    assert make().delete(key().digest, partial=True)
    assert make().entries() == []
    fill(make(), key(), values(seed=1))  # and it can be written again
    assert torch.equal(make().read(key()), values(seed=1))


def test_locks_of_one_store_exclude_each_other(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    from threading import Thread

    order = []

    def second() -> None:
        with make().lock([key()]):
            order.append("second")

    with make().lock([key(n=1), key()]):
        thread = Thread(target=second)
        thread.start()
        thread.join(0.5)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting for another job" in caplog.text


# What only a remote has.


@pytest.fixture
def remote(tmp_path: Path) -> FsspecStore:
    return FsspecStore(f"file://{tmp_path}/remote", cache=tmp_path / "cache")


def test_another_machine_reads_it_once_and_maps_its_copy(remote: FsspecStore, tmp_path: Path) -> None:
    fill(remote, key(), values())
    other = FsspecStore(remote.where, cache=tmp_path / "other-cache")
    assert torch.equal(other.read(key()), values())
    folder = other.cache.root / key().digest
    (copy,) = folder.glob("*.npy")
    assert not list(other.cache.root.glob("*.download"))
    inode = copy.stat().st_ino
    assert torch.equal(other.read(key()), values())
    assert copy.stat().st_ino == inode
    maps = Path("/proc/self/maps")
    held = other.read(key())
    if maps.exists():
        at = held.data_ptr()
        lines = (line.split() for line in maps.read_text().splitlines())
        (file,) = (line[-1] for line in lines if int(line[0].split("-")[0], 16) <= at < int(line[0].split("-")[1], 16))
        assert file == str(copy)
    # What is written anew elsewhere is not answered from the old copy.
    fill(remote, key(), values(seed=1))
    assert torch.equal(other.read(key()), values(seed=1))


def test_a_copy_that_was_damaged_is_fetched_again(remote: FsspecStore) -> None:
    fill(remote, key(), values())
    remote.read(key())
    (copy,) = (remote.cache.root / key().digest).glob("*.npy")
    copy.write_bytes(b"no")
    npy.verified.clear()
    assert torch.equal(remote.read(key()), values())


def test_two_machines_that_write_at_once_leave_one_whole_entry(remote: FsspecStore, tmp_path: Path) -> None:
    other = FsspecStore(remote.where, cache=tmp_path / "other-cache")
    with remote.lock([key()]), other.lock([key()]):
        first = remote.writer(key(), rows=ROWS, dim=DIM)
        second = other.writer(key(), rows=ROWS, dim=DIM)
        first.write(range(ROWS), values())
        second.write(range(ROWS), values(seed=1))
        second.finish()
        first.finish()
    for store in (remote, other):
        assert torch.equal(store.read(key()), values())
        store.verify(store.entries()[0], again=True)


def test_an_upload_that_fails_loses_nothing(remote: FsspecStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("403")

    with monkeypatch.context() as patch, remote.lock([key()]):
        patch.setattr(remote._fs, "put_file", refuse)
        writer = remote.writer(key(), rows=ROWS, dim=DIM)
        writer.write(range(ROWS), values())
        with pytest.raises(StoreError, match=r"cannot be written .*waits in the cache.*PermissionError: 403"):
            writer.finish()
    assert key() not in remote
    with remote.lock([key()]):
        assert key() in remote  # handed in
    assert torch.equal(remote.read(key()), values())


def test_a_transfer_that_breaks_is_tried_again(
    remote: FsspecStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("krossfuse.core.retries.time.sleep", lambda _: None)
    calls = 0

    def breaking(name: str, times: int) -> None:
        nonlocal calls
        calls, works = 0, getattr(remote._fs, name)

        def act(*arguments: object, **options: object) -> object:
            nonlocal calls
            of_features = any(str(argument).endswith(".npy") for argument in arguments)
            calls += of_features
            if of_features and calls <= times:
                raise ConnectionError("reset by peer")
            return works(*arguments, **options)

        monkeypatch.setattr(remote._fs, name, act)

    breaking("put_file", 2)
    fill(remote, key(), values())
    assert calls == 3
    monkeypatch.undo()
    monkeypatch.setattr("krossfuse.core.retries.time.sleep", lambda _: None)
    assert "ConnectionError: reset by peer; trying again" in caplog.text
    other = FsspecStore(remote.where, cache=tmp_path / "other")
    breaking("open", 2)
    assert other._fs is remote._fs
    assert torch.equal(other.read(key()), values())
    third = FsspecStore(remote.where, cache=tmp_path / "third")
    breaking("open", 3)
    with pytest.raises(StoreError, match=r"remote.* cannot be read: ConnectionError: reset by peer"):
        third.read(key())


def test_a_remote_that_fails_is_named(remote: FsspecStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route")

    fill(remote, key(), values())
    for name, act in (
        ("cat_file", lambda: key() in remote),
        ("ls", remote.entries),
        ("rm", lambda: remote.delete(key().digest)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(remote._fs, name, fail)
            with pytest.raises(StoreError, match=r"remote.*ConnectionError: no route; look at store\.url"):
                act()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, r"is no URL: give store\.url=s3://"),
        ("/a/folder", r"is no URL.*store=local paths\.store"),
        ("quantum://a", "Protocol not known: quantum"),
        ("oci://bucket/x", "needs another package: Install ocifs"),
    ],
)
def test_a_bad_url(url: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        FsspecStore(url, cache=tmp_path)


def test_a_url_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"store=fsspec store\.url=s3://bucket/x"):
        LocalStore("s3://bucket/x")
    monkeypatch.setenv("KROSSFUSE_CACHE", str(tmp_path))
    assert isinstance(open_store("memory://a"), FsspecStore)
    assert isinstance(open_store(str(tmp_path)), LocalStore)


def test_extraction_into_a_remote(images: Path, remote: FsspecStore, tmp_path: Path) -> None:
    from feature_toys import ToyData
    from test_extract import loads, make_pair, run, same_bits

    one = run(ToyData(images), make_pair(), remote)
    logging.getLogger("krossfuse").info("again")
    other, pair = FsspecStore(remote.where, cache=tmp_path / "other"), make_pair()
    same_bits(one, run(ToyData(images), pair, other))
    assert loads(pair) == [0, 0, 0]
    same_bits(one, run(ToyData(images), make_pair(), LocalStore(tmp_path / "local")))
