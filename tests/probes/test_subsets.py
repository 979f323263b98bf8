from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.probes.subsets import draw_few_shot

CLASSES = ("ant", "bee", "cat")
LABELS = torch.tensor([-1, *([0, 1, 2] * 25), 2, 2])
VAL = torch.tensor([0, 1, 2, -1] * 6)


@settings(max_examples=40, deadline=None)
@given(shots=st.integers(1, 16), seed=st.integers(0, 1000), own_val=st.booleans())
def test_subsets_are_balanced_disjoint_and_repeatable(shots: int, seed: int, own_val: bool) -> None:
    val_labels = VAL if own_val else None
    subset = draw_few_shot(LABELS, shots, seed, classes=CLASSES, val_labels=val_labels)
    assert torch.bincount(LABELS[subset.train]).tolist() == [shots] * 3
    assert len(set(subset.train.tolist())) == 3 * shots
    held = (VAL if own_val else LABELS)[subset.val]
    assert torch.bincount(held).tolist() == [min(4, shots)] * 3
    assert len(set(subset.val.tolist())) == len(subset.val)
    if not own_val:
        assert subset.val_split == "train"
        assert not set(subset.train.tolist()) & set(subset.val.tolist())
    again = draw_few_shot(LABELS, shots, seed, classes=CLASSES, val_labels=val_labels)
    assert again.digest == subset.digest
    assert json.loads(json.dumps(subset.written_down()))["train"] == subset.train.tolist()


def test_subsets_of_one_seed_are_nested_and_seeds_differ() -> None:
    few, more = (draw_few_shot(LABELS, k, 3, classes=CLASSES, val_labels=VAL) for k in (2, 8))
    assert set(few.train.tolist()) < set(more.train.tolist())
    assert set(few.val.tolist()) < set(more.val.tolist())
    digests = {draw_few_shot(LABELS, 2, seed, classes=CLASSES, val_labels=VAL).digest for seed in range(20)}
    assert len(digests) == 20


def test_too_few_items_are_named() -> None:
    with pytest.raises(DataError, match=r"'ant' \(label 0\) has 25 train items, but 26 shots need 26"):
        draw_few_shot(LABELS, 26, 0, classes=CLASSES, val_labels=VAL)
    with pytest.raises(DataError, match=r"'ant' .* 25 train items, but 24 shots need 28"):
        draw_few_shot(LABELS, 24, 0, classes=CLASSES)
    with pytest.raises(DataError, match=r"'bee' .* 2 val items, but 16 shots need 4"):
        draw_few_shot(LABELS, 16, 0, classes=CLASSES, val_labels=torch.tensor([0, 0, 0, 0, 1, 1]))
    with pytest.raises(ConfigError, match="shots=0"):
        draw_few_shot(LABELS, 0, 0, classes=CLASSES)
