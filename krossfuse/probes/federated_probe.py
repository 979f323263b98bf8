"""Federated probe: a linear head that many clients train together, every update sent through a privacy mechanism."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.metrics import Metric, declare
from krossfuse.core.parts import TEST, TRAIN, Modality, Part
from krossfuse.core.seeds import derive_seed
from krossfuse.federated import (
    ClientSampling,
    Dropouts,
    Federation,
    FlatModel,
    LocalTraining,
    Partition,
    Result,
    ServerOptimiser,
    Settings,
    UnitHead,
    make_server,
    with_budget,
)
from krossfuse.federated import LinearHead as RawHead
from krossfuse.privacy import MECHANISMS, Mechanism, PrivacyWarning, make_mechanism
from krossfuse.privacy.accountant import METHODS, UNITS, Method, Unit, check_delta
from krossfuse.privacy.clipping import Norm
from krossfuse.probes.base import Measurement
from krossfuse.probes.head_probe import HeadProbe, check_part, head_scope
from krossfuse.probes.heads import LinearHead
from krossfuse.probes.labelled import item_labels, labelled_items
from krossfuse.probes.options import check_device, solving_device
from krossfuse.probes.selection import warn_once
from krossfuse.probes.space import EmbeddingSpace

log = logging.getLogger(__name__)

BITS = declare(Metric(name="total_bits", unit="bits", better="lower"))
ROUND_BITS = declare(Metric(name="bits_per_round", unit="bits", better="lower"))
RATE = declare(Metric(name="bits_per_coordinate", unit="bits/coordinate", better="lower"))
EPSILON = declare(Metric(name="epsilon", unit="epsilon", better="lower"))

EVALUATIONS = 20
"""Points of the curve over rounds, unless ``evaluate_every`` says otherwise."""

LOCAL = LocalTraining(steps=5, batch_size=16, lr=10.0)
"""Large steps: embeddings have norm 1, and the clip decides how far an update goes."""

PerClient = float | Sequence[float]


class FederatedProbe(HeadProbe):
    """A linear head trained by clients that keep their items: federated averaging under a mechanism.

    Encoders and fusion are frozen and run at the client; only the head's update (classes · (dim + 1) numbers, ONE
    vector) is clipped, sent and averaged. Measurements beside those of every head
    (:class:`~krossfuse.probes.head_probe.HeadProbe`): ``total_bits`` and ``bits_per_round`` of all clients together,
    headers included, ``bits_per_coordinate``, and ``epsilon`` where something is protected. The protocol has the noise,
    the account and the statement of what is protected, and under ``history`` the accuracy, bits and ε by round, which
    decide nothing: no hyper-parameter is chosen, and there is no refit. Every label set and modality is a federation
    with an account of its own.

    Args:
        mechanism: ``name`` and options of one of ``krossfuse.privacy.MECHANISMS``, without its ``sigma``.
        clients: K.
        partition: which training items each client has.
        epsilon: ε to keep over all rounds, for all clients or by client: the accountant finds the noise.
        delta: δ of that ε; with ``sigma``, of the ε that is reported.
        sigma: standard deviation of ONE client's noise, in place of ``epsilon``.
        clip: C, the bound on the whole update, for all clients or by client; None only without noise.
        clip_norm: ``l2`` or ``l1``; None is what the law of the noise asks for.
        unit: of privacy: ``client``, ``client_replace`` or ``record``.
        accounting: ``pld`` or ``rdp``.
        rounds: T.
        local: training at a client in a round.
        server: what is done with the mean of the updates.
        sampling: which clients take part in a round.
        dropout: chance that a message is lost; the server then adds the Gaussian noise that is missing.
        normalise: scale every embedding to Euclidean norm 1, which needs nobody's statistics.
        evaluate_every: rounds between the points of the curve; None makes some 20 of them.
        checkpoint: a folder; a training that was killed goes on from its file there, with the same bits and account.
        label_sets: names, or None for all.
        modalities: of the items that are probed, where the space has them with labels.
        split: the split that is tested.
        extra_splits: further splits on which the same heads are tested.
        device: where clients train; None is where the embeddings are, ``"auto"`` a CUDA device where there is one.

    Raises:
        ConfigError: a value is impossible; noise without a budget or sigma, or with both; a budget for a mechanism
            that protects nothing.
    """

    name = "federated_probe"
    seeded = True

    def __init__(
        self,
        *,
        mechanism: Mapping[str, Any] | None = None,
        clients: int = 30,
        partition: Partition | None = None,
        epsilon: PerClient | None = None,
        delta: float | None = 1e-5,
        sigma: float | None = None,
        clip: PerClient | None = 3.0,
        clip_norm: Norm | None = None,
        unit: Unit = "client",
        accounting: Method = "pld",
        rounds: int = 10,
        local: LocalTraining | None = None,
        server: ServerOptimiser | None = None,
        sampling: ClientSampling | None = None,
        dropout: float = 0.0,
        normalise: bool = True,
        evaluate_every: int | None = None,
        checkpoint: str | None = None,
        label_sets: Sequence[str] | None = None,
        modalities: Sequence[Modality] = ("image", "text"),
        split: str = TEST,
        extra_splits: Sequence[str] = (),
        device: str | None = None,
    ) -> None:
        super().__init__(head_scope(label_sets, modalities, split, extra_splits))
        check_positive("clients", clients, integer=True)
        check_positive("rounds", rounds, integer=True)
        check_choice("unit", unit, UNITS)
        check_choice("accounting", accounting, METHODS)
        if not isinstance(normalise, bool):
            raise ConfigError(f"normalise={normalise!r} must be true or false")
        for name, value in (("epsilon", epsilon), ("clip", clip)):
            _check_per_client(name, value, clients)
        if delta is not None:
            check_delta(delta)
        self.template = _template({"name": "cepam"} if mechanism is None else mechanism, epsilon, sigma, delta)
        self.epsilon, self.sigma, self.clients = epsilon, sigma, clients
        self.partition = _of_kind("partition", partition or Partition(), Partition)
        self.transport = Dropouts(dropout) if dropout else None
        self.normalise, self.device = normalise, check_device(device)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.settings = Settings(
            rounds=rounds,
            mechanism=self.template,
            clip=clip,
            clip_norm=clip_norm,
            local=_of_kind("local", local or LOCAL, LocalTraining),
            server=_of_kind("server", server or make_server("fedavg"), ServerOptimiser),
            sampling=_of_kind("sampling", sampling or ClientSampling(), ClientSampling),
            unit=unit,
            accounting=accounting,
            delta=delta,
            top_up=bool(dropout) and self.template.noise == "gaussian",
            evaluate_every=evaluate_every or -(-rounds // EVALUATIONS),
        )
        if evaluate_every is not None:
            check_positive("evaluate_every", evaluate_every, integer=True)

    def check(self, info: DatasetInfo, parts: Collection[Part] = ()) -> None:
        """Check names, and that there are training items for all clients; see :meth:`Probe.check`."""
        super().check(info, parts)
        for name in self.scope.label_sets or info.label_sets:
            s = info.label_sets[name]
            if TRAIN not in s.labels:
                continue
            labels = s.labels[TRAIN]
            try:
                self.partition.check(len(labels) if s.multilabel else int((labels >= 0).sum()), self.clients)
            except DataError as error:
                raise ConfigError(f"label set {name!r}, clients={self.clients}: {error}") from None

    def _protocol(self) -> dict[str, Any]:
        s = self.settings
        return {
            "classifier": "linear, federated",
            "federation": self._condition(),
            **{
                k if k == "mechanism" else f"mechanism_{k}": v
                for k, v in self.template.described().items()
                if k != "sigma"
            },
            "noise": self.template.noise,
            "clients": self.clients,
            "partition": self.partition.kind,
            **{f"partition_{name}": value for name, value in self.partition.options.items()},
            "resampled": self.partition.kind == "resampled",
            "rounds": s.rounds,
            "clip": s.clip,
            "clip_norm": s.norm,
            "unit": s.unit,
            "accounting": s.accounting,
            "delta": s.delta,
            "epsilon_asked": self.epsilon,
            "local_steps": s.local.steps,
            "batch_size": s.local.batch_size,
            "learning_rate": s.local.lr,
            "momentum": s.local.momentum,
            "weight_decay": s.local.weight_decay,
            "server": s.server.name,
            **{f"server_{field.name}": getattr(s.server, field.name) for field in fields(s.server)},
            "sampling": s.sampling.kind,
            "sampling_rate": s.sampling.rate,
            "dropout": self.transport.rate if self.transport else 0.0,
            "normalise": self.normalise,
        }

    def _condition(self) -> str:
        """Return in few words which federation it is: what tells columns of a table apart."""
        described = self.template.described()
        words = [self.template.name]
        words += [str(described["law"])] if described.get("law", "gaussian") != "gaussian" else []
        words += [str(described["lattice"])] if described.get("lattice", "auto") != "auto" else []
        parts = [" ".join(words)]
        if self.epsilon is not None:
            parts.append(f"ε={_span(self.epsilon)}")
        elif self.sigma is not None:
            parts.append(f"σ={self.sigma:g}")
        parts += [f"step={described['step']:g}"] if isinstance(described.get("step"), float | int) else []
        if self.settings.unit != "client":
            parts.append(f"by {self.settings.unit}")
        parts.append(f"{self.clients} client{'s' if self.clients > 1 else ''}")
        if self.partition.kind != "iid":
            parts.append(self.partition.kind)
        if self.settings.sampling.kind != "all":
            parts.append(f"{self.settings.sampling.kind} {self.settings.sampling.rate:g}")
        return ", ".join(parts)

    def _fit(
        self, space: EmbeddingSpace, modality: Modality, names: list[str], seed: int
    ) -> dict[str, tuple[LinearHead, dict[str, Any]]]:
        part = Part(TRAIN, modality)
        check_part(space[part], part, normalise=self.normalise)
        return {name: self._train(space, part, name, derive_seed(seed, self.name, name, modality)) for name in names}

    def _train(self, space: EmbeddingSpace, part: Part, name: str, seed: int) -> tuple[LinearHead, dict[str, Any]]:
        what = f"{self.name} of {space.info.name!r}, {name!r}, {part.modality}"
        x, y, s = space[part], item_labels(space, part, name), space.info.label_sets[name]
        rows, labels = labelled_items(space, part, name)
        shares = self.partition(labels.numpy(), self.clients, seed=seed)
        parts = [rows.numpy()[share] for share in shares]
        head = UnitHead if self.normalise else RawHead
        model = head(x.shape[1], len(s.classes), multilabel=s.multilabel)
        device = solving_device(self.device) or x.device
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settings = self._settings(parts, model.d, seed)
            tested = _Tested(space, Part(self.scope.split, part.modality), name, model, device)
            federation = Federation(
                model,
                x,
                y.long() if y.ndim == 1 else y,
                parts,
                settings,
                evaluate=tested,
                transport=Dropouts(self.transport.rate, seed) if self.transport else None,
                checkpoint=self._file(what, settings, model, x, seed),
                device=device,
            )
            result = federation.run()
        for warning in caught:
            if issubclass(warning.category, PrivacyWarning):
                warn_once(f"{what}: {warning.message}")
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        self._log(space, f"{self.name}/{name}/{part.modality}", result)
        about = {"n_train": len(rows), "records_least": min(map(len, parts)), "records_most": max(map(len, parts))}
        outcome = _outcome(result, settings, model.d)
        spent = "nothing is protected" if outcome["epsilon"] is None else f"ε = {outcome['epsilon']:.4g}"
        log.info("%s: %s: %.4g bits, %s", what, self._condition(), result.total_bits, spent)
        weights = result.parameters.view(-1)
        cut = len(s.classes) * x.shape[1]
        fitted = LinearHead(
            weights[:cut].view(len(s.classes), -1).clone(), weights[cut:].clone(), normalise=self.normalise
        )
        return fitted, {**about, **outcome}

    def _testing_device(self) -> torch.device | None:
        return solving_device(self.device)

    def _settings(self, parts: Sequence[Any], d: int, seed: int) -> Settings:
        """Return the settings with the noise that the budget asks for."""
        s, mechanism = self.settings, self.template
        if self.epsilon is not None:
            assert s.clip is not None
            assert s.delta is not None
            # Laplace noise protects an L1 ball; an L2 clip C lies in that of radius C·√d.
            factor = math.sqrt(d) if mechanism.noise == "laplace" and s.norm == "l2" else 1.0
            clip = s.clip * factor if isinstance(s.clip, int | float) else [c * factor for c in s.clip]
            mechanism = with_budget(
                mechanism,
                self.epsilon,
                s.delta,
                clip=clip,
                rounds=s.rounds,
                parts=parts,
                sampling=s.sampling,
                local=s.local,
                unit=s.unit,
                method=s.accounting,
            )
        return replace(s, mechanism=mechanism, seed=seed)

    def _file(self, what: str, settings: Settings, model: FlatModel, x: Tensor, seed: int) -> Path | None:
        """Return the file of this federation: another one, or one of other rounds, has another name."""
        if self.checkpoint is None:
            return None
        text = f"{what}|{settings!r}|{type(model).__name__}|{tuple(x.shape)}|{self.partition}|{self.clients}|{seed}"
        return self.checkpoint / f"federation-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"

    def _log(self, space: EmbeddingSpace, key: str, result: Result) -> None:
        names = ("accuracy", "total_bits", "epsilon")
        points = [(int(h["round"]), {f"{key}/{n}": h[n] for n in names if n in h}) for h in result.history]
        space.trainers.log_curve([(step, values) for step, values in points if len(values) > 1])

    def _measured_of_fit(self, name: str, modality: Modality, protocol: dict[str, Any]) -> list[Measurement]:
        values = {metric.name: protocol[metric.name] for metric in (BITS, ROUND_BITS, RATE, EPSILON)}
        kept = {key: value for key, value in protocol.items() if key != "history"}
        return [Measurement(m, v, modality, name, kept) for m, v in values.items() if v is not None]


@dataclass(frozen=True)
class _Tested:
    """What is measured for the curve over rounds."""

    space: EmbeddingSpace
    part: Part
    name: str
    model: FlatModel
    device: torch.device

    def __call__(self, parameters: Tensor) -> dict[str, float]:
        rows, labels = labelled_items(self.space, self.part, self.name)
        right = total = 0.0
        for x in self.space.read(self.part, rows):
            y = labels[int(total) : int(total) + len(x)]
            out = self.model.evaluate(*(of.to(self.device) for of in (parameters, x, y)))
            right, total = right + out["accuracy"] * len(x), total + len(x)
        return {"accuracy": right / total}


def _outcome(result: Result, settings: Settings, d: int) -> dict[str, Any]:
    """Return what a federation's record says of how it went."""
    history = result.history
    messages = sum(h["participants"] for h in history)
    epsilons = [e for e in result.epsilons or [] if math.isfinite(e)]
    protected = settings.mechanism.noise != "none" and len(epsilons) == len(result.epsilons or []) and bool(epsilons)
    curve = [h for h in history if "accuracy" in h]
    names = [n for n in ("round", "accuracy", "total_bits", "epsilon") if curve and all(n in h for h in curve)]
    return {
        "sigma": settings.mechanism.noise_std or getattr(settings.mechanism, "sigma", None),
        "epsilon": max(epsilons) if protected else None,
        **({"epsilon_least": min(epsilons)} if protected and min(epsilons) < max(epsilons) else {}),
        "rounds_done": len(history),
        "parameters": d,
        "total_bits": result.total_bits,
        "bits_per_round": result.total_bits / max(1, len(history)),
        "bits_per_coordinate": result.total_bits / max(1, messages * d),
        "messages_lost": int(messages - sum(h["received"] for h in history)),
        "statement": result.statement + " A head of another label set or modality has an account of its own; budgets "
        "of heads that are all released add up.",
        "history": {n: [h[n] for h in curve] for n in names},
    }


def _template(
    options: Mapping[str, Any], epsilon: PerClient | None, sigma: float | None, delta: float | None
) -> Mechanism:
    """Return the mechanism, with any sigma where the budget decides it, once the options are seen to go together."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"mechanism={options!r} must have a name and options: mechanism={{name: cepam}}")
    given = {str(key): value for key, value in options.items()}
    name = check_choice("mechanism.name", given.pop("name", None), MECHANISMS)
    if "sigma" in given:
        raise ConfigError("mechanism.sigma: say sigma=..., or epsilon=... and have the noise found")
    noisy = "sigma" in {field.name for field in fields(MECHANISMS[name])}
    if sigma is not None:
        check_positive("sigma", sigma)
        if not noisy:
            raise ConfigError(f"sigma={sigma:g}: mechanism {name!r} draws no noise; say sigma=null")
    template = make_mechanism(name, **given, **({"sigma": 1.0 if sigma is None else sigma} if noisy else {}))
    if template.noise == "none":
        if epsilon is not None:
            raise ConfigError(
                f"mechanism {name!r} adds no noise that protects: it cannot keep epsilon={_span(epsilon)}; say "
                "epsilon=null"
            )
        if noisy and sigma is None:
            raise ConfigError(f"mechanism {name!r} needs sigma=...")
    elif (epsilon is None) == (sigma is None):
        raise ConfigError(
            f"mechanism {name!r} needs epsilon=... (the accountant finds the noise) or sigma=..., not "
            f"{'both' if sigma is not None else 'neither'}"
        )
    if epsilon is not None and delta is None:
        raise ConfigError(f"epsilon={_span(epsilon)} says nothing without its delta; say delta=...")
    return template


def _check_per_client(name: str, value: object, clients: int) -> None:
    if value is None:
        return
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for each in values:
        check_positive(name, each)
    if isinstance(value, Sequence) and len(values) != clients:
        raise ConfigError(f"{name} has {len(values)} values; there are clients={clients}")


def _of_kind(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{name}={value!r} must be a {kind.__module__}.{kind.__name__}")
    return value


def _span(value: PerClient) -> str:
    values = [float(value)] if isinstance(value, int | float) else [float(v) for v in value]
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
