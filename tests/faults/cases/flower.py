"""Federations over Flower: what is wrong is said before anybody is asked (tests/flower has the messages themselves)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faults.case import Case

FLOWER = "flower"


def without_flower(folder: Path) -> object:
    """Import the room as where the extra is not installed."""
    import importlib

    hidden = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(("flwr", "krossfuse.flower"))
    }
    find = importlib.util.find_spec
    try:
        importlib.util.find_spec = lambda name, *more: None if name == "flwr" else find(name, *more)
        return importlib.import_module("krossfuse.flower")
    finally:
        importlib.util.find_spec = find
        sys.modules.update(hidden)


def configured(**change: Any) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        from krossfuse.flower.config import RunConfig

        given: Mapping[str, Any] = {"data": "x.npz", "epsilon": "8", "clip": "3", **change}
        return RunConfig.read({key.replace("_", "-"): value for key, value in given.items()}).protection()

    return call


def of(id: str, call: Callable[[Path], object], *words: str | tuple[str, ...], **more: Any) -> Case:
    return Case(id=id, room=FLOWER, call=call, words=words, **more)


def wrapping(kind: str) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        from flwr.serverapp import strategy

        from krossfuse.federated import Protection
        from krossfuse.flower import CepamStrategy
        from krossfuse.privacy import make_mechanism

        return CepamStrategy(getattr(strategy, kind)(), Protection(mechanism=make_mechanism("none")), clients=2)

    return call


CASES = [
    of("extra-not-installed", without_flower, "flwr", "not installed", "krossfuse[flower]", short=True),
]
if importlib.util.find_spec("flwr"):
    CASES += [
        of("no-data", configured(data=""), "data=''", "file of embeddings", "flwr run"),
        of("unknown-key", configured(epsilom="8"), "'epsilom'", "did you mean 'epsilon'"),
        of("wrong-type", configured(rounds=2.5), "rounds=2.5", "int"),
        of("epsilon-in-words", configured(epsilon="eight"), "epsilon='eight'", "number", "commas"),
        of("epsilons-of-others", configured(epsilon="1,2,3"), "3 budgets", "2"),
        of("no-noise", configured(epsilon=""), "'cepam'", "epsilon", "sigma"),
        of("noise-twice", configured(sigma="1"), "both"),
        of("no-clip", configured(clip=""), "clip=C"),
        of("noise-of-none", configured(mechanism="none"), "'none'", "leave epsilon and sigma empty"),
        of("partition-of-nobody", configured(partition="resampled"), "resampled", "do not share records"),
        of("strategy-unknown", configured(strategy="fedadma"), "'fedadma'", "did you mean 'fedadam'"),
        of("strategy-option", configured(server_lr=0.5), "server-lr=0.5", "'fedavg'"),
        of("krum", wrapping("Krum"), "Krum", "one by one", "FedAvg"),
        of("median", wrapping("FedMedian"), "FedMedian", "one by one", "FedAvg"),
    ]
