"""The protocol of arXiv 2501.12046 on MNIST: models, mechanisms, one run, and all runs of a study."""

from __future__ import annotations

import base64
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.files import write_whole
from krossfuse.core.processes import end_with_parent
from krossfuse.data.pixels import Digits, MNISTPixels
from krossfuse.federated.federation import Federation, Settings
from krossfuse.federated.local import LocalTraining
from krossfuse.federated.models import MLP, FlatModel, ModuleModel, SmallCNN
from krossfuse.federated.partition import partition
from krossfuse.federated.server import make_server
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
class Study:
    """Which runs there are: every model × variant × seed.

    Attributes:
        models: of :data:`MODELS`.
        variants: of :data:`VARIANTS`.
        seeds: of split, partition, batches, weights and noise.
        rounds: T.
    """

    models: Sequence[str] = MODELS
    variants: Sequence[str] = tuple(VARIANTS)
    seeds: Sequence[int] = tuple(range(5))
    rounds: int = ROUNDS

    def runs(self) -> list[tuple[str, str, int]]:
        """Return (model, variant, seed) of every run, seed by seed, so that a part of a study has whole seeds."""
        return [(m, v, s) for s in self.seeds for m in self.models for v in self.variants]


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
        delta=DELTA,
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
    with torch.no_grad():
        correct = flat.scores(result.parameters, digits.test[0]).argmax(1) == digits.test[1]
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
        "statement": result.statement,
        "correct": base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode(),
    }


def correct_of(record: dict[str, Any], n: int) -> Tensor | None:
    """Return the (n,) test items' own scores of a record at its last round, if it has them."""
    if "correct" not in record:
        return None
    packed = np.frombuffer(base64.b64decode(record["correct"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed)[:n].astype(np.float32))


def play_all(data: MNISTPixels, folder: Path, study: Study, *, processes: int = 1) -> Iterator[dict[str, Any]]:
    """Play the runs of a study that are missing in ``folder``, and yield the records of all as they are there.

    One JSON file a run; those of as many rounds that are there are not repeated, so that a study goes on where it was
    stopped. Each process has one thread.

    Raises:
        DataError: there is no MNIST.
    """
    wanted = study.runs()
    missing = []
    for run in wanted:
        record = _read(folder, run, study.rounds)
        if record is None:
            missing.append(run)
        else:
            yield record
    if not missing:
        return
    data.fetch()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent) as pool:
        futures = {pool.submit(run_one, str(data.root), folder, *run, study.rounds): run for run in missing}
        try:
            for done in as_completed(futures):
                done.result()
                record = _read(folder, futures[done], study.rounds)
                assert record is not None
                yield record
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_one(root: str, folder: Path, model: str, variant: str, seed: int, rounds: int) -> str:
    """Play one run in one thread, write its record whole, and return a line about it."""
    torch.set_num_threads(1)
    record = play(_digits(root, seed), model, variant, seed, rounds=rounds)
    write_whole(_file(folder, (model, variant, seed)), json.dumps(record).encode())
    return line_about(record)


def line_about(record: dict[str, Any]) -> str:
    """Return a line about a run."""
    accuracy, bits = record["history"][-1]["accuracy"], record["bits_per_coordinate"]
    name = f"{record['model']}-{record['variant']}-{record['seed']}"
    return f"{name}: {accuracy:.4f}, {bits:.3f} bits, {record['cpu_seconds']:.0f} s"


@lru_cache(maxsize=1)
def _digits(root: str, seed: int) -> Digits:
    return MNISTPixels(root=root).load(seed)


def _file(folder: Path, run: tuple[str, str, int]) -> Path:
    return folder / "{}-{}-{}.json".format(*run)


def _read(folder: Path, run: tuple[str, str, int], rounds: int) -> dict[str, Any] | None:
    path = _file(folder, run)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record if record["rounds"] == rounds else None
