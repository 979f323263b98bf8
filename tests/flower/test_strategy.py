"""The wrapper and the mod, over Flower's own strategies: what comes out, by oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs the package flwr (make test-flower)")

from flower.toys import (
    DELTA,
    LOCAL,
    MODEL,
    NODES,
    NONE,
    PARTS,
    K,
    X,
    Y,
    head,
    inner,
    make_app,
    message_key,
    play,
    start,
    update,
    wrapped,
)
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from scipy import stats

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.federated import ClientSampling, Federation, Settings
from krossfuse.flower import CLIENT_QUERY, CepamStrategy, answer_client, cepam_mod
from krossfuse.flower.strategy import NOT_OF_A_MEAN
from krossfuse.privacy import Accountant, clip, make_mechanism

CEPAM = make_mechanism("cepam", sigma=0.02)


def by_hand(mechanism, rounds, bound=0.5, norm="l2"):
    """Return the parameters of federated averaging under a mechanism, with the keys of the wrapper's messages."""
    parameters = torch.zeros(MODEL.d)
    for round in range(rounds):
        total = np.zeros(MODEL.d)
        for client in range(K):
            sent = (parameters + update(parameters, client, round)) - parameters
            key = message_key(client, round)
            message = mechanism.encode(clip(sent.numpy(), bound, norm), key)
            total += mechanism.decode(message, key)
        parameters = parameters + torch.from_numpy((total / K).astype(np.float32))
    return parameters.numpy()


def test_without_a_mechanism_it_is_the_batched_simulation():
    result = play(wrapped(), 4)
    expected = Federation(MODEL, X, Y, PARTS, Settings(rounds=4, mechanism=NONE, local=LOCAL)).run()
    assert np.abs(head(result) - expected.parameters.numpy()).max() < 1e-6
    assert np.abs(head(result)).max() > 0.05


@pytest.mark.parametrize(
    ("name", "options", "norm"),
    [
        ("cepam", {}, "l2"),
        ("cepam", {"lattice": "E8"}, "l2"),
        ("cepam", {"law": "laplace"}, "l1"),
        ("gaussian", {}, "l2"),
        ("gaussian_sdq", {"step": 0.02}, "l2"),
    ],
)
def test_every_mechanism_to_the_bit_against_a_loop(name, options, norm):
    mechanism = make_mechanism(name, sigma=0.02, **options)
    assert (head(play(wrapped(mechanism), 3)) == by_hand(mechanism, 3, norm=norm)).all()


def test_the_error_of_the_mean_has_the_law_of_the_mechanism():
    errors = []
    for _ in range(10):
        fresh = wrapped(CEPAM, extra={"secret": None})
        plain = wrapped(clip=0.5)
        errors.append((head(play(fresh, 1)) - head(play(plain, 1))) * math.sqrt(K) / CEPAM.sigma)
    assert stats.kstest(np.concatenate(errors), "norm").pvalue > 1e-5
    assert len({e.tobytes() for e in errors}) == 10  # no secret serves twice


@pytest.mark.parametrize(
    "kind",
    [flower.FedAvg, flower.FedAvgM, flower.FedProx, flower.FedAdam, flower.FedYogi, flower.FedAdagrad],
)
def test_flowers_strategies_are_themselves_where_nothing_is_added(kind):
    ours = play(wrapped(strategy=inner(kind)), 4)
    bare = play(inner(kind), 4, app=make_app(mods=(), change=lambda arrays, client, round: arrays))
    weighted = not np.allclose(head(ours), head(bare), atol=1e-6)
    assert weighted  # Flower weighs by the number of examples, which differ here
    uniform = play(inner(kind, weighted_by_key="loss"), 4, app=make_app(mods=()))
    np.testing.assert_allclose(head(ours), head(uniform), atol=2e-6)


def test_fed_adam_under_cepam_learns_as_it_does_without():
    noisy = play(wrapped(make_mechanism("cepam", sigma=0.005), strategy=inner(flower.FedAdam, eta=0.05)), 6)
    plain = play(wrapped(strategy=inner(flower.FedAdam, eta=0.05), clip=0.5), 6)
    assert noisy.arrays["head"].dtype == "float32"  # Flower alone makes float64 of it
    right = [MODEL.evaluate(torch.from_numpy(head(r)), X, Y)["accuracy"] for r in (noisy, plain)]
    assert min(right) > 0.9
    assert abs(right[0] - right[1]) < 0.05


def test_a_model_of_several_arrays_and_types_is_one_vector():
    like = {"b": np.ones((3, 4), np.float32), "a": np.ones(5), "c": np.ones((2, 2), np.float16)}
    arrays = ArrayRecord({name: Array(array) for name, array in like.items()})
    steps = {name: np.arange(array.size, dtype=array.dtype).reshape(array.shape) / 16 for name, array in like.items()}
    app = ClientApp(mods=[cepam_mod])
    app.query(CLIENT_QUERY)(answer_client)

    @app.train()
    def train(message, context):
        made = ArrayRecord({name: Array(like[name] + steps[name]) for name in like})
        return Message(RecordDict({"arrays": made}), reply_to=message)

    result = play(wrapped(), 1, app=app, arrays=arrays)
    assert list(result.arrays) == list(like)
    for name, array in like.items():
        got = result.arrays[name].numpy()
        assert got.dtype == array.dtype
        np.testing.assert_allclose(got, array + steps[name], rtol=1e-6)
    whole = np.concatenate([steps[name].ravel().astype(np.float64) for name in like])
    clipped = play(wrapped(clip=0.25), 1, app=app, arrays=arrays).arrays  # the WHOLE vector, not array by array
    moved = np.concatenate([clipped[name].numpy().ravel().astype(np.float64) - 1 for name in like])
    np.testing.assert_allclose(moved, whole * 0.25 / np.linalg.norm(whole), atol=1e-3)
    assert np.linalg.norm(whole) > 1


def test_the_account_is_that_of_the_simulation():
    sigmas, clips = [0.5 + 0.1 * k for k in range(K)], [0.1 + 0.1 * k for k in range(K)]
    options = {"sigmas": sigmas, "clip": clips, "delta": DELTA}
    mechanism = make_mechanism("cepam", sigma=1.0)
    strategy = wrapped(mechanism, **options)
    play(strategy, 3)
    simulated = Federation(MODEL, X, Y, PARTS, Settings(rounds=3, mechanism=mechanism, local=LOCAL, **options)).run()
    assert strategy.account.epsilons() == simulated.epsilons
    assert len(set(simulated.epsilons)) == K
    assert strategy.statement.startswith(simulated.statement)
    assert "links must be encrypted" in strategy.statement
    assert f"{max(simulated.epsilons):.4g}" in strategy.statement


def test_budgets_end_the_training_and_are_never_exceeded():
    seen = []
    budgets = [1.0, 1.0, 1.5, 1.5, 1.5]
    strategy = wrapped(make_mechanism("cepam", sigma=2.0), budgets=budgets)
    play(strategy, 40, app=make_app(seen=seen))
    epsilons = strategy.account.epsilons()
    assert all(e <= b * (1 + 1e-9) for e, b in zip(epsilons, budgets, strict=True))
    assert max(epsilons[:2]) > 0.6
    assert max(epsilons[2:]) > 1.1
    assert strategy.finished
    rounds = strategy.rounds_done
    assert 2 < rounds < 40
    assert max(round for _, round, _ in seen) == rounds - 1  # nobody is asked afterwards
    last = [client for client, round, _ in seen if round == rounds - 1]
    assert set(last) == {2, 3, 4}


def test_poisson_sampling_is_charged_as_it_is_in_the_simulation():
    sampling = ClientSampling("poisson", 0.6)
    strategy = wrapped(make_mechanism("cepam", sigma=1.0), sampling=sampling)
    play(strategy, 8)
    account = Accountant()
    account.step(noise_std=math.sqrt(0.6 * K), clip=0.5, rate=0.6, rounds=8)
    assert strategy.account.epsilons() == [pytest.approx(account.epsilon(DELTA))] * K
    assert len({record["participants"] for record in strategy.history}) > 1


def test_what_a_dropout_takes_away_the_server_adds():
    lost = [node for node, config in NODES.items() if config["partition-id"] in (1, 3)]

    def deliver(reply):
        return [] if reply.metadata.src_node_id in lost and reply.metadata.message_type == "train" else [reply]

    mechanism = make_mechanism("cepam", sigma=2.0)
    lossy, topped = wrapped(mechanism), wrapped(mechanism, top_up=True)
    play(lossy, 2, deliver=deliver)
    noisy = play(topped, 2, deliver=deliver)
    assert [record["received"] for record in topped.history] == [3, 3]
    full = Accountant()
    full.step(noise_std=2.0 * math.sqrt(K), clip=0.5, rounds=2)
    assert max(topped.account.epsilons()) == pytest.approx(full.epsilon(DELTA))
    assert max(lossy.account.epsilons()) > max(topped.account.epsilons())
    assert topped.account.epsilons()[1] == 0
    assert np.isfinite(head(noisy)).all()


def test_secrets_are_of_one_message_and_nothing_else_leaves():
    seen, replies = [], []

    def deliver(reply):
        replies.append(reply)
        return [reply]

    orders = []

    class Watching(CepamStrategy):
        def configure_train(self, *arguments):
            messages = list(super().configure_train(*arguments))
            orders.extend([message.content["krossfuse"] for message in messages])
            return messages

    strategy = Watching(inner(), wrapped(CEPAM).protection, K)
    result = play(strategy, 3, app=make_app(seen=seen), deliver=deliver)
    assert len({bytes(order["secret"]) for order in orders}) == 3 * K
    assert all(set(content) == {"arrays", "config"} for _, _, content in seen)  # the app does not see the order
    trained = [reply for reply in replies if reply.metadata.message_type == "train"]
    assert len(trained) == 3 * K
    assert all(
        list(reply.content) == ["krossfuse"] and list(reply.content["krossfuse"]) == ["message"] for reply in trained
    )
    metrics = result.train_metrics_clientapp[3]
    assert "loss" not in metrics  # the clients' metrics stay with them
    sent = sum(8 * (len(reply.content["krossfuse"]["message"]) - 4) for reply in trained)
    assert metrics["total_bits"] == strategy.total_bits == sent


def test_padding_hides_the_length_and_is_not_counted():
    lengths, plain = set(), set()

    def deliver_to(where):
        def deliver(reply):
            if reply.metadata.message_type == "train":
                where.add(len(reply.content["krossfuse"]["message"]))
            return [reply]

        return deliver

    padded = wrapped(CEPAM, extra={"pad": 256})
    bare = wrapped(CEPAM)
    same = play(padded, 3, deliver=deliver_to(lengths))
    assert (head(same) == head(play(bare, 3, deliver=deliver_to(plain)))).all()
    assert len(plain) > 1
    assert all(length % 256 == 0 for length in lengths)
    assert padded.total_bits == bare.total_bits


@pytest.mark.parametrize("kind", NOT_OF_A_MEAN)
def test_strategies_that_look_at_single_updates_are_refused(kind):
    made = object.__new__(getattr(flower, kind))
    with pytest.raises(ConfigError, match=f"{kind}.*one by one.*FedAvg"):
        CepamStrategy(made, wrapped().protection, K)


def test_strategies_that_add_noise_are_refused():
    private = flower.DifferentialPrivacyServerSideFixedClipping(inner(), 1.0, 1.0, K)
    with pytest.raises(ConfigError, match="adds noise itself"):
        CepamStrategy(private, wrapped().protection, K)
    with pytest.raises(ConfigError, match="adds noise itself"):
        CepamStrategy(wrapped(), wrapped().protection, K)


def test_a_strategy_that_sends_other_arrays_is_refused():
    class Shifted(flower.FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            other = ArrayRecord({"head": Array(arrays["head"].numpy() + 1)})
            return super().configure_train(server_round, other, config, grid)

    with pytest.raises(DataError, match="Shifted sends other arrays"):
        play(wrapped(strategy=inner(Shifted)))


def test_what_does_not_fit_is_known_before_anybody_is_asked():
    with pytest.raises(ConfigError, match="3 values of clip for 5"):
        wrapped(CEPAM, clip=[1.0] * 3)
    with pytest.raises(ConfigError, match="2 sigmas for 5"):
        wrapped(CEPAM, sigmas=[1.0] * 2)
    with pytest.raises(ConfigError, match="clients=0"):
        wrapped(CEPAM, clients=0)
    with pytest.raises(ConfigError, match="pad=0"):
        wrapped(CEPAM, extra={"pad": 0})
    counter = ArrayRecord({"head": start()["head"], "steps": Array(np.zeros(1, np.int64))})
    with pytest.raises(DataError, match="'steps' is int64.*floating-point"):
        play(wrapped(), arrays=counter)
    with pytest.raises(DataError, match="no parameters"):
        wrapped().configure_train(1, ArrayRecord(), None, None)
