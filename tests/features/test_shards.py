"""Shards: one entry each, one bundle, the bits of the unsharded run; what is wrong with a shard is named."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_toys import ToyData
from PIL import Image
from shard_toys import PER_SHARD, TRAIN, Plain, add, shard_data, source, toy_pair

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import Part
from krossfuse.core.sharded import ShardedRows, below_one_another
from krossfuse.data.shards import make_manifest
from krossfuse.features.extract import extract
from krossfuse.features.stores import LocalStore


def test_rows_of_pieces_are_those_of_the_whole() -> None:
    pieces = [torch.randn(n, 3) for n in (4, 1, 7)]
    x, whole = below_one_another(pieces), torch.cat(pieces)
    assert isinstance(x, ShardedRows)
    assert x.shape == whole.shape
    assert len(x) == 12
    for start in range(13):
        for stop in range(13):
            assert torch.equal(x[start:stop], whole[start:stop])
    rows = torch.tensor([11, 0, 4, 4, 5, 3])
    for index in (rows, whole[:, 0] > 0, [2, 9]):
        assert torch.equal(x[index], whole[index])
    assert torch.equal(x[-1], whole[-1])
    assert torch.equal(x[5:9].clone(), whole[5:9])
    assert type(x[:]) is torch.Tensor
    assert torch.equal(x @ torch.ones(3), whole @ torch.ones(3))  # what needs the whole gets it
    assert torch.equal(x.double(), whole.double())
    with pytest.raises(IndexError):
        x[torch.tensor([12])]
    with pytest.raises(DataError, match="differ in dimension"):
        below_one_another([torch.zeros(1, 2), torch.zeros(1, 3)])


def test_pieces_that_are_joined_must_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = below_one_another([torch.zeros(4, 3), torch.ones(4, 3)])
    monkeypatch.setattr("krossfuse.core.memory.total_memory", lambda: 90)
    assert torch.equal(x[3:5].sum(1), torch.tensor([0.0, 3.0]))
    with pytest.raises(ConfigError, match="joining 2 shards"):
        x.sum()


def test_tars_give_the_bits_of_the_unsharded_run(tars: Path, images: Path, store: LocalStore, tmp_path: Path) -> None:
    whole = source(Plain(images), LocalStore(tmp_path / "whole")).bundle()
    bundle = source(shard_data(tars), store).bundle()
    for split in PER_SHARD:
        for role in ("clip", "dino"):
            role = "cross_modal" if role == "clip" else role
            assert torch.equal(bundle[Part(split, "image")][role][:], whole[Part(split, "image")][role])
    assert isinstance(bundle[TRAIN]["dino"], ShardedRows)
    assert torch.equal(bundle.info.label_sets["class"].labels["train"], whole.info.label_sets["animal"].labels["train"])
    assert list(shard_data(tars).items(Part("test", "text"))) == list(Plain(images).items(Part("test", "text")))


def test_shards_in_any_order_by_any_number_of_jobs(tars: Path, store: LocalStore) -> None:
    count = len(source(shard_data(tars), store).unit_keys())
    assert count == 2 * 7 + 1
    jobs = [source(shard_data(tars), store) for _ in range(3)]
    encoded = [jobs[number % 3].encode([number]) for number in reversed(range(count))]
    assert encoded == [1] * count
    assert jobs[0].encode() == 0
    with pytest.raises(ConfigError, match="shard=15: there are 15, 0 to 14"):
        jobs[0].encode([count])


@pytest.mark.slow
def test_two_devices_give_the_bits_of_one(tars: Path, store: LocalStore, tmp_path: Path) -> None:
    one = source(shard_data(tars), store).bundle()
    two = source(shard_data(tars), LocalStore(tmp_path / "two"), devices=2)
    assert two.encode() == len(two.unit_keys())
    for part, roles in two.bundle().features.items():
        for role, x in roles.items():
            assert torch.equal(x[:], one[part][role][:])
    listed = shard_data(tars)
    listed.setup()
    (tars / "val/000.tar").unlink()  # lost while the others are being encoded
    with pytest.raises(DataError, match="'val/000.tar' is missing"):
        source(listed, LocalStore(tmp_path / "lost"), devices=2).encode()


def test_row_ranges_of_an_indexed_dataset(images: Path, store: LocalStore, tmp_path: Path) -> None:
    class Long(ToyData):
        sizes = {"train": 150, "val": 6, "test": 7}  # noqa: RUF012

    whole = extract(Long(images), toy_pair(), LocalStore(tmp_path / "whole"), progress=False)
    ranged = source(Long(images), store, shard_rows=64)
    bundle = ranged.bundle()
    assert len(ranged.unit_keys()) == 2 * (3 + 1 + 1) + 1
    for part, roles in whole.features.items():
        for role, x in roles.items():
            assert torch.equal(bundle[part][role][:], x)
    with pytest.raises(ConfigError, match="multiple of 64"):
        source(Long(images), store, shard_rows=100).bundle()


def test_a_shard_that_is_lost_or_altered_is_named_and_the_others_stay(tars: Path, store: LocalStore) -> None:
    source(shard_data(tars), store).encode([0, 1])
    victim = tars / "train/002.tar"
    good = victim.read_bytes()

    victim.unlink()
    with pytest.raises(DataError, match=r"'train/002.tar' is missing"):
        source(shard_data(tars), store).bundle()
    victim.write_bytes(good[:-600])
    with pytest.raises(DataError, match=r"'train/002.tar' has .* bytes, and had .*truncated"):
        source(shard_data(tars), store).bundle()
    altered = bytearray(good)
    altered[700] ^= 1
    victim.write_bytes(altered)
    with pytest.raises(DataError, match=r"'train/002.tar' changed since"):
        source(shard_data(tars), store).bundle()
    victim.write_bytes(good)  # another time, the same bytes
    left = len(source(shard_data(tars), store).unit_keys())
    done = sum(all(key in store for key in roles.values()) for _, roles in source(shard_data(tars), store).unit_keys())
    assert source(shard_data(tars), store).encode() == left - done


def test_counts_and_shards_listed_twice(tars: Path, store: LocalStore) -> None:
    path = tars / "manifest.json"
    text = json.loads(path.read_text())
    shards = text["shards"]
    path.write_text(json.dumps({**text, "shards": [*shards, shards[0]]}))
    with pytest.raises(DataError, match=r"'train/000.tar' is listed twice"):
        shard_data(tars).setup()
    path.write_text(json.dumps({**text, "shards": [*shards, {**shards[0], "path": "train/copy.tar"}]}))
    with pytest.raises(DataError, match="the bytes are equal"):
        shard_data(tars).setup()
    wrong = [{**shard, "items": shard["items"] + (i == 0) - (i == 1)} for i, shard in enumerate(shards)]
    path.write_text(json.dumps({**text, "shards": wrong}))
    with pytest.raises(DataError, match=r"'train/000.tar' has 16 samples, and the manifest counts 17"):
        source(shard_data(tars), store).encode([0])
    path.write_text(json.dumps({**text, "shards": shards[1:]}))
    with pytest.raises(DataError, match="the manifest counts 40 samples"):
        shard_data(tars).setup()
    path.write_text("{}")
    with pytest.raises(DataError, match="no manifest of shards"):
        shard_data(tars).setup()


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("../../evil.png", b"x", "path outside itself"),
        ("/etc/evil.png", b"x", "path outside itself"),
        ("a.pkl", pickle.dumps(Bomb()), "has a pickle"),
        ("a.label.pyd", pickle.dumps(Bomb()), "has a pickle"),
        ("00000.png", b"x", "twice"),
        ("b.txt", b"x", "'b' has no image"),
    ],
)
def test_a_tar_with_what_no_tar_may_have(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "00000.png", buffer.getvalue())
        add(tar, name, data)
    with pytest.raises(DataError, match=message):
        make_manifest(tmp_path / "manifest.json", {"train": ["a.tar"]})
    assert not (tmp_path / "manifest.json").exists()


def test_a_link_and_a_truncated_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match="no plain file"):
        make_manifest(tmp_path / "manifest.json", {"train": ["link.tar"]})
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        add(tar, "a.png", bytes(3000))
        add(tar, "b.png", bytes(3000))
    whole = (tmp_path / "cut.tar").read_bytes()
    for size in (100, 600, 3000, 3584, 4200, 7168):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match="'cut.tar'.*truncated"):
            make_manifest(tmp_path / "manifest.json", {"train": ["cut.tar"]})


def test_remote_shards(tars: Path, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied when they are needed, removed when they are encoded; a transfer that breaks is tried again, then named."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in tars.rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/set/{file.relative_to(tars)}", file.read_bytes())
    cache = tmp_path / "cache"
    whole = source(shard_data(tars), LocalStore(tmp_path / "local")).bundle()
    remote = source(shard_data("memory://set", cache=cache), store)
    bundle = remote.bundle()
    assert torch.equal(bundle[TRAIN]["dino"][:], whole[TRAIN]["dino"][:])
    assert not list(cache.rglob("*.tar"))

    opened = memory._open
    calls = 0

    def failing(path: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if path.endswith(".tar"):
            calls += 1
            if calls <= failures:
                raise ConnectionError("reset by peer")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(type(memory), "_open", lambda self, *args, **kwargs: failing(*args, **kwargs))
    monkeypatch.setattr("krossfuse.core.retries.time.sleep", lambda _: None)
    failures = 2
    other = LocalStore(tmp_path / "other")
    assert source(shard_data("memory://set", cache=cache), other).encode([0]) == 1
    failures, calls = 99, 0
    with pytest.raises(DataError, match=r"memory://set/train/001.tar cannot be read, tried 3 times: .*reset by peer"):
        source(shard_data("memory://set", cache=cache), other).encode([1])
    memory.rm("/set", recursive=True)
