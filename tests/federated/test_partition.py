"""Partitions: nothing twice, nothing lost, nobody empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.federated import Partition, partition
from krossfuse.federated.partition import check_parts

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


@given(n=st.integers(1, 300), clients=st.integers(1, 300), seed=st.integers(0, 5))
def test_iid_shares_everything_evenly(n, clients, seed):
    if clients > n:
        with pytest.raises(DataError, match=f"{clients} clients for {n} records"):
            partition(np.zeros(n), clients, seed=seed)
        return
    parts = partition(np.zeros(n), clients, seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_papers_partition():
    parts = partition(np.zeros(50_000), 30, records_per_client=1666)
    assert [len(rows) for rows in parts] == [1666] * 30
    assert len(np.unique(np.concatenate(parts))) == 30 * 1666
    with pytest.raises(DataError, match="30 clients with 1700 records each need 51000"):
        partition(np.zeros(50_000), 30, records_per_client=1700)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "by_class"])
def test_every_record_is_somebodys(kind):
    parts = partition(LABELS, 20, kind=kind, seed=3)
    assert len(parts) == 20
    assert sorted(np.concatenate(parts)) == list(range(2000))
    again = partition(LABELS, 20, kind=kind, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = partition(LABELS, 20, kind=kind, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_by_class_gives_few_classes_and_dirichlet_is_uneven_for_small_alpha():
    labels = np.repeat(np.arange(10), 200)
    parts = partition(labels, 20, kind="by_class", classes_per_client=2)
    assert max(len(np.unique(labels[rows])) for rows in parts) <= 2

    def unevenness(alpha):
        parts = partition(labels, 10, kind="dirichlet", alpha=alpha, seed=1)
        shares = np.array([np.bincount(labels[rows], minlength=10) / 200 for rows in parts])
        return shares.max(0).mean()

    assert unevenness(0.1) > 0.5 > 0.15 > unevenness(1000.0)


def test_resampled_clients_share_records_but_repeat_none():
    parts = partition(np.zeros(100), 1000, kind="resampled", records_per_client=50)
    assert len(parts) == 1000
    assert all(len(np.unique(rows)) == 50 for rows in parts)
    with pytest.raises(DataError, match="records_per_client=101 of 100"):
        partition(np.zeros(100), 3, kind="resampled", records_per_client=101)


def test_bad_inputs():
    with pytest.raises(DataError, match="leaves clients without records"):
        partition(np.repeat([0, 1], 5), 9, kind="dirichlet", alpha=1e-3)
    with pytest.raises(ConfigError, match="did you mean 'dirichlet'"):
        partition(LABELS, 3, kind="dirichlett")
    with pytest.raises(ConfigError, match="alpha=0"):
        partition(LABELS, 3, kind="dirichlet", alpha=0)
    with pytest.raises(ConfigError, match="clients=0"):
        partition(LABELS, 0)
    with pytest.raises(DataError, match="no records"):
        partition([], 1)
    with pytest.raises(ConfigError, match="multilabel"):
        partition(np.ones((10, 3), bool), 2, kind="by_class")
    with pytest.raises(DataError, match="2 records have no class"):
        partition([0, -1, 1, -1], 2, kind="dirichlet")
    with pytest.raises(DataError, match="11 clients with 2 pieces"):
        partition(np.arange(20), 11, kind="by_class")
    with pytest.raises(DataError, match="client 1 of 2 has no records"):
        check_parts([np.array([0]), np.array([], int)], 3)
    with pytest.raises(DataError, match="client 0 has row 3; there are 3"):
        check_parts([np.array([3])], 3)
    with pytest.raises(DataError, match="no clients"):
        check_parts([], 3)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "iid", "records_per_client": 12},
        {"kind": "dirichlet", "alpha": 0.3},
        {"kind": "by_class", "classes_per_client": 3},
        {"kind": "resampled", "records_per_client": 40},
        {"kind": "resampled"},
    ],
)
def test_options_alone_share_out_as_the_function_does(options):
    chosen = Partition(**options)
    chosen.check(len(LABELS), 20)
    for one, other in zip(chosen(LABELS, 20, seed=4), partition(LABELS, 20, seed=4, **options), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "idd"}, "did you mean 'iid'"),
        ({"kind": "iid", "alpha": 0.5}, r"partition.alpha=0.5: partition.kind='iid' has no such option"),
        ({"kind": "dirichlet", "alpha": 0.0}, "partition.alpha=0.0 must be a positive"),
        ({"kind": "by_class", "classes_per_client": 1.5}, "must be a positive integer"),
        ({"kind": "resampled", "records_per_client": -1}, "must be a positive integer"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Partition(**options)


@pytest.mark.parametrize(
    ("options", "records", "clients", "message"),
    [
        ({}, 0, 1, "no records"),
        ({}, 9, 10, "10 clients for 9 records"),
        ({"records_per_client": 2}, 19, 10, "need 20 records; there are 19"),
        ({"kind": "resampled", "records_per_client": 20}, 19, 10, "records_per_client=20 of 19"),
    ],
)
def test_too_few_records_are_seen_before_any_are_drawn(options, records, clients, message):
    with pytest.raises(DataError, match=message):
        Partition(**options).check(records, clients)
    Partition(**options).check(20, 10)
