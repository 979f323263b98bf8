"""What is encoded together depends on row numbers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_toys import ToyData
from hypothesis import given, settings
from hypothesis import strategies as st
from test_extract import TRAIN, make_pair, run, same_bits

from krossfuse.features.extract import feature_keys
from krossfuse.features.plan import SHARD, TEXTS, Together
from krossfuse.features.stores import LocalStore

sizes = st.integers(1, 200)


@settings(max_examples=80, deadline=None)
@given(n=sizes, batch=sizes, done=st.sets(st.integers(0, 199)), modality=st.sampled_from(["image", "text"]))
def test_whole_blocks_and_no_other(n: int, batch: int, done: set[int], modality: str) -> None:
    together = Together(False, batch)
    mask = np.isin(np.arange(n), list(done))
    batches = together.batches([mask, np.ones(n, bool)], n, modality)  # type: ignore[arg-type]
    rows = [row for of_batch in batches for row in of_batch]
    assert rows == sorted(set(rows))
    assert set(np.flatnonzero(~mask).tolist()) <= set(rows)
    size = together.block(modality)  # type: ignore[arg-type]
    assert size == (SHARD if modality == "image" else TEXTS)
    for of_batch in batches:
        assert len(of_batch) <= max(batch, size)
        for start in range(0, len(of_batch), size):
            block = of_batch[start : start + size]
            assert block[0] % size == 0
            assert block == tuple(range(block[0], min(block[0] + size, n)))
    blocks = {row // size for row in rows}
    assert all(not mask[b * size : (b + 1) * size].all() for b in blocks)


def test_nothing_to_do() -> None:
    assert Together(False, 64).batches([np.ones(30, bool)], 30, "image") == []


def test_the_batch_size_of_an_accelerator_is_in_the_key(images: Path) -> None:
    """There a batch is one forward pass. The default's entries have the key that they always had, on every device."""

    def digest(accelerator: bool, size: int) -> str:
        return feature_keys(ToyData(images), make_pair(), together=Together(accelerator, size))[TRAIN]["dino.v2"].digest

    plain = feature_keys(ToyData(images), make_pair())[TRAIN]["dino.v2"].digest
    assert plain == digest(False, 64) == digest(False, 20) == digest(True, 64)
    assert len({plain, digest(True, 20), digest(True, 128)}) == 3
    assert Together(True, 20).batches([np.zeros(50, bool)], 50, "image") == [
        tuple(range(20)),
        tuple(range(20, 40)),
        tuple(range(40, 50)),
    ]


@pytest.mark.gpu
def test_on_a_gpu_a_resume_and_loader_processes_change_no_bit(images: Path, store: LocalStore) -> None:
    gpu = {"accelerator": "gpu", "devices": 1}
    one = run(ToyData(images), make_pair(), store, trainer=gpu)
    two = run(ToyData(images, num_workers=2), make_pair(), LocalStore(store.root / "two"), trainer=gpu)
    same_bits(one, two)
