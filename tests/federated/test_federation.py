"""Federations: what comes out, what is spent, and what happens when things go wrong."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.federated import (
    ClientSampling,
    Dropouts,
    Federation,
    LinearHead,
    LocalTraining,
    Settings,
    make_server,
    partition,
    with_budget,
)
from krossfuse.privacy import Accountant, PrivacyWarning, make_mechanism

DIM, CLASSES, N, K, DELTA = 12, 3, 600, 10, 1e-5


def draw(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=g)
    means = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    return means[y] + torch.randn(n, DIM, generator=g), y


X, Y = draw(N, 0)
TEST_X, TEST_Y = draw(500, 1)
PARTS = partition(Y, K, seed=0)
MODEL = LinearHead(DIM, CLASSES)
LOCAL = LocalTraining(steps=5, batch_size=4, lr=0.1, momentum=0.5)
NONE = make_mechanism("none")


def federation(mechanism=NONE, *, parts=PARTS, extra=None, **settings) -> Federation:
    settings = {"rounds": 6, "local": LOCAL, "mechanism": mechanism, **settings}
    if mechanism.noise != "none":
        settings = {"clip": 0.5, "delta": DELTA, **settings}
    evaluate = lambda p: MODEL.evaluate(p, TEST_X, TEST_Y)  # noqa: E731
    return Federation(MODEL, X, Y, parts, Settings(**settings), evaluate=evaluate, **(extra or {}))


def test_plain_federated_averaging_is_the_mean_of_local_runs():
    result = federation().run()
    parameters = MODEL.initial(0)
    for round in range(6):
        updates = LOCAL.updates(MODEL, parameters, X, Y, PARTS, range(K), seed=0, round=round)
        parameters = parameters + updates.double().mean(0).float()
    assert torch.allclose(result.parameters, parameters, atol=1e-6)
    assert result.history[-1]["accuracy"] > 0.8
    assert result.epsilons is None
    assert result.statement.startswith("Nothing is protected")
    assert result.total_bits == sum(record["bits"] for record in result.history)
    assert 32 * MODEL.d * K * 6 < result.total_bits < (32 * MODEL.d + 200) * K * 6


def test_one_client_without_noise_is_plain_sgd():
    everything = [np.arange(N)]
    local = LocalTraining(steps=30, batch_size=20, lr=0.1, momentum=0.9)
    result = federation(parts=everything, local=local, rounds=1).run()
    weight = torch.zeros(CLASSES, DIM, requires_grad=True)
    bias = torch.zeros(CLASSES, requires_grad=True)
    optimiser = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
    for rows in local.draws(everything[0], 0, 0, 0):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(X[rows] @ weight.T + bias, Y[rows]).backward()
        optimiser.step()
    assert torch.allclose(result.parameters, torch.cat([weight.flatten(), bias]).detach(), atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "cepam", "gaussian_sdq", "laplace", "cepam_laplace"])
def test_the_sum_carries_exactly_the_noise_that_is_charged(name):
    law = "laplace" if "laplace" in name else "gaussian"
    options = {"law": law} if name == "cepam_laplace" else {}
    mechanism = make_mechanism(name.split("_laplace")[0], sigma=0.3, **options)
    noisy, errors = federation(mechanism, rounds=1, delta=DELTA), []
    for seed in range(30):
        with_noise = federation(mechanism, rounds=1, extra={"secret": seed.to_bytes(32, "big")})
        without = federation(rounds=1, clip=0.5, clip_norm="l1" if law == "laplace" else "l2")
        errors.append((with_noise.run().parameters - without.run().parameters).numpy())
    errors = np.concatenate(errors)
    std = 0.3 / math.sqrt(K) * (math.sqrt(1 + 1 / 12) if name == "gaussian_sdq" else 1)
    assert errors.std() == pytest.approx(std, rel=0.08)
    if name in ("gaussian", "cepam"):
        assert stats.kstest(errors / std, "norm").pvalue > 1e-3
    result = noisy.run()
    account = Accountant()
    account.step(noise_std=0.3 * (1 if law == "laplace" else math.sqrt(K)), clip=0.5, law=law)
    assert result.epsilons == [pytest.approx(account.epsilon(DELTA))] * K


def test_the_whole_update_is_clipped():
    result = federation(clip=0.05, rounds=1).run()
    assert 0.02 < float((result.parameters - MODEL.initial(0)).norm()) <= 0.05
    clips = [0.01 * (k + 1) for k in range(K)]
    federated = federation(clip=clips, rounds=1)
    updates = LOCAL.updates(MODEL, MODEL.initial(0), X, Y, PARTS, range(K), seed=0, round=0)
    expected = sum(u * c / u.norm() for u, c in zip(updates, clips, strict=True)) / K
    assert torch.allclose(federated.run().parameters, expected, atol=1e-6)


def test_epsilon_grows_over_all_rounds_and_the_statement_says_so():
    result = federation(make_mechanism("cepam", sigma=1.0), rounds=5, evaluate_every=2).run()
    evaluated = [record["epsilon"] for record in result.history if "epsilon" in record]
    assert len(evaluated) == 3
    assert evaluated == sorted(evaluated)
    account = Accountant()
    account.step(noise_std=math.sqrt(K), clip=0.5, rounds=5)
    assert evaluated[-1] == pytest.approx(account.epsilon(DELTA)) == pytest.approx(max(result.epsilons))
    for part in ("all 5 rounds", "client level", "10 clients", "1e-05", "LENGTHS"):
        assert part in result.statement


def test_record_level_is_amplified_by_the_secret_batches():
    client = federation(make_mechanism("cepam", sigma=1.0), rounds=3).run()
    record = federation(make_mechanism("cepam", sigma=1.0), rounds=3, unit="record", local=LocalTraining(steps=2)).run()
    account = Accountant("record")
    account.step(noise_std=math.sqrt(K), clip=0.5, rate=2 / 60, rounds=3)
    assert record.epsilons[0] == pytest.approx(account.epsilon(DELTA))
    assert record.epsilons[0] < client.epsilons[0]
    with_replacement = federation(
        make_mechanism("cepam", sigma=1.0), unit="record", local=LocalTraining(steps=2, replacement=True)
    )
    assert with_replacement.account.ledger.rates[0] == pytest.approx(1 - (59 / 60) ** 2)


def test_budgets_per_client_are_honoured():
    budgets = [1.0] * 5 + [1.5] * 5
    result = federation(make_mechanism("cepam", sigma=2.0), rounds=40, budgets=budgets).run()
    assert all(e <= b * (1 + 1e-9) for e, b in zip(result.epsilons, budgets, strict=True))
    assert max(result.epsilons[:5]) > 0.7
    assert max(result.epsilons[5:]) > 1.2
    numbers = [record["participants"] for record in result.history]
    assert numbers[0] == 10
    assert 5 in numbers
    assert len(result.history) < 40  # all budgets were spent
    with pytest.raises(ConfigError, match="without the delta"):
        federation(make_mechanism("cepam", sigma=2.0), budgets=1.0, delta=None)
    with pytest.raises(ConfigError, match="2 values of budget epsilon for 10 clients"):
        federation(make_mechanism("cepam", sigma=2.0), budgets=[1.0, 2.0])


def test_budgets_hold_where_few_share_the_noise():
    sampling = ClientSampling("fixed", 0.3)
    result = federation(make_mechanism("cepam", sigma=2.0), rounds=20, budgets=1.0, sampling=sampling).run()
    assert 0.7 < max(result.epsilons) <= 1.0 * (1 + 1e-9)
    assert min(record["participants"] for record in result.history) < 3  # who could not afford its round left it


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": ClientSampling("poisson", 0.4)},
        {"sampling": ClientSampling("fixed", 0.3)},
        {"unit": "record", "local": LocalTraining(steps=2)},
        {
            "unit": "record",
            "local": LocalTraining(steps=2, replacement=True),
            "sampling": ClientSampling("poisson", 0.5),
        },
    ],
)
@pytest.mark.parametrize("name", ["cepam", "laplace"])
def test_noise_for_a_budget(name, options):
    mechanism = make_mechanism(name, sigma=1.0)
    shared = {"sampling": ClientSampling(), "local": LOCAL, "rounds": 4, "clip": 0.5, **options}
    fitted = with_budget(mechanism, 2.0, DELTA, parts=PARTS, **shared)
    result = federation(fitted, evaluate_every=4, **shared).run()
    assert max(result.epsilons) <= 2.0 * (1 + 1e-9)
    if shared["sampling"].kind != "fixed":
        assert max(result.epsilons) > 1.98


def test_noise_for_budgets_by_client():
    shared = {"sampling": ClientSampling(), "local": LOCAL, "rounds": 4}
    budgets, clips = [1.0] + [4.0] * (K - 1), [0.1] + [0.5] * (K - 1)
    fitted = with_budget(make_mechanism("cepam", sigma=1.0), budgets, DELTA, clip=clips, parts=PARTS, **shared)
    result = federation(fitted, clip=clips, **shared).run()
    assert all(e <= b for e, b in zip(result.epsilons, budgets, strict=True))
    assert max(e / b for e, b in zip(result.epsilons, budgets, strict=True)) > 0.99
    with pytest.raises(ConfigError, match="adds no noise"):
        with_budget(NONE, 1.0, DELTA, clip=1.0, parts=PARTS, **shared)
    with pytest.raises(ConfigError, match="2 budgets and 10 clips for 10"):
        with_budget(fitted, [1.0, 2.0], DELTA, clip=clips, parts=PARTS, **shared)


def test_sigmas_per_client():
    sigmas = [0.5 + 0.1 * k for k in range(K)]
    result = federation(make_mechanism("cepam", sigma=1.0), sigmas=sigmas, rounds=2).run()
    account = Accountant()
    account.step(noise_std=math.sqrt(sum(s * s for s in sigmas)), clip=0.5, rounds=2)
    assert result.epsilons == [pytest.approx(account.epsilon(DELTA))] * K
    with pytest.raises(ConfigError, match="3 sigmas for 10"):
        federation(make_mechanism("cepam", sigma=1.0), sigmas=[1.0] * 3)
    with pytest.raises(ConfigError, match="adds no noise"):
        federation(sigmas=[1.0] * K)
    with pytest.raises(ConfigError, match="sigma=0"):
        federation(make_mechanism("cepam", sigma=1.0), sigmas=[0.0] * K)


def test_poisson_sampling_is_amplified_and_keeps_the_noise():
    sampling = ClientSampling("poisson", 0.4)
    run = federation(make_mechanism("cepam", sigma=2.0), sampling=sampling, rounds=8)
    result = run.run()
    account = Accountant()
    account.step(noise_std=2.0 * math.sqrt(0.4 * K), clip=0.5, rate=0.4, rounds=8)
    assert result.epsilons == [pytest.approx(account.epsilon(DELTA))] * K  # everybody, drawn or not
    numbers = [record["participants"] for record in result.history]
    assert len(set(numbers)) > 1
    assert all(
        run.account.plan.variance(range(K))
        == pytest.approx(sum(s * s for s in run.account.plan.participants(list(range(m)), range(K)).values()))
        for m in numbers
        if m
    )
    lossy = federation(
        make_mechanism("gaussian", sigma=2.0), sampling=sampling, rounds=8, extra={"transport": Dropouts(0.5)}
    ).run()
    assert lossy.epsilons == result.epsilons  # the server made up for the losses


def test_a_round_without_participants_still_has_its_noise():
    sampling = ClientSampling("poisson", 1e-9)
    with pytest.warns(PrivacyWarning, match="says nothing"):
        result = federation(make_mechanism("cepam", sigma=2.0), sampling=sampling, rounds=1).run()
    assert result.history[0]["participants"] == 0
    assert result.parameters.std() > 0


def test_fixed_sampling_charges_who_took_part():
    result = federation(make_mechanism("cepam", sigma=2.0), sampling=ClientSampling("fixed", 0.3), rounds=3).run()
    assert [record["participants"] for record in result.history] == [3, 3, 3]
    assert 0.0 in result.epsilons
    assert len(set(result.epsilons)) > 1


def test_dropouts_lower_the_noise_unless_the_server_adds_it():
    mechanism, transport = make_mechanism("cepam", sigma=1.0), Dropouts(0.4, seed=1)
    lossy = federation(mechanism, extra={"transport": transport}).run()
    full = federation(mechanism).run()
    topped = federation(mechanism, top_up=True, extra={"transport": transport}).run()
    assert lossy.history[0]["received"] < 10
    assert lossy.history[0]["bits"] == full.history[0]["bits"]  # what was sent and lost was sent
    stayed = max(range(K), key=lambda k: lossy.epsilons[k])
    assert lossy.epsilons[stayed] > topped.epsilons[stayed]
    assert max(topped.epsilons) <= max(full.epsilons) * (1 + 1e-9)


def test_a_bad_message_never_reaches_the_mean():
    mechanism = make_mechanism("cepam", sigma=0.1)
    seen: dict[int, bytes] = {}

    def attacker(message, client, round):
        if client == 0:
            return message[:-1]
        if client == 1:
            return message[:20] + bytes([message[20] ^ 1]) + message[21:]
        if client == 2:
            replay = seen.get(client)
            seen[client] = message
            return replay or message
        if client == 3:
            return b"\xff" * 50
        if client == 4:
            return message[:2] + b"\x09" + message[3:]
        return message

    attacked = federation(mechanism, rounds=2, extra={"transport": attacker})
    honest = federation(
        mechanism,
        rounds=2,
        extra={
            "transport": lambda m, client, round: (
                m if client > (1 if round == 0 else 2) and client not in (3, 4) else None
            )
        },
    )
    a, b = attacked.run(), honest.run()
    assert torch.equal(a.parameters, b.parameters)
    assert [record["refused"] for record in a.history] == [4, 5]
    assert [record["received"] for record in a.history] == [6, 5]
    assert a.epsilons == b.epsilons


def test_nothing_arrives_and_nothing_moves():
    result = federation(extra={"transport": lambda *_: None}, rounds=2).run()
    assert torch.equal(result.parameters, MODEL.initial(0))


def test_a_diverging_client_is_named():
    broken = X.clone()
    broken[PARTS[3]] = math.nan
    with pytest.raises(DataError, match=r"client 3, round 1: the update is not finite: nan at coordinate 0 of 39"):
        Federation(MODEL, broken, Y, PARTS, Settings(rounds=1, mechanism=NONE, local=LOCAL)).run()


def test_an_update_too_large_for_the_noise_is_named():
    with pytest.raises(ConfigError, match="client 0, round 1: .*quantiser steps"):
        federation(make_mechanism("cepam", sigma=1e-9)).run()


def test_bad_settings():
    with pytest.raises(ConfigError, match="needs clip=C"):
        Settings(rounds=1, mechanism=make_mechanism("cepam", sigma=1.0))
    with pytest.raises(ConfigError, match="clip=0"):
        federation(clip=0.0)
    with pytest.raises(ConfigError, match="3 values of clip for 10"):
        federation(clip=[1.0] * 3)
    with pytest.raises(ConfigError, match="rounds=0"):
        federation(rounds=0)
    with pytest.raises(ConfigError, match="delta=1.0"):
        federation(make_mechanism("cepam", sigma=1.0), delta=1.0)
    with pytest.raises(ConfigError, match="clip_norm='l1' with Gaussian"):
        federation(make_mechanism("cepam", sigma=1.0), clip_norm="l1")
    with pytest.raises(ConfigError, match="clip_norm='l3'"):
        federation(clip_norm="l3")
    with pytest.raises(ConfigError, match="sampling='poison'"):
        ClientSampling("poison", 0.5)
    for kind, rate in (("poisson", 0.0), ("fixed", 1.5), ("all", 0.5)):
        with pytest.raises(ConfigError, match="sampling rate"):
            ClientSampling(kind, rate)
    with pytest.raises(ConfigError, match="dropout rate 1.0"):
        Dropouts(1.0)
    with pytest.raises(DataError, match="600 inputs and 599 labels"):
        Federation(MODEL, X, Y[1:], PARTS, Settings(rounds=1, mechanism=NONE))
    with pytest.raises(DataError, match="has no records"):
        federation(parts=[*PARTS, np.array([], int)])
    with pytest.raises(DataError, match="start has shape"):
        federation(extra={"start": torch.zeros(3)})


@pytest.mark.parametrize("server", ["fedavg", "fedadam"])
def test_a_federation_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path, server):
    options = {"momentum": 0.5} if server == "fedavg" else {}
    settings = {"server": make_server(server, **options), "rounds": 6, "sampling": ClientSampling("poisson", 0.7)}
    mechanism = make_mechanism("cepam", sigma=0.5)
    whole = federation(mechanism, **settings).run()
    path = tmp_path / "federation.safetensors"
    federation(mechanism, **{**settings, "rounds": 2}, extra={"checkpoint": path}).run()
    again = federation(mechanism, **settings, extra={"checkpoint": path})
    assert again.round == 2
    result = again.run()
    assert torch.equal(result.parameters, whole.parameters)
    assert result.epsilons == whole.epsilons
    assert [r["bits"] for r in result.history] == [r["bits"] for r in whole.history]
    done = federation(mechanism, **settings, extra={"checkpoint": path}).run()
    assert torch.equal(done.parameters, whole.parameters)
    assert done.epsilons == whole.epsilons
    with pytest.raises(DataError, match="other settings, data or secret"):
        federation(make_mechanism("cepam", sigma=0.6), **settings, extra={"checkpoint": path})
    with pytest.raises(DataError, match="other settings, data or secret"):
        federation(mechanism, **settings, extra={"checkpoint": path, "secret": b"another secret of some length"})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged"):
        federation(mechanism, **settings, extra={"checkpoint": path})


def test_a_killed_process_goes_on_and_spends_nothing_twice(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from federated.test_federation import killed\n"
        "import torch; torch.set_num_threads(1)\n"
        "killed(sys.argv[1], int(sys.argv[2]))\n"
    )
    path = tmp_path / "federation.safetensors"

    def play(kill_in: int) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", code, str(path), str(kill_in)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert play(3).returncode == -signal.SIGKILL
    assert path.exists()
    finished = play(-1)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == report(federation(make_mechanism("cepam", sigma=0.5), rounds=5).run()) + "\n"


def killed(path: str, kill_in: int) -> None:
    """Play a federation that dies in the middle of a round, after half of the messages were sent."""

    def transport(message, client, round):
        if round == kill_in and client == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return message

    run = federation(make_mechanism("cepam", sigma=0.5), rounds=5, extra={"checkpoint": path, "transport": transport})
    print(report(run.run()))


def report(result) -> str:
    """Return all bits of a result."""
    return f"{result.parameters.numpy().tobytes().hex()} {result.epsilons} {result.total_bits}"
