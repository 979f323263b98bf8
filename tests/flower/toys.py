"""A small federation, by Flower in this process and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs the package flwr (make test-flower)")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from krossfuse.federated import LinearHead, LocalTraining, Protection, partition
from krossfuse.flower import CLIENT_QUERY, CepamStrategy, LocalGrid, answer_client, cepam_mod
from krossfuse.privacy import Key, make_mechanism

DIM, CLASSES, N, K, DELTA = 24, 5, 300, 5, 1e-5
SECRET = bytes(range(32))
NODES = {7001 + 13 * k: {"partition-id": k} for k in reversed(range(K))}  # ids say nothing of the clients


def draw(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=g)
    means = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    return means[y] + torch.randn(n, DIM, generator=g), y


X, Y = draw(N, 0)
PARTS = partition(Y, K, seed=0)
MODEL = LinearHead(DIM, CLASSES)
LOCAL = LocalTraining(steps=5, batch_size=4, lr=0.1, momentum=0.5)
NONE = make_mechanism("none")


def start():
    return ArrayRecord({"head": Array(np.zeros(MODEL.d, np.float32))})


def update(parameters, client, round):
    """Return the (d,) update of a client, by the code of the simulation."""
    return LOCAL.updates(MODEL, parameters, X, Y, PARTS, [client], seed=0, round=round)[0]


def make_app(mods=(cepam_mod,), change=None, seen=None):
    """Return the ClientApp; ``change`` of (arrays, client, round) replaces what was trained."""
    app = ClientApp(mods=list(mods))
    app.query(CLIENT_QUERY)(answer_client)

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        round = message.content["config"]["server-round"] - 1
        if seen is not None:
            seen.append((client, round, message.content))
        before = torch.from_numpy(message.content["arrays"]["head"].numpy())
        after = {"head": (before + update(before, client, round)).numpy()}
        if change is not None:
            after = change(after, client, round)
        arrays = ArrayRecord({name: Array(np.asarray(array)) for name, array in after.items()})
        metrics = MetricRecord({"num-examples": 1.0 + client * (not mods), "loss": 0.125})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def inner(kind=FedAvg, **options):
    return kind(**{"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1, **options})


def protection(mechanism=NONE, **options):
    return Protection(
        mechanism=mechanism, **({"clip": 0.5, "delta": DELTA} if mechanism.noise != "none" else {}) | options
    )


def wrapped(mechanism=NONE, *, strategy=None, clients=K, extra=None, **options):
    return CepamStrategy(
        strategy or inner(), protection(mechanism, **options), clients, **{"secret": SECRET, **(extra or {})}
    )


def play(strategy, rounds=3, *, app=None, nodes=NODES, deliver=None, arrays=None):
    grid = LocalGrid(app or make_app(), nodes, deliver=deliver)
    return strategy.start(grid, arrays or start(), num_rounds=rounds)


def head(result):
    return result.arrays["head"].numpy()


def message_key(client, round):
    """Return the key that a strategy with :data:`SECRET` gives a message."""
    return Key(Key(SECRET, client, round).derive("flower/message", 32), client, round)
