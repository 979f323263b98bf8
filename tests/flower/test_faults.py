"""What goes wrong at a client or on the way: a clear error each, and nothing bad reaches the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs the package flwr (make test-flower)")

from flower.toys import DELTA, NODES, K, head, inner, make_app, message_key, play, start, update, wrapped
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.flower import CLIENT_QUERY, LocalGrid, answer_client, cepam_mod
from krossfuse.flower.order import Order
from krossfuse.privacy import Key, clip, make_mechanism
from krossfuse.privacy.messages import VERSION

CEPAM = make_mechanism("cepam", sigma=0.02, lattice="Z1")
NODE = {config["partition-id"]: node for node, config in NODES.items()}


def message_of(client, round, mechanism=CEPAM, key=None):
    """Return what a client sends in a round, from zero parameters."""
    sent = clip(update(torch.zeros_like(torch.from_numpy(head_of())), client, round).numpy(), 0.5)
    return mechanism.encode(sent, key or message_key(client, round))


def head_of():
    return start()["head"].numpy()


def carried(message):
    return RecordDict({"krossfuse": ConfigRecord({"message": len(message).to_bytes(4, "little") + message})})


def altered(message):
    return message[:20] + bytes([message[20] ^ 1]) + message[21:]


BAD = {
    "truncated": (lambda: carried(message_of(1, 0)[:-3]), "truncated or altered"),
    "cut-in-transport": (
        lambda: RecordDict({"krossfuse": ConfigRecord({"message": b"\xff\0\0\0KF"})}),
        "truncated or altered: 2 bytes, of which 255",
    ),
    "altered": (lambda: carried(altered(message_of(1, 0))), "truncated or altered"),
    "empty": (lambda: carried(b""), "not a KrossFuse message"),
    "replayed": (lambda: carried(message_of(1, 0, key=message_key(1, 7))), "early: it is of round 7; this is round 0"),
    "another-clients": (lambda: carried(message_of(2, 0)), "client 2's; client 1's was expected"),
    "another-secret": (lambda: carried(message_of(1, 0, key=Key(bytes(32), 1, 0))), "another secret"),
    "another-version": (
        lambda: carried(b"KF" + bytes([VERSION + 1]) + message_of(1, 0)[3:]),
        f"version {VERSION + 1}, this decoder reads version {VERSION}",
    ),
    "another-lattice": (
        lambda: carried(message_of(1, 0, make_mechanism("cepam", sigma=0.02, lattice="E8"))),
        "other settings",
    ),
    "another-mechanism": (lambda: carried(message_of(1, 0, make_mechanism("none"))), "other settings"),
    "another-sigma": (
        lambda: carried(message_of(1, 0, make_mechanism("cepam", sigma=1e-3, lattice="Z1"))),
        "other settings",
    ),
    "bare-arrays": (lambda: RecordDict({"arrays": ArrayRecord({"head": Array(head_of() + 9)})}), "mods=[cepam_mod]"),
    "arrays-beside-it": (
        lambda: RecordDict({**carried(message_of(1, 0)), "arrays": ArrayRecord({"head": Array(head_of())})}),
        "comes alone",
    ),
    "metrics-beside-it": (
        lambda: RecordDict({**carried(message_of(1, 0)), "metrics": MetricRecord({"loss": 1.0})}),
        "comes alone",
    ),
    "text": (lambda: RecordDict({"krossfuse": ConfigRecord({"message": "no bytes"})}), "mods=[cepam_mod]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_named_and_never_reaches_the_mean(name, caplog):
    make, words = BAD[name]

    def deliver(reply):
        if reply.metadata.src_node_id == NODE[1] and reply.metadata.message_type == "train":
            reply.content = make()
        return [reply]

    def silence(reply):
        silent = reply.metadata.src_node_id == NODE[1] and reply.metadata.message_type == "train"
        return [] if silent else [reply]

    strategy, without = wrapped(CEPAM), wrapped(CEPAM)
    result = play(strategy, 1, deliver=deliver)
    assert words in caplog.text
    assert f"message of node {NODE[1]} refused" in caplog.text
    assert (head(result) == head(play(without, 1, deliver=silence))).all()
    assert strategy.history[0]["received"] == K - 1
    assert strategy.history[0]["refused"] == 1
    assert strategy.account.epsilons() == without.account.epsilons()
    assert strategy.account.epsilons()[1] == 0  # what is not in the sum costs nothing


def test_a_reply_of_the_round_before_is_a_replay(caplog):
    kept = {}

    def deliver(reply):
        node = reply.metadata.src_node_id
        if reply.metadata.message_type == "train" and node == NODE[1]:
            old, kept[node] = kept.get(node), reply
            return [reply] if old is None else [old]
        return [reply]

    strategy = wrapped(CEPAM, extra={"secret": None})
    play(strategy, 2, deliver=deliver)
    assert "replayed: it is of round 0; this is round 1" in caplog.text
    assert [record["received"] for record in strategy.history] == [K, K - 1]


def test_a_doubled_reply_counts_once(caplog):
    strategy, once = wrapped(CEPAM), wrapped(CEPAM)
    result = play(strategy, 1, deliver=lambda reply: [reply] * (1 + (reply.metadata.message_type == "train")))
    assert "second message of client 1 in this round" in caplog.text
    assert (head(result) == head(play(once, 1))).all()
    assert strategy.account.epsilons() == once.account.epsilons()


def test_who_was_not_asked_is_not_heard(caplog):
    def deliver(reply):
        if reply.metadata.message_type == "train" and reply.metadata.src_node_id == NODE[1]:
            reply.metadata.__dict__["_src_node_id"] = 4711
        return [reply]

    strategy = wrapped(CEPAM)
    play(strategy, 1, deliver=deliver)
    assert "message of node 4711 refused: nobody asked it in this round" in caplog.text
    assert strategy.history[0]["received"] == K - 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_an_update_that_is_not_finite_never_leaves_its_client(value, caplog):
    def change(after, client, round):
        return {"head": np.where(client == 2, np.float64(value) * 10, after["head"])}

    strategy = wrapped(CEPAM)
    result = play(strategy, 1, app=make_app(change=change))
    assert "DataError: client 2, round 1" in caplog.text
    assert "finite" in caplog.text
    assert np.isfinite(head(result)).all()
    assert strategy.history[0]["received"] == K - 1
    with pytest.raises(DataError, match="round 1: none of 5 messages could be used; the first: .*finite"):
        play(wrapped(CEPAM), app=make_app(change=lambda after, client, round: {"head": after["head"] * np.nan}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda after: {"tail": after["head"]}, r"arrays are \['tail'\]; the server sent \['head'\]"),
        (lambda after: {"head": after["head"][1:]}, r"'head' has shape \(124,\); the server sent \(125,\)"),
    ],
)
def test_other_arrays_than_were_sent_are_refused_at_the_client(change, words):
    with pytest.raises(DataError, match=words):
        play(wrapped(CEPAM), app=make_app(change=lambda after, client, round: change(after)))


def test_a_client_app_that_fails_is_named():
    def change(after, client, round):
        raise ZeroDivisionError("no records")

    with pytest.raises(DataError, match="none of 5 messages.*ZeroDivisionError.*no records"):
        play(wrapped(CEPAM), app=make_app(change=change))


def test_without_the_mod_no_round_is_played():
    with pytest.raises(DataError, match=r"none of 5 messages.*mods=\[cepam_mod\]"):
        play(wrapped(CEPAM), app=make_app(mods=()))


def test_without_the_wrapper_no_update_leaves_its_client(caplog):
    result = play(inner(flower.FedAvg), 1)
    assert result.arrays is None or not len(result.arrays)
    assert "its strategy must be wrapped" in caplog.text


def ordered(**change):
    """Return what the mod answers to an order."""
    record = Order(Key(bytes(32), 1, 0), CEPAM, 0.5, "l2").record()
    record.update(change)
    LocalGrid(ClientApp(), {})  # sets who sends
    content = RecordDict({"arrays": start(), "config": ConfigRecord({"server-round": 1}), "krossfuse": record})
    message = Message(content, dst_node_id=NODE[1], message_type="train")
    grid = LocalGrid(make_app(), NODES)
    (reply,) = grid.send_and_receive([message])
    return reply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": 2}, "order has version 2, this client reads version 1"),
        ({"secret": b"short"}, "5 bytes; it needs 16"),
        ({"mechanism": "no json"}, "cannot be read"),
        ({"mechanism": '{"mechanism": "cepan"}'}, "did you mean 'cepam'"),
        ({"mechanism": '{"mechanism": "cepam", "sigma": 1.0, "depth": 2}'}, "depth"),
    ],
)
def test_an_order_that_cannot_be_read_is_refused_at_the_client(change, words):
    reply = ordered(**change)
    assert reply.has_error()
    assert words in reply.error.reason
    assert not ordered().has_error()


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({1: {"partition-id": 0}, 2: {"partition-id": 0}}, "both say that they are client 0"),
        ({1: {"partition-id": 5}}, "client 5; there are clients=5"),
        ({1: {}}, "partition-id=None.*--node-config 'partition-id=0'"),
        ({1: {"partition-id": "zero"}}, "partition-id='zero'"),
        ({1: {"partition-id": -1}}, "partition-id=-1"),
    ],
)
def test_nodes_that_do_not_say_who_they_are(nodes, words):
    with pytest.raises(DataError, match=words):
        play(wrapped(CEPAM), nodes=nodes)


def test_an_app_without_the_query_is_named():
    app = ClientApp(mods=[cepam_mod])
    with pytest.raises(DataError, match=r"app\.query\(CLIENT_QUERY\)\(answer_client\)"):
        play(wrapped(CEPAM), app=app)
    assert CLIENT_QUERY.isidentifier()
    assert callable(answer_client)


def test_an_account_follows_its_client_to_another_node():
    strategy = wrapped(CEPAM)
    first = {1: {"partition-id": 0}, 2: {"partition-id": 1}}
    second = {3: {"partition-id": 0}, 2: {"partition-id": 1}}
    grid = LocalGrid(make_app(), first)
    arrays = start()
    for round, nodes in enumerate((first, second), 1):
        moved = LocalGrid(make_app(), nodes)
        grid.contexts = moved.contexts
        replies = grid.send_and_receive(strategy.configure_train(round, arrays, ConfigRecord(), grid))
        arrays, _ = strategy.aggregate_train(round, replies)
    epsilons = strategy.account.epsilons()
    assert epsilons[0] == epsilons[1] > 0
    assert epsilons[2:] == [0, 0, 0]


def test_noise_without_a_clip_is_refused():
    with pytest.raises(ConfigError, match="needs clip=C"):
        wrapped(CEPAM, clip=None, delta=DELTA)
