"""The run configuration of the app: Flower's flat keys, checked before any node is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from krossfuse.core.errors import ConfigError, check_choice, check_positive, did_you_mean
from krossfuse.federated import ClientSampling, LocalTraining, Partition, Protection
from krossfuse.federated.budget import least_noise
from krossfuse.privacy import MECHANISMS, Mechanism, make_mechanism
from krossfuse.privacy.accountant import METHODS, UNITS, check_delta

PerClient = float | list[float]

STRATEGIES: dict[str, tuple[Any, dict[str, str]]] = {
    "fedavg": (flower.FedAvg, {}),
    "fedavgm": (flower.FedAvgM, {"server-lr": "server_learning_rate", "server-momentum": "server_momentum"}),
    "fedadam": (flower.FedAdam, {"server-lr": "eta", "server-tau": "tau"}),
    "fedyogi": (flower.FedYogi, {"server-lr": "eta", "server-tau": "tau"}),
    "fedadagrad": (flower.FedAdagrad, {"server-lr": "eta", "server-tau": "tau"}),
}
"""By name, Flower's strategy and what its options are called there."""
_ALLOWED: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the app is run with; an empty text or 0 where an option may be left out says that it is.

    Attributes:
        data: a file of embeddings (docs/embeddings.md); a SuperNode's own configuration may name another.
        features: which of its encoders, by role; empty where there is one, or with ``fusion``.
        fusion: a fusion method that ``krossfuse.save_fusion`` wrote, applied at the client; empty for none.
        label_set: of the data; empty where there is one.
        clients: K, connected or not.
        partition: of a shared file over the clients: ``iid``, ``dirichlet`` or ``by_class``.
        alpha: of ``dirichlet``.
        classes_per_client: of ``by_class``.
        rounds: T.
        mechanism: by name.
        law: of cepam's noise.
        lattice: of cepam.
        step: of sdq and gaussian_sdq.
        epsilon: budget over all rounds, one or, with commas, by client; decides the noise.
        sigma: the noise of one client, one or by client, in place of ``epsilon``.
        budget: with ``sigma``: ε at which a client leaves.
        delta: at which ε is stated.
        clip: C, one or by client.
        unit: of privacy.
        accounting: ``pld`` or ``rdp``.
        sampling: of clients, ``all``, ``poisson`` or ``fixed``.
        sampling_rate: of them.
        strategy: of :data:`STRATEGIES`.
        server_lr: step of the strategy.
        server_momentum: of fedavgm.
        server_tau: of the adaptive strategies.
        local_steps: SGD steps at a client.
        batch_size: of them.
        lr: of them.
        momentum: of them.
        normalise: whether features are scaled to norm 1.
        seed: of partition and batches. Nothing secret comes from it.
        min_nodes: connected SuperNodes to wait for; 0 is K.
        timeout: seconds to wait for a round's messages.
        pad: fills messages up to a multiple of so many bytes.
        checkpoint: file at the server from which a run goes on.
        out: folder at the server for head and record; empty for none.
    """

    data: str
    features: str = ""
    fusion: str = ""
    label_set: str = ""
    clients: int = 2
    partition: str = "iid"
    alpha: float = 0.0
    classes_per_client: int = 0
    rounds: int = 10
    mechanism: str = "cepam"
    law: str = ""
    lattice: str = ""
    step: float = 0.0
    epsilon: str | float = ""
    sigma: str | float = ""
    budget: str | float = ""
    delta: float = 1e-5
    clip: str | float = ""
    unit: str = "client"
    accounting: str = "pld"
    sampling: str = "all"
    sampling_rate: float = 1.0
    strategy: str = "fedavg"
    server_lr: float = 0.0
    server_momentum: float = 0.0
    server_tau: float = 0.0
    local_steps: int = 5
    batch_size: int = 16
    lr: float = 10.0
    momentum: float = 0.0
    normalise: bool = True
    seed: int = 0
    min_nodes: int = 0
    timeout: float = 3600.0
    pad: int = 1
    checkpoint: str = ""
    out: str = ""

    @staticmethod
    def read(run_config: Mapping[str, Any]) -> RunConfig:
        """Return Flower's run configuration, its keys with hyphens.

        Raises:
            ConfigError: an unknown key, a value of another type, or one that is impossible.
        """
        types = {field.name.replace("_", "-"): field for field in fields(RunConfig)}
        for key, value in run_config.items():
            if key not in types:
                raise ConfigError(f"run configuration: unknown key {key!r}{did_you_mean(key, types)}")
            wanted = str(types[key].type)
            if not isinstance(value, _ALLOWED.get(wanted, (str, int, float))) or (
                isinstance(value, bool) and wanted != "bool"
            ):
                raise ConfigError(f"run configuration: {key}={value!r} must be of type {wanted}")
        if not run_config.get("data"):
            raise ConfigError(
                "run configuration: data='' names no file of embeddings: flwr run . -c 'data=\"FILE.safetensors\"'"
            )
        config = RunConfig(**{key.replace("-", "_"): value for key, value in run_config.items()})
        config.check()
        return config

    def check(self) -> None:
        """Check what can be known without the data.

        Raises:
            ConfigError: something is impossible, or does not go together.
        """
        for name in ("clients", "rounds", "pad"):
            check_positive(name, getattr(self, name), integer=True)
        check_positive("timeout", self.timeout)
        if self.min_nodes < 0:
            raise ConfigError(f"min-nodes={self.min_nodes} must not be negative; 0 waits for all clients")
        if self.partition == "resampled":
            raise ConfigError("partition='resampled' is for simulations: clients of a deployment do not share records")
        check_choice("unit", self.unit, UNITS)
        check_choice("accounting", self.accounting, METHODS)
        self.shares()
        self.local()
        self.make_strategy()

    def shares(self) -> Partition:
        """Return how a shared file is partitioned."""
        return Partition(
            kind=self.partition, alpha=self.alpha or None, classes_per_client=self.classes_per_client or None
        )

    def local(self) -> LocalTraining:
        """Return the training at a client."""
        return LocalTraining(
            steps=self.local_steps, batch_size=self.batch_size, lr=float(self.lr), momentum=float(self.momentum)
        )

    def make_strategy(self) -> Strategy:
        """Return Flower's strategy, asking all clients; the protection draws among them.

        Raises:
            ConfigError: an unknown name, or an option that it does not have.
        """
        kind, names = STRATEGIES[check_choice("strategy", self.strategy, STRATEGIES)]
        options: dict[str, float] = {}
        for key in ("server-lr", "server-momentum", "server-tau"):
            if value := getattr(self, key.replace("-", "_")):
                if key not in names:
                    raise ConfigError(
                        f"{key}={value:g}: strategy={self.strategy!r} has no such option; it has {[*names]}"
                    )
                options[names[key]] = float(value)
        nodes = self.min_nodes or self.clients
        made: Strategy = kind(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=min(nodes, self.clients),
            min_available_nodes=min(nodes, self.clients),
            **options,
        )
        return made

    def protection(self) -> Protection:
        """Return mechanism, clip and budgets, the noise found from ``epsilon`` where that is given.

        Raises:
            ConfigError: options that do not go together.
        """
        check_delta(self.delta)
        epsilon, sigma, budget = (_numbers(name, getattr(self, name)) for name in ("epsilon", "sigma", "budget"))
        clip = _numbers("clip", self.clip)
        mechanism, sigmas = self._mechanism(epsilon, sigma)
        sampling = ClientSampling(self.sampling, float(self.sampling_rate))
        protection = Protection(
            mechanism=mechanism,
            clip=clip,
            sampling=sampling,
            sigmas=sigmas,
            unit=self.unit,  # type: ignore[arg-type]
            accounting=self.accounting,  # type: ignore[arg-type]
            delta=float(self.delta) if mechanism.noise != "none" else None,
            budgets=budget if epsilon is None else epsilon,
        )
        if epsilon is None or clip is None:
            return protection
        if budget is not None:
            raise ConfigError("budget goes with sigma; epsilon is a budget itself")
        if mechanism.noise == "laplace":
            raise ConfigError("epsilon with Laplace noise depends on the length of the update: say sigma, and budget")
        rate = sampling.rate if protection.secretly_sampled else 1.0
        found = least_noise(
            mechanism,
            epsilon,
            float(self.delta),
            clip=clip,
            rounds=self.rounds,
            rates=[rate] * self.clients,
            sampling=sampling,
            unit=protection.unit,
            method=protection.accounting,
        )
        return Protection(**{**{f.name: getattr(protection, f.name) for f in fields(protection)}, "mechanism": found})

    def _mechanism(self, epsilon: PerClient | None, sigma: PerClient | None) -> tuple[Mechanism, list[float] | None]:
        """Return the mechanism, with any sigma where the budget decides it, and σ_k by client if they differ."""
        kind = MECHANISMS[check_choice("mechanism", self.mechanism, MECHANISMS)]
        options = {name: getattr(self, name) for name in ("law", "lattice", "step") if getattr(self, name)}
        noisy = "sigma" in {field.name for field in fields(kind)}
        if not noisy:
            if epsilon is not None or sigma is not None:
                raise ConfigError(f"mechanism={self.mechanism!r} draws no noise; leave epsilon and sigma empty")
            return make_mechanism(self.mechanism, **options), None
        if (epsilon is None) == (sigma is None):
            raise ConfigError(
                f"mechanism={self.mechanism!r} needs epsilon (the accountant finds the noise) or sigma, not "
                f"{'both' if sigma is not None else 'neither'}"
            )
        sigmas = sigma if isinstance(sigma, list) else None
        one = max(sigmas) if sigmas else 1.0 if sigma is None else sigma
        return make_mechanism(self.mechanism, sigma=one, **options), sigmas

    @property
    def file(self) -> Path | None:
        """The checkpoint."""
        return Path(self.checkpoint) if self.checkpoint else None


def _numbers(name: str, value: str | float) -> PerClient | None:
    """Return one number, or those between commas, or None for nothing."""
    if value == "":
        return None
    try:
        numbers = [float(part) for part in str(value).split(",")]
    except ValueError:
        raise ConfigError(f"{name}={value!r} must be a number, or one a client with commas between them") from None
    for number in numbers:
        check_positive(name, number)
    return numbers[0] if len(numbers) == 1 else numbers
