"""Shards and stores at ``s3://``: s3fs against a server of moto on the loopback, whose transfers break on demand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_toys import shard_data, source
from store_toys import DIM, ROWS, key, values

from krossfuse.core.errors import DataError, StoreError
from krossfuse.features.stores import FsspecStore, LocalStore

pytest.importorskip("s3fs", reason="needs krossfuse[s3]: make test-s3")
pytest.importorskip("moto", reason="needs moto[server]: make test-s3")

BUCKET = "krossfuse"


class Breaking:
    """An application whose answers to some requests end in the middle of their bodies, as many as are left to break."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.method, self.ending, self.left, self.broken = "", "", 0, 0

    def on(self, method: str, ending: str, times: int) -> None:
        self.method, self.ending, self.left, self.broken = method, ending, times, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        wanted = environ["REQUEST_METHOD"] == self.method and environ["PATH_INFO"].endswith(self.ending)
        if not wanted or self.broken >= self.left:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        self.broken += 1
        if self.method == "PUT":
            raise ConnectionResetError("cut off while it was written")
        return self._half(b"".join(self.app(environ, start_response)))

    @staticmethod
    def _half(body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        raise ConnectionResetError("cut off while it was read")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Breaking, dict[str, Any]]]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = Breaking(DomainDispatcherApplication(create_backend_app))
    running = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    options = {
        "key": "any",
        "secret": "any",
        "endpoint_url": f"http://127.0.0.1:{running.server_port}",
        "client_kwargs": {"region_name": "eu-central-1"},
    }
    yield app, options
    running.shutdown()
    thread.join()


@pytest.fixture
def s3(server: tuple[Breaking, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system, with an empty bucket; s3fs's own retries are one, so that ours are seen."""
    import s3fs

    app, options = server
    app.on("", "", 0)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr("krossfuse.core.retries.time.sleep", lambda _: None)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(**options)
    fs.mkdir(BUCKET)
    yield fs
    app.on("", "", 0)
    fs.rm(BUCKET, recursive=True)


@pytest.fixture
def app(server: tuple[Breaking, dict[str, Any]]) -> Breaking:
    return server[0]


@pytest.fixture
def options(server: tuple[Breaking, dict[str, Any]]) -> dict[str, Any]:
    return server[1]


def test_shards_and_store_both_remote(tars: Path, s3: Any, options: dict[str, Any], tmp_path: Path) -> None:
    s3.put(str(tars), f"{BUCKET}/set", recursive=True)
    whole = source(shard_data(tars), LocalStore(tmp_path / "local")).bundle()
    data = shard_data(f"s3://{BUCKET}/set", cache=tmp_path / "cache", options=options)
    store = FsspecStore(f"s3://{BUCKET}/features", cache=tmp_path / "features", options=options)
    jobs = source(data, store)
    assert jobs.encode([3]) == 1  # in any order
    assert jobs.encode() == len(jobs.unit_keys()) - 1
    assert not list((tmp_path / "cache").rglob("*.tar"))
    assert len(s3.glob(f"{BUCKET}/features/*/entry.json")) == sum(len(roles) for _, roles in jobs.unit_keys())
    # Another machine: nothing is encoded, all comes from the store.
    other = FsspecStore(f"s3://{BUCKET}/features", cache=tmp_path / "elsewhere", options=options)
    again = source(shard_data(f"s3://{BUCKET}/set", cache=tmp_path / "cache2", options=options), other)
    assert again.encode() == 0
    bundle = again.bundle()
    for part, roles in whole.features.items():
        for role, x in roles.items():
            assert torch.equal(bundle[part][role][:], x[:]), (part, role)
    for entry in other.entries():
        other.verify(entry, again=True)


def test_a_shard_that_breaks_off_is_read_again_then_named(
    tars: Path,
    s3: Any,
    app: Breaking,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    s3.put(str(tars), f"{BUCKET}/set", recursive=True)
    data = shard_data(f"s3://{BUCKET}/set", cache=tmp_path / "cache", options=options)
    store = LocalStore(tmp_path / "store")
    app.on("GET", "train/000.tar", 2)
    assert source(data, store).encode([0]) == 1
    assert app.broken == 2
    app.on("GET", "train/001.tar", 99)
    with pytest.raises(DataError, match=rf"s3://{BUCKET}/set/train/001\.tar cannot be read, tried 3 times"):
        source(data, store).encode([1])
    assert app.broken == 3
    assert not list((tmp_path / "cache").rglob("*001.tar*"))
    app.on("", "", 0)
    assert source(data, store).encode([0, 1]) == 1  # what was encoded is kept
    s3.rm(f"{BUCKET}/set/train/002.tar")
    with pytest.raises(DataError, match=rf"shard 'train/002\.tar' is missing: there is no s3://{BUCKET}"):
        source(data, store).encode([2])


def test_a_store_that_breaks_off_is_tried_again_then_named(
    s3: Any, app: Breaking, options: dict[str, Any], tmp_path: Path
) -> None:
    def store(cache: str) -> FsspecStore:
        return FsspecStore(f"s3://{BUCKET}/features", cache=tmp_path / cache, options=options)

    def write(to: FsspecStore) -> None:
        with to.lock([key()]):
            writer = to.writer(key(), rows=ROWS, dim=DIM)
            writer.write(range(ROWS), values())
            writer.finish()

    app.on("PUT", ".npy", 99)
    with pytest.raises(StoreError, match=r"features/\w+' cannot be written .*waits in the cache"):
        write(store("one"))
    assert app.broken >= 3
    assert key() not in store("one")
    app.on("PUT", ".npy", 1)
    with store("one").lock([key()]):  # the next job hands it in
        assert key() in store("one")
    assert app.broken == 1
    app.on("GET", ".npy", 2)
    assert torch.equal(store("two").read(key()), values())
    assert app.broken == 2
    app.on("GET", ".npy", 99)
    with pytest.raises(StoreError, match=r"features/\w+' cannot be read"):
        store("three").read(key())
    assert not list((tmp_path / "three").rglob("*.npy"))
