"""What the server does with the mean of the updates: FedAvg and the adaptive optimisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, check_choice, check_positive

State = dict[str, Tensor]


@dataclass(frozen=True)
class ServerOptimiser(ABC):
    """One step of the global model along a mean update.

    Attributes:
        lr: the server's step.
    """

    lr: float = 1.0
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_positive("server lr", self.lr)

    def start(self, d: int) -> State:
        """Return the state before the first round."""
        return {}

    @abstractmethod
    def step(self, parameters: Tensor, mean: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the new (d,) parameters and state; the arguments stay as they are."""


@dataclass(frozen=True)
class FedAvg(ServerOptimiser):
    """parameters + lr·velocity, velocity = momentum·velocity + mean (FedAvgM where momentum > 0).

    Attributes:
        momentum: of the server.
    """

    momentum: float = 0.0
    name: ClassVar[str] = "fedavg"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("server momentum", self.momentum)

    def start(self, d: int) -> State:
        """Return a velocity of 0 where there is momentum."""
        return {"velocity": torch.zeros(d)} if self.momentum else {}

    def step(self, parameters: Tensor, mean: Tensor, state: State) -> tuple[Tensor, State]:
        """See the class."""
        if not self.momentum:
            return parameters + self.lr * mean, state
        velocity = self.momentum * state["velocity"] + mean
        return parameters + self.lr * velocity, {"velocity": velocity}


@dataclass(frozen=True)
class Adaptive(ServerOptimiser):
    """parameters + lr·m/(√v + tau), m the moving mean of updates (Reddi et al., arXiv 2003.00295, algorithm 2).

    Attributes:
        beta1: of m.
        beta2: of v.
        tau: the floor of √v.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("beta1", self.beta1)
        _check_share("beta2", self.beta2)
        check_positive("tau", self.tau)

    def start(self, d: int) -> State:
        """Return m = 0 and v = tau²."""
        return {"m": torch.zeros(d), "v": torch.full((d,), self.tau**2)}

    def step(self, parameters: Tensor, mean: Tensor, state: State) -> tuple[Tensor, State]:
        """See the class."""
        m = self.beta1 * state["m"] + (1 - self.beta1) * mean
        v = self._second(state["v"], mean * mean)
        return parameters + self.lr * m / (v.sqrt() + self.tau), {"m": m, "v": v}

    @abstractmethod
    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the next v."""


class FedAdam(Adaptive):
    """v = beta2·v + (1 − beta2)·mean²."""

    name: ClassVar[str] = "fedadam"

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


class FedYogi(Adaptive):
    """v − (1 − beta2)·mean²·sign(v − mean²)."""

    name: ClassVar[str] = "fedyogi"

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * torch.sign(v - square)


class FedAdagrad(Adaptive):
    """v + mean²."""

    name: ClassVar[str] = "fedadagrad"

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


SERVERS: dict[str, type[ServerOptimiser]] = {kind.name: kind for kind in (FedAvg, FedAdam, FedYogi, FedAdagrad)}


def make_server(name: str, **options: Any) -> ServerOptimiser:
    """Return the server optimiser called ``name``.

    Raises:
        ConfigError: an unknown name or option, or an impossible value.
    """
    kind = SERVERS[check_choice("server", name, SERVERS)]
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"server {name!r}: {error}") from error


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name}={value!r} must be at least 0 and below 1")
