from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krossfuse.core.errors import DataError
from krossfuse.results.errors import ResultsError
from krossfuse.results.snapshot import (
    KernelSnapshot,
    balanced_rows,
    cosine_kernel,
    load_snapshot,
    make_snapshot,
    save_snapshot,
)


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def snapshot() -> KernelSnapshot:
    """An exact direct sum of two encoders with C = 2, so that what the pictures must show is known."""
    labels = torch.tensor([2, 0, 1, 0, 2, 1])
    psi, gamma, text = features(0, 6, 4), features(1, 6, 5), features(2, 6, 4)
    unit = torch.nn.functional.normalize
    kron = (unit(psi)[:, :, None] * unit(gamma)[:, None, :]).flatten(1)
    return make_snapshot(
        labels,
        ["a", "b", "c"],
        cross_modal=psi,
        experts={"dino": gamma},
        fused=torch.cat([2**0.5 * unit(psi), kron], dim=1),
        text_cross_modal=text,
        text_fused=torch.cat([2**0.5 * unit(text), torch.zeros(6, 20)], dim=1),
        text_of=torch.arange(6),
        label_set="letters",
        about={"seed": 0},
    )


def test_kernels_are_those_of_the_parents_their_mean_and_their_product() -> None:
    made = snapshot()
    order = [1, 3, 2, 5, 0, 4]
    psi, gamma = (cosine_kernel(f[order], f[order]).numpy() for f in (features(0, 6, 4), features(1, 6, 5)))
    np.testing.assert_array_equal(made.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(made.boundaries, [2, 4])
    expected = {
        "cross_modal": psi,
        "dino": gamma,
        "sum": (psi + gamma) / 2,
        "product": psi * gamma,
        "fused": psi * (2 + gamma) / 3,
    }
    assert made.kernels.keys() == expected.keys()
    for name, matrix in expected.items():
        np.testing.assert_allclose(made.kernels[name], matrix, atol=1e-6)


def test_exact_alignment_leaves_image_text_similarities_as_they_were() -> None:
    made = snapshot()
    np.testing.assert_allclose(made.similarities["fused"], made.similarities["cross_modal"], atol=1e-6)
    np.testing.assert_array_equal(made.matches.argmax(axis=1), [1, 3, 2, 5, 0, 4])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = snapshot()
    save_snapshot(made, tmp_path)
    loaded = load_snapshot(tmp_path)
    assert loaded is not None
    assert (loaded.classes, loaded.label_set, loaded.about) == (made.classes, "letters", {"seed": 0})
    np.testing.assert_array_equal(loaded.labels, made.labels)
    np.testing.assert_array_equal(loaded.matches, made.matches)
    for name, matrix in made.kernels.items():
        np.testing.assert_allclose(loaded.kernels[name], matrix, atol=1e-3)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    assert load_snapshot(tmp_path) is None
    path = save_snapshot(snapshot(), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResultsError, match=r"kernels\.npz is damaged"):
        load_snapshot(tmp_path)


def test_rows_are_balanced_ordered_and_repeatable() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50 + [-1] * 5)[
        torch.randperm(108, generator=torch.Generator().manual_seed(0))
    ]
    rows = balanced_rows(labels, 23, seed=4)
    assert torch.bincount(labels[rows]).tolist() == [10, 3, 10]
    assert labels[rows].tolist() == sorted(labels[rows].tolist())
    assert torch.equal(rows, balanced_rows(labels, 23, seed=4))
    assert len(rows.unique()) == 23
    assert len(balanced_rows(labels, 10**6)) == 103


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="no item has a label"):
        balanced_rows(torch.full((3,), -1), 3)
    with pytest.raises(DataError, match="dino has 2 rows for 3 labels"):
        make_snapshot(torch.zeros(3, dtype=torch.int64), ["a"], experts={"dino": torch.ones(2, 2)})
    with pytest.raises(DataError, match="texts need text_of"):
        make_snapshot(torch.zeros(3, dtype=torch.int64), ["a"], text_fused=torch.ones(2, 2))
