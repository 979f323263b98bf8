"""The quantiser's error has the law of the noise: every oracle, every lattice, both laws; the negative control."""

from __future__ import annotations

import math

import numpy as np
import pytest
from privacy.oracles import failures
from scipy import stats

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.privacy import Key, Quantiser, find_lattice, make_mechanism

CASES = [("gaussian", name) for name in ("Z1", "Z2", "Z3", "A2", "D3", "D4", "E8")] + [("laplace", "Z1")]
SIGMA = 0.5


def send_by(mechanism):
    def send(u, seed, client, round):
        key = Key.from_seed(seed, client=client, round=round)
        return mechanism.decode(mechanism.encode(u, key), key)

    return send


def quantise_by(quantiser):
    def send(u, seed, client, round):
        key = Key.from_seed(seed, client=client, round=round)
        quantised = quantiser.encode(u, key)
        return quantiser.decode(quantised.tries, quantised.index, len(u), key)

    return send


@pytest.mark.parametrize(("law", "name"), CASES)
def test_every_oracle(law, name):
    assert failures(quantise_by(Quantiser(law, SIGMA, find_lattice(name))), law, SIGMA) == []


@pytest.mark.slow
@pytest.mark.parametrize(("law", "name"), [("gaussian", name) for name in ("D5", "D6", "D7", "D8", "Z4")])
def test_every_oracle_on_further_lattices(law, name):
    assert failures(quantise_by(Quantiser(law, SIGMA, find_lattice(name))), law, SIGMA) == []


def test_the_released_behaviour_fails_the_oracles():
    broken = {}
    for law, dim in [("gaussian", 1), ("gaussian", 2), ("gaussian", 3), ("laplace", 1)]:
        send = send_by(make_mechanism("released", sigma=SIGMA, law=law, dim=dim))
        broken[law, dim] = failures(send, law, SIGMA)
    assert all(len(names) >= 10 for names in broken.values()), broken
    assert sum(map(len, broken.values())) >= 50


@pytest.mark.parametrize(
    ("law", "dim", "factor"),
    [("gaussian", 1, 1.2732), ("gaussian", 2, 1.1781), ("gaussian", 3, 1.1318), ("laplace", 1, 2.0)],
)
def test_the_released_behaviour_stretches_the_update(law, dim, factor):
    mechanism = make_mechanism("released", sigma=0.01, law=law, dim=dim)
    u = np.random.default_rng(0).normal(size=300_000)
    key = Key.from_seed(0)
    q = mechanism.decode(mechanism.encode(u, key), key)
    assert u @ q / (u @ u) == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("name", ["Z2", "Z3", "A2", "D3", "D4", "E8", "D8"])
def test_tries_are_geometric_with_the_density(name):
    lattice = find_lattice(name)
    m = 60_000
    x = np.random.default_rng(1).normal(size=m * lattice.dim)
    tries = Quantiser("gaussian", 0.3, lattice).encode(x, Key.from_seed(0)).tries
    p = lattice.density
    assert tries.mean() == pytest.approx(1 / p, abs=4.5 * math.sqrt(1 - p) / p / math.sqrt(m))
    most = int(stats.geom(p).isf(20 / m))
    seen = np.bincount(np.minimum(tries, most))[1:]
    expected = m * np.append(stats.geom(p).pmf(np.arange(1, most)), stats.geom(p).sf(most - 1))
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_z1_accepts_at_once():
    assert (Quantiser("gaussian", 1.0, find_lattice("Z1")).encode(np.ones(999), Key.from_seed(0)).tries == 1).all()


@pytest.mark.parametrize(("law", "name"), CASES)
def test_the_block_size_changes_no_bit(law, name):
    x = np.random.default_rng(2).normal(size=4099)
    lattice, key = find_lattice(name), Key.from_seed(5)
    reference = Quantiser(law, 0.2, lattice).encode(x, key)
    for chunk in (1, 16, 100, 1 << 20):
        quantised = Quantiser(law, 0.2, lattice, chunk=chunk).encode(x, key)
        assert np.array_equal(quantised.index, reference.index)
        assert np.array_equal(quantised.tries, reference.tries)
        decoder = Quantiser(law, 0.2, lattice, chunk=chunk + 7)
        decoded = decoder.decode(quantised.tries, quantised.index, len(x), key)
        assert np.array_equal(decoded, reference.values(lattice, len(x)))


def test_the_error_is_uniform_on_a_ball_given_the_radius():
    lattice, key, m = find_lattice("E8"), Key.from_seed(6), 40_000
    x = np.random.default_rng(3).normal(size=8 * m)
    quantiser = Quantiser("gaussian", 0.7, lattice)
    error = (quantiser.encode(x, key).values(lattice, len(x)) - x).reshape(m, 8)
    radius = quantiser.scales(key, m) * lattice.packing_radius
    share = np.sqrt(np.square(error).sum(1)) / radius
    assert share.max() <= 1 + 1e-9
    assert stats.kstest(share**8, stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize("d", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("name", ["Z1", "A2", "Z3", "E8"])
def test_any_length(d, name):
    lattice, key = find_lattice(name), Key.from_seed(1)
    quantiser = Quantiser("gaussian", 1e-6, lattice)
    x = np.linspace(-1, 1, d)
    quantised = quantiser.encode(x, key)
    assert np.abs(quantiser.decode(quantised.tries, quantised.index, d, key) - x).max() < 1e-4


@pytest.mark.parametrize("sigma", [0, -1.0, math.nan, math.inf, True, "1"])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(ConfigError, match="sigma"):
        Quantiser("gaussian", sigma, find_lattice("Z1"))


def test_other_bad_inputs():
    with pytest.raises(ConfigError, match="cannot shape Laplace"):
        Quantiser("laplace", 1.0, find_lattice("E8"))
    with pytest.raises(ConfigError, match="did you mean 'gaussian'"):
        Quantiser("gausian", 1.0, find_lattice("E8"))  # type: ignore[arg-type]
    quantiser = Quantiser("gaussian", 1.0, find_lattice("Z1"))
    with pytest.raises(DataError, match="nan at coordinate 1 of 3"):
        quantiser.encode(np.array([0.0, math.nan, 1.0]), Key.from_seed(0))
    with pytest.raises(DataError, match=r"shape \(2, 2\)"):
        quantiser.encode(np.zeros((2, 2)), Key.from_seed(0))
    with pytest.raises(ConfigError, match="too large for this noise"):
        quantiser.encode(np.array([1e15]), Key.from_seed(0))
