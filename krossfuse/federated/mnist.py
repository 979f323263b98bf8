"""The protocol of arXiv 2501.12046 on MNIST: data, models, mechanisms, and one run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import MNIST

from krossfuse.core.errors import DataError
from krossfuse.core.files import write_whole
from krossfuse.core.seeds import derived_generator
from krossfuse.federated import (
    MLP,
    Federation,
    FlatModel,
    LocalTraining,
    ModuleModel,
    Settings,
    SmallCNN,
    make_server,
    partition,
)
from krossfuse.privacy import make_mechanism

CLIENTS, RECORDS, ROUNDS, CLIP, SIGMA, DELTA = 30, 1666, 80, 1.0, 0.01, 1e-5
LOCAL = LocalTraining(steps=15, batch_size=1, lr=0.01, momentum=0.5)
EVALUATE_EVERY = 4
RELEASED_STEP = 1.2732
"""4/π, the mean of r'/r that the released decoder multiplies an update by."""


@dataclass(frozen=True)
class Variant:
    """A line of the table: a mechanism, and the server's step."""

    mechanism: str
    options: dict[str, Any] = field(default_factory=dict)
    server_lr: float = 1.0


VARIANTS: dict[str, Variant] = {
    "fedavg": Variant("none"),
    "gaussian": Variant("gaussian", {"sigma": SIGMA}),
    "sdq": Variant("sdq", {"step": SIGMA}),
    "gaussian_sdq": Variant("gaussian_sdq", {"sigma": SIGMA}),
    "cepam": Variant("cepam", {"sigma": SIGMA}),
    "cepam_Z2": Variant("cepam", {"sigma": SIGMA, "lattice": "Z2"}),
    "cepam_Z3": Variant("cepam", {"sigma": SIGMA, "lattice": "Z3"}),
    "cepam_E8": Variant("cepam", {"sigma": SIGMA, "lattice": "E8"}),
    "cepam_laplace": Variant("cepam", {"sigma": SIGMA, "law": "laplace"}),
    "released": Variant("released", {"sigma": SIGMA}),
    "fedavg_x1.2732": Variant("none", server_lr=RELEASED_STEP),
}
MODELS = ("mlp", "cnn")


@dataclass(frozen=True)
class Digits:
    """MNIST with pixels on [−1, 1]: 50,000 to train on, 10,000 to validate, 10,000 to test."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load(root: str | Path, seed: int, *, download: bool = False) -> Digits:
    """Return MNIST from a folder as torchvision lays it out; the validation split is drawn by ``seed``.

    Raises:
        DataError: it is not there.
    """
    try:
        sets = [MNIST(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(f"no MNIST in {root} as torchvision lays it out ({error}); --download fetches it") from error
    (x, y), test = [((s.data.float() / 127.5 - 1).flatten(1), s.targets) for s in sets]
    order = torch.randperm(len(y), generator=derived_generator(seed, "split"))
    train, val = order[:50_000], order[50_000:]
    return Digits((x[train], y[train]), (x[val], y[val]), test)


def make_model(name: str) -> FlatModel:
    """Return the paper's MLP (d = 25,818) or CNN (d = 6,422)."""
    return MLP((784, 32, 16, 10)) if name == "mlp" else ModuleModel(SmallCNN(), 10)


def play(digits: Digits, model: str, variant: str, seed: int, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the record of one run."""
    chosen = VARIANTS[variant]
    flat = make_model(model)
    x, y = digits.train
    clip_norm = "l2" if chosen.options.get("law") == "laplace" else None
    settings = Settings(
        rounds=rounds,
        mechanism=make_mechanism(chosen.mechanism, **chosen.options),
        clip=CLIP,
        clip_norm=clip_norm,  # type: ignore[arg-type]
        local=LOCAL,
        server=make_server("fedavg", lr=chosen.server_lr),
        evaluate_every=EVALUATE_EVERY,
        seed=seed,
    )

    def evaluate(parameters: Tensor) -> dict[str, float]:
        return {
            "validation": flat.evaluate(parameters, *digits.val)["accuracy"],
            "accuracy": flat.evaluate(parameters, *digits.test)["accuracy"],
        }

    start = time.process_time()
    parts = partition(y, CLIENTS, records_per_client=RECORDS, seed=seed)
    result = Federation(flat, x, y, parts, settings, evaluate=evaluate).run()
    return {
        "model": model,
        "variant": variant,
        "seed": seed,
        "rounds": rounds,
        "d": flat.d,
        "total_bits": result.total_bits,
        "bits_per_coordinate": result.total_bits / (rounds * CLIENTS * flat.d),
        "cpu_seconds": time.process_time() - start,
        "history": result.history,
    }


def run_one(root: str, folder: Path, model: str, variant: str, seed: int, rounds: int) -> str:
    """Play one run in one thread, write its record whole, and return a line about it."""
    torch.set_num_threads(1)
    record = play(load(root, seed), model, variant, seed, rounds=rounds)
    name = f"{model}-{variant}-{seed}"
    write_whole(folder / f"{name}.json", json.dumps(record).encode())
    accuracy, bits = record["history"][-1]["accuracy"], record["bits_per_coordinate"]
    return f"{name}: {accuracy:.4f}, {bits:.3f} bits, {record['cpu_seconds']:.0f} s"
