"""Fused features by shard: the bits of the unsharded fusion, in any order, resumed, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_toys import PER_SHARD, TRAIN, shard_data, source, write_tars

from krossfuse.core.errors import ConfigError, DataError, StoreError
from krossfuse.core.sharded import ShardedRows
from krossfuse.data.shards import make_manifest
from krossfuse.features.entry import DamagedEntryError
from krossfuse.features.source import Extraction
from krossfuse.features.stores import LocalStore
from krossfuse.features.writer import FeatureWriter
from krossfuse.fusion.methods import PCAConcatenation, RFFConcatenation, RPKrossFuse
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.shards import FusedShards, read_fused, write_manifest
from krossfuse.fusion.stream import inputs_of

METHODS = {
    "rp": lambda inputs: RPKrossFuse(inputs=inputs, dim=24),
    "pca": lambda inputs: PCAConcatenation(inputs=inputs, dim=6),
    "rff": lambda inputs: RFFConcatenation(inputs=inputs, dim=12),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    """A set in tars whose features are stored."""
    root = tmp_path_factory.mktemp("fused")
    (root / "images").mkdir()
    make_manifest(root / "tars" / "manifest.json", write_tars(root / "tars", root / "images"), classes=["cat", "dog"])
    extraction = source(shard_data(root / "tars"), LocalStore(root / "features"))
    extraction.encode()
    return extraction


def fitted(made: Extraction, method: str = "rp", block_rows: int = 4096) -> FusionModule:
    bundle = made.bundle()
    return FusionModule(METHODS[method](inputs_of(bundle)), block_rows=block_rows).fit(bundle)


@pytest.mark.parametrize(
    ("method", "block_rows"),  # 16 rows in blocks of 15: the last is a row alone
    [("rp", 15), pytest.param("rp", 4096, marks=pytest.mark.slow), *[
        pytest.param(method, rows, marks=pytest.mark.slow) for method in ("pca", "rff") for rows in (15, 4096)
    ]],
)  # fmt: skip
def test_bits_of_the_unsharded_fusion(
    made: Extraction, store: LocalStore, tmp_path: Path, method: str, block_rows: int
) -> None:
    module = fitted(made, method, block_rows)
    whole = FusionModule(module.method).fuse(made.bundle())
    jobs = [FusedShards(made, module, "a digest", store) for _ in range(3)]
    encodes = [int(key is not None) for _, key in jobs[0].unit_keys()]
    assert sum(encodes) >= 7
    assert [jobs[n % 3].fuse([n]) for n in reversed(range(len(encodes)))] == encodes[::-1]
    assert jobs[0].fuse() == 0
    write_manifest(tmp_path / "fused.json", jobs[1])
    read = read_fused(tmp_path / "fused.json", store)
    assert set(read) == set(whole)
    for part, x in whole.items():
        assert torch.equal(read[part][:], x), part
    assert isinstance(read[TRAIN], ShardedRows)
    assert len(json.loads((tmp_path / "fused.json").read_text())["parts"]["train:image"]) == len(PER_SHARD["train"])


def test_another_fusion_or_dtype_is_another_entry(made: Extraction, store: LocalStore) -> None:
    module = fitted(made)
    one = FusedShards(made, module, "a digest", store)
    other = FusedShards(made, module, "another digest", store)
    half = FusedShards(made, module, "a digest", store, dtype="float16")
    digests = [[key.digest for _, key in of.unit_keys() if key is not None] for of in (one, other, half)]
    assert len({digest for of in digests for digest in of}) == 3 * len(digests[0])
    assert half.fuse([0]) == 1
    (key,) = (key for _, key in half.unit_keys()[:1])
    assert key is not None
    assert store.read(key).dtype == torch.float16
    with pytest.raises(ConfigError, match="dtype='float31' is not one of"):
        FusedShards(made, module, "a digest", store, dtype="float31")


def test_a_job_that_is_killed_is_taken_up_at_its_block(
    made: Extraction, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fitted(made, block_rows=4)
    written: list[tuple[int, int]] = []
    write = FeatureWriter.write

    def counting(self: FeatureWriter, rows: Any, features: torch.Tensor) -> None:
        if len(written) == 2:
            raise MemoryError("killed here")
        written.append((rows[0], len(rows)))
        write(self, rows, features)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write", counting)
        with pytest.raises(MemoryError):
            FusedShards(made, module, "a digest", store).fuse([0])
    assert written == [(0, 4), (4, 4)]
    left: list[int] = []

    def seeing(self: FeatureWriter, rows: Any, features: torch.Tensor) -> None:
        left.extend(rows)
        write(self, rows, features)

    monkeypatch.setattr(FeatureWriter, "write", seeing)
    assert FusedShards(made, module, "a digest", store).fuse([0]) == 1
    assert left == list(range(8, 16))
    whole = module.fuse(made.bundle(), parts=[TRAIN])[TRAIN]
    (_, key), *_ = FusedShards(made, module, "a digest", store).unit_keys()
    assert key is not None
    assert torch.equal(store.read(key), whole[:16])


def test_what_is_lost_or_damaged_is_named(made: Extraction, store: LocalStore, tmp_path: Path) -> None:
    module = fitted(made)
    fused = FusedShards(made, module, "a digest", store)
    fused.fuse([0])
    with pytest.raises(DataError, match=r"train:image train/001\.tar of 'shards' is not fused yet; run job=fuse"):
        write_manifest(tmp_path / "fused.json", fused)
    assert not (tmp_path / "fused.json").exists()
    fused.fuse()
    path = tmp_path / "fused.json"
    write_manifest(path, fused)
    text = json.loads(path.read_text())
    entries = text["parts"]["train:image"]
    path.write_text(json.dumps({**text, "parts": {"train:image": entries[1:]}}))
    with pytest.raises(DataError, match=r"'train/001\.tar' of train:image has the rows 16 to 31 after 0 others"):
        read_fused(path, store)
    path.write_text(json.dumps({**text, "format": 9}))
    with pytest.raises(DataError, match="is of format 9, and this reads 1"):
        read_fused(path, store)
    path.write_text("[]")
    with pytest.raises(DataError, match="is no manifest of fused shards"):
        read_fused(path, store)
    path.write_text(json.dumps(text))
    features = store.root / entries[2]["entry"] / "features.npy"
    features.write_bytes(features.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DamagedEntryError, match=entries[2]["entry"][:12]):
        read_fused(path, store)
    store.delete(entries[1]["entry"])
    with pytest.raises(StoreError, match=r"no entry .*train:image train/001\.tar"):
        read_fused(path, store)
