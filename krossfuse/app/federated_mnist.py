"""The kind of job that plays arXiv 2501.12046's protocol on MNIST: every mechanism by model and seed, recorded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from krossfuse.app.build import make
from krossfuse.app.kind import Kind, Plain, Session
from krossfuse.app.record import make_records
from krossfuse.core.errors import ConfigError, check_choice, check_positive
from krossfuse.core.processes import cores
from krossfuse.data.pixels import TEST_RECORDS, MNISTPixels
from krossfuse.federated.mnist import (
    CLIENTS,
    CLIP,
    DELTA,
    LOCAL,
    MODELS,
    ROUNDS,
    VARIANTS,
    Study,
    correct_of,
    line_about,
    play_all,
)
from krossfuse.privacy import make_mechanism
from krossfuse.probes.base import Measurement, ProbeResult
from krossfuse.probes.federated_probe import BITS, EPSILON, RATE, ROUND_BITS

log = logging.getLogger(__name__)

TITLES = {"mlp": "MLP 784-32-16-10", "cnn": "CNN 6-6-50"}
PROBE = "federated_training"


@dataclass(frozen=True)
class Job:
    """What a job plays.

    Attributes:
        cfg: the configuration.
        data: where MNIST lies.
        study: which runs.
    """

    cfg: Plain
    data: MNISTPixels
    study: Study


class FederatedMNIST(Kind):
    """30 clients train the paper's networks on MNIST's pixels, under every mechanism at one σ.

    One job is a whole study: its runs are shared out over processes of one thread, each run is a file in ``played``,
    and a file that is there is read instead of played again.

    Args:
        models: of ``mlp`` and ``cnn``.
        variants: names of ``krossfuse.federated.mnist.VARIANTS``; None is all of them.
        seeds: how many, from the run's seed on.
        rounds: T; the paper's is 80.
        played: the folder of the runs' files.
        processes: at a time; None is one a core.

    Raises:
        ConfigError: an unknown name, or a number that is impossible.
    """

    keys: ClassVar[Mapping[str | None, tuple[str, ...]]] = {
        None: ("pair", "data", "store", "fusion", "probe", "extraction", "fuse", "save_fusion", "figures")
    }

    def __init__(
        self,
        *,
        played: str,
        models: Sequence[str] = MODELS,
        variants: Sequence[str] | None = None,
        seeds: int = 5,
        rounds: int = ROUNDS,
        processes: int | None = None,
    ) -> None:
        for name, values, known in (("models", models, MODELS), ("variants", variants, VARIANTS)):
            if values is None:
                continue
            if isinstance(values, str) or not values:
                raise ConfigError(f"{name}={values!r} must be a list of names that is not empty")
            for value in values:
                check_choice(name, value, known)
        check_positive("seeds", seeds, integer=True)
        check_positive("rounds", rounds, integer=True)
        if processes is not None:
            check_positive("processes", processes, integer=True)
        if not isinstance(played, str) or not played:
            raise ConfigError(f"played={played!r} must be a folder")
        self.models, self.variants = list(dict.fromkeys(models)), list(dict.fromkeys(variants or VARIANTS))
        self.seeds, self.rounds, self.played = seeds, rounds, Path(played)
        self.processes = processes or cores()

    def build(self, cfg: Plain, choices: Mapping[str, str]) -> Job:
        """Return the study; see :meth:`Kind.build`."""
        data = make(cfg["data"], "data", MNISTPixels)
        seeds = range(cfg["seed"], cfg["seed"] + self.seeds)
        return Job(cfg, data, Study(self.models, self.variants, tuple(seeds), self.rounds))

    def check_data(self, built: Job) -> None:
        """Check that MNIST is there."""
        built.data.check()

    def label(self, built: Job) -> str:
        """Return the study's name."""
        return f"federated-mnist-{'-'.join(built.study.models)}-{built.study.rounds}-rounds"

    def tags(self, built: Job) -> list[str]:
        """Return the models and the mechanisms."""
        return ["mnist", *built.study.models, *built.study.variants]

    def run(self, built: Job, session: Session) -> None:
        """Play what is missing, and record every run as soon as it is there."""
        total = len(built.study.runs())
        records = play_all(built.data, self.played, built.study, processes=self.processes)
        for done, record in enumerate(records, 1):
            log.info("%s: run %d of %d: %s", session.label, done, total, line_about(record))
            self._record(built, record, session)

    def _record(self, built: Job, played: Mapping[str, Any], session: Session) -> None:
        # What a measurement depends on: not which other runs the study has, nor where their files lie.
        cfg = {**built.cfg, "job": {"_target_": built.cfg["job"]["_target_"], "rounds": self.rounds}}
        made = make_records(
            cfg,
            data="mnist",
            pair="",
            fusion=played["model"],
            dim=played["d"],
            described={"method": played["model"], "title": TITLES[played["model"]], "seed": played["seed"]},
            deterministic=False,
            probe=PROBE,
            result=_result(dict(played)),
            seconds=played["cpu_seconds"],
        )
        written = [
            session.writer.append(dataclasses.replace(record, seed=played["seed"]), scores) for record, scores in made
        ]
        session.tracker.log_records(written)
        name = f"{PROBE}/{played['model']}/{played['variant']}/seed{played['seed']}"
        points = [(h["round"], h) for h in played["history"] if "accuracy" in h]
        keys = ("accuracy", "validation", "total_bits", "epsilon")
        session.trainers.log_curve((int(step), {f"{name}/{k}": h[k] for k in keys if k in h}) for step, h in points)


def _result(played: dict[str, Any]) -> ProbeResult:
    """Return the measurements of a run."""
    variant = VARIANTS[played["variant"]]
    mechanism = make_mechanism(variant.mechanism, **variant.options)
    curve = [h for h in played["history"] if "accuracy" in h]
    names = [n for n in ("round", "accuracy", "validation", "total_bits", "epsilon") if all(n in h for h in curve)]
    epsilon = curve[-1].get("epsilon") if mechanism.noise != "none" else None
    protocol = {
        "federation": played["variant"],
        "mechanism": mechanism.name,
        "noise": mechanism.noise,
        "sigma": getattr(mechanism, "sigma", None),
        "clients": CLIENTS,
        "partition": "iid",
        "rounds": played["rounds"],
        "clip": CLIP,
        "delta": DELTA,
        "unit": "client",
        "epsilon": epsilon,
        "local_steps": LOCAL.steps,
        "batch_size": LOCAL.batch_size,
        "learning_rate": LOCAL.lr,
        "momentum": LOCAL.momentum,
        "server_lr": variant.server_lr,
        "parameters": played["d"],
        "total_bits": played["total_bits"],
        "bits_per_round": played["total_bits"] / played["rounds"],
        "bits_per_coordinate": played["bits_per_coordinate"],
        "statement": played.get("statement", ""),
    }
    accuracy = {
        **protocol,
        "split": "test",
        "n_test": TEST_RECORDS,
        "history": {n: [h[n] for h in curve] for n in names},
    }
    right = correct_of(played, TEST_RECORDS)
    measured = [Measurement("accuracy", curve[-1]["accuracy"], "image", "digit", accuracy, right)]
    for name in (BITS.name, ROUND_BITS.name, RATE.name, EPSILON.name):
        if protocol[name] is not None:
            measured.append(Measurement(name, float(protocol[name]), "image", "digit", protocol))
    return ProbeResult(measured, {}, seeded=True)
