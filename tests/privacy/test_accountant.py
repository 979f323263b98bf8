"""Accounting against second implementations, exact curves, published figures and its own order."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants import RDPAccountant as OpacusRDP

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.privacy import (
    Accountant,
    Ledger,
    PrivacyWarning,
    clips_for_budgets,
    noise_multiplier_for,
    privacy_statement,
    record_rate,
    sigma_for,
    sigmas_for_budgets,
)
from krossfuse.privacy.accountant import round_of
from krossfuse.privacy.pairs import LaplacePair, Round
from krossfuse.privacy.pld import gaussian_delta, grid_loss, pld_epsilon
from krossfuse.privacy.rdp import ORDERS, rdp, rdp_epsilon

DELTA = 1e-5


def spent(z: float, rounds: int, rate: float = 1.0, accountant: Accountant | None = None) -> Accountant:
    accountant = accountant or Accountant()
    accountant.step(noise_std=z, clip=1.0, rate=rate, rounds=rounds)
    return accountant


# Client level, no sampling: (z, rounds, RDP, PLD); dp-accounting 0.6.0's figures.
PLAIN = [
    (0.548, 80, 209.193, 201.9207),
    (1.095, 80, 70.8007, 67.3943),
    (2.19, 80, 26.6594, 25.0765),
    (5.48, 80, 8.39113, 7.80412),
    (10.95, 80, 3.75343, 3.46847),
    (21.9, 80, 1.73360, 1.59129),
    (5.48, 1, 0.719286, 0.656361),
]
# Poisson sampling: (z, rate, rounds, RDP, PLD); dp-accounting 0.6.0's figures.
POISSON = [
    (1.0, 0.01, 1000, 2.10137, 1.828244),
    (1.0, 0.1, 80, 7.16132, 6.345619),
    (0.7, 0.05, 30, 6.27523, 5.211960),
    (2.0, 0.3, 200, 12.8027, 11.850955),
]
# Record level, 15 of 1,666 without replacement, replace-one, 80 rounds: (z of the sum, RDP); dp-accounting's.
RECORD = [(0.548, 378.350), (1.095, 6.60395), (2.19, 1.068714), (5.48, 0.233440)]
# Laplace, b over the L1 clip: (b, rate, rounds, PLD); dp-accounting 0.6.0's figures.
LAPLACE = [(2.0, 1.0, 10, 4.989962), (2.0, 0.1, 100, 1.892439), (1.0, 0.05, 300, 3.493698)]


@pytest.mark.parametrize(("z", "rounds", "by_rdp", "by_pld"), PLAIN)
def test_plain_rounds(z, rounds, by_rdp, by_pld):
    accountant = spent(z, rounds)
    assert accountant.epsilon(DELTA, method="rdp") == pytest.approx(by_rdp, rel=0.003)
    assert accountant.epsilon(DELTA) == pytest.approx(by_pld, rel=1e-4)


@pytest.mark.parametrize(("z", "rate", "rounds", "by_rdp", "by_pld"), POISSON)
def test_poisson_sampling(z, rate, rounds, by_rdp, by_pld):
    accountant = spent(z, rounds, rate)
    assert accountant.epsilon(DELTA, method="rdp") == pytest.approx(by_rdp, rel=0.003)
    assert accountant.epsilon(DELTA) == pytest.approx(by_pld, rel=1e-3)


@pytest.mark.parametrize(("z", "by_rdp"), RECORD)
def test_record_level(z, by_rdp):
    accountant = Accountant("record")
    accountant.step(noise_std=z, clip=1.0, rate=record_rate(1666, 15, replacement=False), rounds=80)
    assert accountant.epsilon(DELTA, method="rdp") == pytest.approx(by_rdp, rel=0.003)
    assert accountant.epsilon(DELTA) <= by_rdp


@pytest.mark.parametrize(("b", "rate", "rounds", "by_pld"), LAPLACE)
def test_laplace(b, rate, rounds, by_pld):
    accountant = Accountant()
    accountant.step(noise_std=b * math.sqrt(2), clip=1.0, rate=rate, rounds=rounds, law="laplace")
    assert accountant.epsilon(DELTA) == pytest.approx(by_pld, rel=1e-3)
    assert accountant.epsilon(DELTA, method="rdp") >= by_pld


@pytest.mark.parametrize(("z", "rate", "rounds"), [(1.0, 0.01, 1000), (1.0, 0.1, 80), (3.0, 0.5, 50), (5.48, 1.0, 80)])
def test_opacus_agrees(z, rate, rounds):
    theirs, prv = OpacusRDP(), PRVAccountant()
    theirs.history = prv.history = [(z, rate, rounds)]
    accountant = spent(z, rounds, rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert accountant.epsilon(DELTA, method="rdp") == pytest.approx(theirs.get_epsilon(DELTA), rel=0.01)
        assert accountant.epsilon(DELTA) == pytest.approx(prv.get_epsilon(DELTA), rel=0.01)


def test_a_tampered_accountant_is_caught():
    class Halved(Accountant):
        def step(self, *, noise_std, **options):
            super().step(noise_std=noise_std / 2, **options)

    for z, rounds, by_rdp, by_pld in PLAIN:
        for method, right in (("rdp", by_rdp), ("pld", by_pld)):
            assert spent(z, rounds, accountant=Halved()).epsilon(DELTA, method=method) > 1.5 * right
    for z, rate, rounds, _, by_pld in POISSON:
        assert spent(z, rounds, rate, Halved()).epsilon(DELTA) > 1.5 * by_pld


def test_the_papers_settings():
    """σ = .01, C = 1, 30 clients: no privacy to speak of, in one round or 80."""
    z = math.sqrt(30) * 0.01
    assert spent(z, 1).epsilon(DELTA) == pytest.approx(243.6, abs=0.1)
    assert spent(z, 80).epsilon(DELTA) == pytest.approx(14_030, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    z=st.floats(0.5, 50),
    rounds=st.integers(1, 300),
    rate=st.sampled_from([1.0, 0.7, 0.1, 0.01]),
    delta=st.floats(-9, -2).map(lambda power: 10**power),
    unit=st.sampled_from(["client", "client_replace"]),
    law=st.sampled_from(["gaussian", "laplace"]),
)
def test_rdp_is_never_below_pld_nor_above_the_closed_form(z, rounds, rate, delta, unit, law):
    accountant = Accountant(unit)
    accountant.step(noise_std=z, clip=1.0, rate=rate, rounds=rounds, law=law)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        by_pld, by_rdp = accountant.epsilon(delta), accountant.epsilon(delta, method="rdp")
        assert 0 <= by_pld <= by_rdp * (1 + 1e-6) + 1e-9
        if law == "gaussian" and (rate == 1 or unit == "client"):
            assert by_rdp <= accountant.upper_bound(delta) * (1 + 1e-3)


def test_rounds_that_spend_nothing_at_this_delta() -> None:
    accountant = Accountant("client")
    accountant.step(noise_std=8.0, clip=1.0, rate=0.01, rounds=72, law="laplace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        assert accountant.epsilon(0.01, method="rdp") == accountant.epsilon(0.01) == 0


@settings(max_examples=15, deadline=None)
@given(z=st.floats(0.6, 5), rate=st.sampled_from([1.0, 0.2]), law=st.sampled_from(["gaussian", "laplace"]))
def test_epsilon_is_monotone(z, rate, law):
    def epsilon(**change):
        options = {"noise_std": z, "clip": 1.0, "rounds": 10, "rate": rate, "law": law, **change}
        delta = options.pop("delta", DELTA)
        accountant = Accountant()
        accountant.step(**options)
        return accountant.epsilon(delta)

    here = epsilon()
    assert epsilon(noise_std=1.2 * z) < here < epsilon(clip=1.2)
    assert here < epsilon(rounds=15)
    assert here <= epsilon(delta=DELTA / 10)
    if rate < 1:
        assert here < epsilon(rate=1.5 * rate)


def test_sampled_convolution_is_exact_where_the_answer_is_known():
    """With a rate of (almost) 1 the sampled machinery must give the Gaussian closed form, at small δ too."""
    for z, rounds, delta in [(1.0, 1, 1e-5), (2.0, 10, 1e-9), (0.8, 3, 1e-10)]:
        sampled = pld_epsilon({Round("gaussian", z, 1 - 1e-13): rounds}, delta)
        exact = pld_epsilon({Round("gaussian", z): rounds}, delta)
        assert sampled == pytest.approx(exact, rel=2e-3)
        assert gaussian_delta(exact, z / math.sqrt(rounds)) <= delta


@pytest.mark.parametrize("direction", ["remove", "add", "replace"])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_a_loss_on_the_grid_keeps_both_masses_and_dominates(law, direction):
    r = Round(law, 0.8, 0.3, "replace" if direction == "replace" else "zero_out")
    loss = grid_loss(r, 0.01, direction)
    at = (loss.first + np.arange(len(loss.masses))) * 0.01
    assert loss.masses.min() >= 0
    assert loss.masses.sum() + loss.infinite == pytest.approx(1, abs=1e-12)
    assert (loss.masses * np.exp(-at)).sum() == pytest.approx(1, abs=1e-9)  # the second distribution's mass
    fine = grid_loss(r, 0.0005, direction)
    fine_at = (fine.first + np.arange(len(fine.masses))) * 0.0005
    for epsilon in (0.0, 0.013, 0.1, 0.25):
        coarse = (loss.masses * np.maximum(-np.expm1(epsilon - at), 0)).sum()
        finer = (fine.masses * np.maximum(-np.expm1(epsilon - fine_at), 0)).sum()
        assert finer <= coarse + 1e-12
        assert coarse == pytest.approx(finer, abs=2e-5)


def test_one_coordinate_is_the_worst_place_for_a_laplace_distance():
    most, step = 1.5, 1e-3

    def masses(distance):
        edges = (np.arange(-1500, 1501)) * step
        p, _ = LaplacePair(1 / distance).masses(np.concatenate([[-np.inf], edges]))
        return p  # all mass at upper ends: the same rounding for all

    whole = masses(most)
    at = np.arange(-1500, 1501) * step
    for split in (0.1, 0.5, 0.75):
        both = np.convolve(masses(split), masses(most - split))
        both_at = np.arange(-3000, 3001) * step
        for epsilon in (0.0, 0.3, 0.8, 1.2, 1.4):
            one = (whole * np.maximum(-np.expm1(epsilon - at), 0)).sum()
            two = (both * np.maximum(-np.expm1(epsilon - both_at), 0)).sum()
            assert two <= one + 2e-3


def test_very_many_rounds_and_very_rare_sampling():
    # dp-accounting 0.6.0 gives 145.498 at δ = 1e-6; the second is all but Gaussian with μ = q·√(T·(e − 1)).
    assert pld_epsilon({Round("gaussian", 1.0, 0.01): 10**6}, 1e-6) == pytest.approx(145.498, rel=0.003)
    mu = 1e-6 * math.sqrt(10**6 * (math.e - 1))
    epsilon = pld_epsilon({Round("gaussian", 1.0, 1e-6): 10**6}, 1e-6)
    assert gaussian_delta(epsilon, 1 / mu) == pytest.approx(1e-6, rel=0.1)


def test_moments_of_sampled_laplace_by_simulation():
    rng = np.random.default_rng(0)
    r = Round("laplace", 1.0, 0.3)
    x = rng.laplace(size=2_000_000) + 1  # under Q, whose centre is the sensitivity away from P's
    ratio = 0.7 + 0.3 * np.exp(np.abs(x - 1) - np.abs(x))
    for order, bound in zip(ORDERS, rdp(r, tuple(ORDERS)), strict=True):
        if 1.5 < order < 4:
            assert bound >= math.log((ratio**order).mean()) / (order - 1) - 1e-3


def test_history_of_many_kinds_adds_up():
    accountant = Accountant()
    for _ in range(10):
        accountant.step(noise_std=3.0, clip=1.0)
    accountant.step(noise_std=6.0, clip=2.0, rounds=5)
    assert accountant.rounds == {Round("gaussian", 3.0): 15}
    accountant.step(noise_std=1.0, clip=1.0, rate=0.01, rounds=100)
    alone = spent(1.0, 100, 0.01).epsilon(DELTA), spent(3.0, 15).epsilon(DELTA)
    assert max(alone) < accountant.epsilon(DELTA) < sum(alone)
    other = Accountant()
    other.load_state(json.loads(json.dumps(accountant.state())))
    assert other.epsilon(DELTA) == accountant.epsilon(DELTA)
    with pytest.raises(DataError, match="unit 'client'; this one is of 'record'"):
        Accountant("record").load_state(accountant.state())


def test_delta_is_the_inverse_of_epsilon():
    accountant = spent(5.0, 80)
    assert accountant.delta(accountant.epsilon(DELTA)) == pytest.approx(DELTA, rel=0.01)


def test_units():
    assert round_of("record", noise_std=1.0, clip=1.0) == Round("gaussian", 0.5, 1.0, "replace")
    assert round_of("client", noise_std=math.sqrt(2), clip=4.0, law="laplace").multiplier == pytest.approx(0.25)
    replaced, zeroed = Accountant("client_replace"), Accountant()
    replaced.step(noise_std=10.0, clip=1.0, rounds=7)
    zeroed.step(noise_std=5.0, clip=1.0, rounds=7)
    assert replaced.epsilon(DELTA) == zeroed.epsilon(DELTA)
    assert record_rate(1666, 15, replacement=True) == pytest.approx(0.00897, abs=5e-6)
    assert record_rate(1666, 15, replacement=False) == 15 / 1666
    assert record_rate(1, 3, replacement=True) == 1.0


def test_warnings_on_delta():
    accountant = Accountant(population=100)
    accountant.step(noise_std=1.0, clip=1.0)
    with pytest.warns(PrivacyWarning, match="not below 1/100"):
        accountant.epsilon(0.01)
    paper = Accountant("record")
    paper.step(noise_std=0.01, clip=1.0, rate=record_rate(1666, 15, replacement=True))
    with pytest.warns(PrivacyWarning, match=r"says nothing: the chance to be drawn at all is 0.00897"):
        paper.epsilon(0.01)


def test_no_noise_is_no_privacy():
    accountant = spent(5.0, 3)
    accountant.step(noise_std=0.0, clip=1.0)
    assert accountant.epsilon(DELTA) == math.inf
    assert accountant.delta(1.0) == 1.0
    assert accountant.upper_bound(DELTA) == math.inf
    assert Accountant().epsilon(DELTA) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_std": -1.0, "clip": 1.0}, "noise_std=-1.0"),
        ({"noise_std": math.nan, "clip": 1.0}, "noise_std=nan"),
        ({"noise_std": 1.0, "clip": 0.0}, "clip=0.0"),
        ({"noise_std": 1.0, "clip": 1.0, "rounds": 0}, "rounds=0"),
        ({"noise_std": 1.0, "clip": 1.0, "rate": 0.0}, "sampling rate 0.0"),
        ({"noise_std": 1.0, "clip": 1.0, "rate": 1.5}, "sampling rate 1.5"),
        ({"noise_std": 1.0, "clip": 1.0, "law": "cauchy"}, "law='cauchy'"),
    ],
)
def test_impossible_steps(options, message):
    with pytest.raises(ConfigError, match=message):
        Accountant().step(**options)


def test_other_bad_inputs():
    with pytest.raises(ConfigError, match="did you mean 'client'"):
        Accountant("clients")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="accounting='prv'"):
        Accountant(method="prv")  # type: ignore[arg-type]
    for delta in (0, -1e-5, 1.0, 2, math.nan):
        with pytest.raises(ConfigError, match="delta="):
            spent(1.0, 1).epsilon(delta)
    with pytest.raises(ConfigError, match="cannot resolve; choose 'rdp'"):
        spent(1.0, 1, 0.5).epsilon(1e-12)
    with pytest.raises(ConfigError, match="two relations"):
        pld_epsilon({Round("gaussian", 1.0, 0.1): 1, Round("gaussian", 1.0, 0.1, "replace"): 1}, DELTA)
    with pytest.raises(ConfigError, match="20 draws without replacement from 10"):
        record_rate(10, 20, replacement=False)
    accountant = Accountant()
    accountant.step(noise_std=1.0, clip=1.0, law="laplace")
    with pytest.raises(ConfigError, match="Gaussian rounds alone"):
        accountant.upper_bound(DELTA)


# From a budget to the noise.


@pytest.mark.parametrize("epsilon", [8.0, 2.0, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "rdp"},
        {"rate": 0.1},
        {"law": "laplace"},
        {"unit": "record", "rate": 0.009, "method": "rdp"},
        {"unit": "record", "rate": 0.009},
    ],
)
def test_sigma_keeps_the_budget_and_wastes_little(epsilon, options):
    sigma = sigma_for(epsilon, DELTA, clip=0.5, clients=30, rounds=20, **options)
    law = options.get("law", "gaussian")
    accountant = Accountant(options.get("unit", "client"), method=options.get("method", "pld"))
    total = sigma if law == "laplace" else sigma * math.sqrt(30)
    accountant.step(noise_std=total, clip=0.5, rate=options.get("rate", 1.0), rounds=20, law=law)
    assert epsilon * 0.99 < accountant.epsilon(DELTA) <= epsilon * (1 + 1e-9)


def test_multiplier_of_one_round_is_the_analytic_gaussian():
    z = noise_multiplier_for(1.0, DELTA, rounds=1)
    assert gaussian_delta(1.0, z) == pytest.approx(DELTA, rel=0.01)


def test_budgets_per_client():
    epsilons, clips = [8.0, 2.0, 4.0], [1.0, 0.5, 1.0]
    sigmas = sigmas_for_budgets(epsilons, [DELTA] * 3, clips, rounds=10)
    ledger = Ledger(clips)
    for _ in range(10):
        ledger.step(dict(enumerate(sigmas)))
    reached = ledger.epsilons(DELTA)
    assert all(e <= budget for e, budget in zip(reached, epsilons, strict=True))
    assert max(e / budget for e, budget in zip(reached, epsilons, strict=True)) > 0.99
    own = clips_for_budgets(epsilons, [DELTA] * 3, sigma=1.0, rounds=10)
    ledger = Ledger(own)
    for _ in range(10):
        ledger.step(dict.fromkeys(range(3), 1.0))
    assert ledger.epsilons(DELTA) == pytest.approx(epsilons, rel=0.01)
    laplace = sigmas_for_budgets(epsilons, [DELTA] * 3, clips, rounds=10, law="laplace")
    ledger = Ledger(clips)
    for _ in range(10):
        ledger.step(dict(enumerate(laplace)), law="laplace")
    assert ledger.epsilons(DELTA) == pytest.approx(epsilons, rel=0.01)
    with pytest.raises(ConfigError, match="2 budgets epsilon, 1 delta and 3 clips"):
        sigmas_for_budgets([1.0, 2.0], [DELTA], clips, rounds=1)
    with pytest.raises(ConfigError, match="epsilon=0"):
        sigma_for(0, DELTA, clip=1.0, clients=3, rounds=1)
    with pytest.raises(ConfigError, match="clients=0"):
        sigma_for(1.0, DELTA, clip=1.0, clients=0, rounds=1)


def test_dropouts_cost_and_the_server_can_make_up_for_them():
    full, dropped, topped = (Ledger([1.0] * 4) for _ in range(3))
    full.step(dict.fromkeys(range(4), 2.0))
    dropped.step({0: 2.0, 1: 2.0})
    topped.step({0: 2.0, 1: 2.0}, server_std=math.sqrt(2) * 2.0)
    assert dropped.epsilons(DELTA)[2:] == [0.0, 0.0]  # who did not answer spent nothing
    assert dropped.epsilons(DELTA)[0] > full.epsilons(DELTA)[0]
    assert topped.epsilons(DELTA)[0] == pytest.approx(full.epsilons(DELTA)[0])
    everybody = Ledger([1.0] * 4, rates=[0.5] * 4)
    everybody.step({0: 2.0, 1: 2.0}, charged=range(4))
    assert len(set(everybody.epsilons(DELTA))) == 1
    everybody.step({0: 0.0}, law="none")
    assert everybody.epsilons(DELTA)[0] == math.inf
    again = Ledger([1.0] * 4, rates=[0.5] * 4)
    again.load_state(json.loads(json.dumps(everybody.state())))
    assert again.epsilons(DELTA) == everybody.epsilons(DELTA)
    with pytest.raises(DataError, match="of 4 clients; there are 2"):
        Ledger([1.0] * 2).load_state(everybody.state())
    with pytest.raises(DataError, match="1 sampling rates for 2"):
        Ledger([1.0] * 2, rates=[0.5])


def test_statements_name_delta_rounds_unit_and_what_is_not_covered():
    text = privacy_statement(
        epsilon=7.8, delta=1e-5, rounds=80, clients=30, sigma=1.0, clip=1.0, unit="record", rate=0.009, method="rdp"
    )
    for part in (
        "(7.8, 1e-05)",
        "all 80 rounds",
        "record level",
        "30 clients",
        "L2 norm 1.0",
        "LENGTHS",
        "seed",
        "RDP",
        "0.009",
    ):
        assert part in text
    assert "L1 norm" in privacy_statement(epsilon=1.0, delta=1e-5, rounds=1, clients=1, law="laplace", clip=1.0)
    assert privacy_statement(
        epsilon=math.inf, delta=1e-5, rounds=1, clients=3, law="none", mechanism="none"
    ).startswith("Nothing is protected")


def test_rdp_of_a_pure_mechanism_is_at_most_its_pure_epsilon():
    assert rdp_epsilon({Round("laplace", 2.0): 3}, 1e-12) == pytest.approx(1.5)
