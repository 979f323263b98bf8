"""The app that ``flwr run`` starts: a linear head on stored features, trained under a mechanism."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import save

from krossfuse.core.errors import DataError
from krossfuse.core.files import write_whole
from krossfuse.federated import LinearHead, UnitHead
from krossfuse.federated.partition import Rows
from krossfuse.flower.config import RunConfig
from krossfuse.flower.features import Features, Labelled
from krossfuse.flower.mod import CLIENT_KEY, CLIENT_QUERY, answer_client, cepam_mod
from krossfuse.flower.strategy import CepamStrategy

log = logging.getLogger("flwr.krossfuse")  # Flower shows what its own logger gets

HEAD = "head"
"""The one array: (d,) weights, then biases."""


def client_app() -> ClientApp:
    """Return the ClientApp: it trains from the global head on its rows, which are those of the batched simulation.

    A node's own configuration (``--node-config``) says ``partition-id``, and may name a file of its own as ``data``:
    then all training rows of that file are this client's. Otherwise they are its share of the run's file.
    """
    app = ClientApp(mods=[cepam_mod])
    app.query(CLIENT_QUERY)(answer_client)
    app.train()(_train)
    return app


def server_app() -> ServerApp:
    """Return the ServerApp: it evaluates on the test rows of its own file, and writes head and record to ``out``."""
    app = ServerApp()
    app.main()(_main)
    return app


def _train(message: Message, context: Context) -> Message:
    config = RunConfig.read(context.run_config)
    client = int(context.node_config[CLIENT_KEY])
    own = str(context.node_config.get("data", ""))
    model, data, shares = _loaded(config, own)
    rows = np.arange(len(data.y)) if own else shares[client]
    start = torch.from_numpy(message.content.array_records["arrays"][HEAD].numpy())
    if start.shape != (model.d,):
        raise DataError(
            f"client {client}: the server's head has {len(start)} parameters, this client's features need {model.d}: "
            "all files need the same encoders and the same classes in the same order"
        )
    round = cast(int, message.content.config_records["config"]["server-round"]) - 1
    update = config.local().updates(
        model, start, data.x, data.y, {client: rows}, [client], seed=config.seed, round=round
    )
    trained = ArrayRecord({HEAD: Array((start + update[0]).numpy())})
    return Message(RecordDict({"arrays": trained}), reply_to=message)


@lru_cache(maxsize=2)
def _loaded(config: RunConfig, own: str) -> tuple[LinearHead, Labelled, list[Rows]]:
    """Return model, training rows, and who has which; a process may be several clients (:class:`LocalGrid`)."""
    features = _features(config, own)
    data = features.train()
    shares = [] if own else config.shares()(data.y.numpy(), config.clients, seed=config.seed)
    return _model(config, features, data), data, shares


def _main(grid: Grid, context: Context) -> None:
    config = RunConfig.read(context.run_config)
    strategy = CepamStrategy(
        config.make_strategy(), config.protection(), config.clients, checkpoint=config.file, pad=config.pad
    )
    features = _features(config)
    test = features.test()
    model = _model(config, features, test)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        measured = model.evaluate(torch.from_numpy(arrays[HEAD].numpy()), test.x, test.y)
        return MetricRecord(dict(measured))

    start = ArrayRecord({HEAD: Array(model.initial(config.seed).numpy())})
    result = strategy.start(grid, start, num_rounds=config.rounds, timeout=float(config.timeout), evaluate_fn=evaluate)
    head = torch.from_numpy((result.arrays or start)[HEAD].numpy())
    accuracy = model.evaluate(head, test.x, test.y)["accuracy"]
    log.info("accuracy %.4f after %d rounds, %d bits", accuracy, strategy.rounds_done, strategy.total_bits)
    log.info("%s", strategy.statement)
    if config.out:
        curve = {number: dict(record) for number, record in result.evaluate_metrics_serverapp.items()}
        _write(Path(config.out), features, model, head, {"accuracy": accuracy, "curve": curve}, strategy)


def _write(
    folder: Path, features: Features, model: LinearHead, head: torch.Tensor, measured: dict[str, Any], by: CepamStrategy
) -> None:
    cut = model.d - model.classes
    tensors = {"weight": head[:cut].view(model.classes, -1).contiguous(), "bias": head[cut:].contiguous()}
    normalised = isinstance(model, UnitHead)
    metadata = {"classes": json.dumps(list(features.classes)), "normalise": json.dumps(normalised)}
    write_whole(folder / "head.safetensors", save(tensors, metadata))
    record = {
        **measured,
        "statement": by.statement,
        "epsilons": by.account.epsilons() if by.protection.mechanism.noise != "none" else None,
        "delta": by.protection.delta,
        "sigma": by.protection.mechanism.noise_std,
        "rounds_done": by.rounds_done,
        "total_bits": by.total_bits,
        "history": by.history,
    }
    write_whole(folder / "record.json", json.dumps(record, indent=2).encode())


def _features(config: RunConfig, own: str = "") -> Features:
    return Features(own or config.data, role=config.features, fusion=config.fusion, label_set=config.label_set)


def _model(config: RunConfig, features: Features, data: Labelled) -> LinearHead:
    kind = UnitHead if config.normalise else LinearHead
    return kind(data.x.shape[1], len(features.classes), multilabel=features.multilabel)
