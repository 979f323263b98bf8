"""Flower's messages under CEPAM and as float32, in bytes that are really sent, and what a round costs.

In one process: the size of the clients' serialised replies, and the seconds of a round beside those of the batched
simulation. Over the loopback: what two SuperNodes send through a relay to their SuperLink, Flower's polling included.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")

from flwr.app import Context, RecordDict
from flwr.common.serde import message_to_proto

from experiments.benchmarks.common import write_json
from experiments.benchmarks.deployment import ROOT, Relay, insecure
from krossfuse.federated import Federation, Settings, UnitHead
from krossfuse.flower import LocalGrid, client_app, server_app
from krossfuse.flower.config import RunConfig

NONE: dict[str, Any] = {"mechanism": "none", "epsilon": "", "clip": ""}
MECHANISMS: dict[str, dict[str, Any]] = {
    "float32": NONE,
    "cepam, epsilon 8": {"epsilon": "8", "clip": "3"},
    "cepam, epsilon 1": {"epsilon": "1", "clip": "3"},
}
ON_THE_WIRE = ("float32", "cepam, epsilon 8")


def write_data(path: Path, rows: int, dim: int, classes: int) -> None:
    """Write a file of embeddings with ``rows`` training rows."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(classes, dim))
    arrays = {}
    for split, n in {"train": rows, "val": classes, "test": 10 * classes}.items():
        labels = np.arange(n) % classes
        arrays[f"{split}/image/parent"] = (means[labels] + rng.normal(size=(n, dim))).astype(np.float32)
        arrays[f"{split}/labels"] = labels
    np.savez(path, **arrays)


def in_process(config: dict[str, Any]) -> dict[str, float]:
    """Return mean bytes of a reply and seconds of a round, of Flower and of the batched simulation."""
    sizes: list[int] = []

    def deliver(reply: Any) -> list[Any]:
        if reply.metadata.message_type == "train":
            sizes.append(message_to_proto(reply).ByteSize())
        return [reply]

    nodes = {100 + client: {"partition-id": client} for client in range(config["clients"])}
    grid = LocalGrid(client_app(), nodes, run_config=config, deliver=deliver)
    began = time.perf_counter()
    server_app()(grid, Context(1, 1, {}, RecordDict(), config))
    flower = (time.perf_counter() - began) / config["rounds"]
    read = RunConfig.read(config)
    protection = read.protection()
    data = np.load(config["data"])
    x, y = torch.from_numpy(data["train/image/parent"]), torch.from_numpy(data["train/labels"])
    settings = Settings(
        rounds=read.rounds,
        local=read.local(),
        mechanism=protection.mechanism,
        clip=protection.clip,
        delta=protection.delta,
        evaluate_every=read.rounds,
    )
    parts = read.shares()(y.numpy(), read.clients, seed=read.seed)
    federation = Federation(UnitHead(x.shape[1], int(y.max()) + 1), x, y, parts, settings)
    began = time.perf_counter()
    federation.run()
    simulated = (time.perf_counter() - began) / config["rounds"]
    return {"bytes_a_reply": float(np.mean(sizes)), "seconds_a_round": flower, "simulation_seconds_a_round": simulated}


def on_the_wire(folder: Path, config: dict[str, Any], rounds: int) -> dict[str, float]:
    """Return the bytes that two SuperNodes send and get a round, and its seconds: of ``rounds`` + 1 less those of 1."""
    relay = Relay()
    measured = []
    with insecure(folder, ["partition-id=0", "partition-id=1"], relay) as deployment:
        for each in (1, rounds + 1):
            up, down = relay.up, relay.down
            seconds = deployment.run(ROOT / "experiments/flower", **{**config, "clients": 2, "rounds": each})
            measured.append((relay.up - up, relay.down - down, seconds))
    up, down, seconds = ((last - first) / rounds for first, last in zip(*measured, strict=True))
    return {"bytes_up_a_round": up, "bytes_down_a_round": down, "seconds_a_round": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--clients", type=int, default=30, help="in one process")
    parser.add_argument("--rounds", type=int, default=10, help="in one process")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--wire-rounds", type=int, default=1, help="over the loopback; 0 leaves that out")
    args = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    out: dict[str, Any] = {"d": args.classes * (args.dim + 1), "clients": args.clients}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data.npz", 40 * args.clients, args.dim, args.classes)
        base = {"data": str(folder / "data.npz"), "clients": args.clients, "rounds": args.rounds}
        out["in_process"] = {key: in_process({**base, **options}) for key, options in MECHANISMS.items()}
        if args.wire_rounds:
            out["loopback"] = {}
            for i, key in enumerate(ON_THE_WIRE):
                (folder / str(i)).mkdir()
                out["loopback"][key] = on_the_wire(folder / str(i), {**base, **MECHANISMS[key]}, args.wire_rounds)
    print(write_json(out, args.out))


if __name__ == "__main__":
    main()
