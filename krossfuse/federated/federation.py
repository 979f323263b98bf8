"""A federation: clients train, clip, encode; the server decodes, averages, steps; every round is accounted for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_positive
from krossfuse.federated.budget import unit_rates
from krossfuse.federated.checkpoint import Checkpoint, fingerprint
from krossfuse.federated.local import LocalTraining
from krossfuse.federated.models import FlatModel
from krossfuse.federated.participation import Transport
from krossfuse.federated.partition import Rows, check_parts
from krossfuse.federated.protection import Protection, RoundAccount
from krossfuse.federated.server import FedAvg, ServerOptimiser, State
from krossfuse.privacy import Key, MessageError, clip
from krossfuse.privacy.streams import normals

log = logging.getLogger(__name__)

Evaluate = Callable[[Tensor], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Settings(Protection):
    """What decides the result of a federation, besides its data, model and secret: a protection and the training.

    Attributes:
        rounds: T.
        local: training at the clients.
        server: what is done with the mean.
        evaluate_every: rounds between evaluations; the last is always evaluated.
        seed: of the batches, the sampling and the model.

    Raises:
        ConfigError: an impossible value, noise without a clip, or budgets without a δ.
    """

    rounds: int
    local: LocalTraining = field(default_factory=LocalTraining)
    server: ServerOptimiser = field(default_factory=FedAvg)
    evaluate_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rounds", self.rounds, integer=True)
        check_positive("evaluate_every", self.evaluate_every, integer=True)


@dataclass(frozen=True)
class Result:
    """What came of a federation.

    Attributes:
        parameters: (d,) float32, the global model.
        history: one record a round: participants, received, refused, bits, total_bits; and, where evaluated, what the
            evaluation returned and ε so far.
        epsilons: by client at the settings' δ, or None without one.
        total_bits: sent by clients in all rounds, headers and lost messages included.
        statement: what may be claimed, in words.
    """

    parameters: Tensor
    history: list[dict[str, float]]
    epsilons: list[float] | None
    total_bits: int
    statement: str


class Federation:
    """Clients simulated as one batch.

    Args:
        model: what is trained.
        x: (n, ...) inputs of all clients.
        y: (n,) int64 labels, or (n, classes) bool.
        parts: the rows of every client.
        settings: see :class:`Settings`.
        evaluate: gives measurements of (d,) parameters.
        secret: that clients and server share; None derives one from the seed, as suits a simulation.
        transport: what lies between clients and server; None delivers everything.
        checkpoint: a file that is written after every round, and from which a killed run goes on with the same bits and
            the same account; it is removed by nobody.
        device: where clients train.
        start: (d,) parameters to start from; None asks the model.

    Raises:
        ConfigError: settings that do not fit the number of clients.
        DataError: a client without records, or more labels than inputs.
    """

    def __init__(
        self,
        model: FlatModel,
        x: Tensor,
        y: Tensor,
        parts: Sequence[Rows],
        settings: Settings,
        *,
        evaluate: Evaluate | None = None,
        secret: bytes | None = None,
        transport: Transport | None = None,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
        start: Tensor | None = None,
    ) -> None:
        if len(x) != len(y):
            raise DataError(f"{len(x)} inputs and {len(y)} labels")
        check_parts(parts, len(y))
        self.model, self.x, self.y, self.parts, self.settings = model, x, y, list(parts), settings
        self.evaluate, self.transport, self.device = evaluate, transport, torch.device(device)
        self.secret = secret or Key.from_seed(settings.seed).secret
        self.account = RoundAccount(
            settings,
            len(self.parts),
            model.d,
            rates=unit_rates(
                settings.unit,
                settings.sampling.rate if settings.secretly_sampled else 1.0,
                settings.local,
                self.parts,
            ),
            population=min(len(rows) for rows in self.parts) if settings.unit == "record" else None,
        )
        self.parameters = (model.initial(settings.seed) if start is None else start).detach().float().cpu().clone()
        if self.parameters.shape != (model.d,):
            raise DataError(f"start has shape {tuple(self.parameters.shape)}; the model has {model.d} parameters")
        self.server_state: State = settings.server.start(model.d)
        self.history: list[dict[str, float]] = []
        self.total_bits = 0
        self.finished = False
        self._checkpoint = Checkpoint(checkpoint, self._fingerprint()) if checkpoint else None
        if self._checkpoint and (saved := self._checkpoint.load()):
            self._restore(*saved)

    @property
    def round(self) -> int:
        """Rounds that are done."""
        return len(self.history)

    def run(self) -> Result:
        """Play the rounds that are left, and return the result.

        Raises:
            DataError: a client's update is not finite.
            ConfigError: an update is too large for the noise.
        """
        while self.round < self.settings.rounds and not self.finished:
            self._play()
        return self.result()

    def result(self) -> Result:
        """Return what has come of the rounds so far."""
        statement = self.account.statement(self.round)
        return Result(self.parameters, self.history, self.account.epsilons(), self.total_bits, statement)

    # One round.

    def _play(self) -> None:
        settings, round = self.settings, self.round
        opened = self.account.open(settings.seed, round)
        if opened is None:
            log.warning("no client can afford round %d: the federation ends after %d rounds", round, round)
            self.finished = True
            self._save()
            return
        total, received, bits, refused = self._exchange(opened.stds, round)
        server_std, divisor = self.account.close(opened, received)
        if server_std:
            total += server_std * normals(self._key(len(self.parts), round), "server noise", self.model.d)
        if divisor:
            mean = torch.from_numpy((total / divisor).astype(np.float32))
            self.parameters, self.server_state = settings.server.step(self.parameters, mean, self.server_state)
        self.total_bits += bits
        record: dict[str, float] = {
            "round": round + 1,
            "participants": len(opened.stds),
            "received": len(received),
            "refused": refused,
            "bits": bits,
            "total_bits": self.total_bits,
        }
        if (round + 1) % settings.evaluate_every == 0 or round + 1 == settings.rounds:
            record |= self._measure()
        self.history.append(record)
        self._save()

    def _exchange(self, stds: dict[int, float], round: int) -> tuple[NDArray[np.float64], dict[int, float], int, int]:
        """Return the sum of what arrived, σ_k by client whose message did, the bits sent, and the messages refused."""
        settings, clips = self.settings, self.account.clips
        total = np.zeros(self.model.d)
        received: dict[int, float] = {}
        bits = refused = 0
        start = self.parameters.to(self.device)
        for block in _blocks(list(stds), self.model.d):
            updates = settings.local.updates(
                self.model, start, self.x, self.y, self.parts, block, seed=settings.seed, round=round
            )
            clipped = updates.cpu().numpy()
            if clips is not None:
                clipped = clip(clipped, np.array([clips[k] for k in block]), settings.norm)
            for client, update in zip(block, clipped, strict=True):
                key, mechanism = self._key(client, round), self.account.mechanism(stds[client])
                try:
                    message = mechanism.encode(update, key)
                except (DataError, ConfigError) as error:
                    raise type(error)(f"client {client}, round {round + 1}: {error}") from error
                bits += 8 * len(message)
                arrived = message if self.transport is None else self.transport(message, client, round)
                if arrived is None:
                    continue
                try:
                    decoded = mechanism.decode(arrived, key, d=self.model.d)
                except MessageError as error:
                    log.warning("client %d, round %d: message refused: %s", client, round + 1, error)
                    refused += 1
                    continue
                total += decoded
                received[client] = stds[client]
        return total, received, bits, refused

    def _key(self, client: int, round: int) -> Key:
        return Key(self.secret, client, round)

    def _measure(self) -> dict[str, float]:
        out = {} if self.evaluate is None else dict(self.evaluate(self.parameters))
        if self.settings.mechanism.noise != "none" and (epsilons := self.account.epsilons()) is not None:
            out["epsilon"] = max(epsilons)
        return out

    # Checkpoints.

    def _fingerprint(self) -> str:
        settings = replace(self.settings, rounds=1, evaluate_every=1)  # a run may go on for longer than it was meant to
        return fingerprint(
            f"{type(self.model).__name__} {settings!r}", self.model.d, self.secret, self.x, self.y, self.parts
        )

    def _save(self) -> None:
        if self._checkpoint:
            tensors = {"parameters": self.parameters, **{f"server/{k}": v for k, v in self.server_state.items()}}
            state = {
                "history": self.history,
                "total_bits": self.total_bits,
                "ledger": self.account.ledger.state(),
                "finished": self.finished,
            }
            self._checkpoint.save(tensors, state)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.parameters = tensors.pop("parameters")
        self.server_state = {name.removeprefix("server/"): tensor for name, tensor in tensors.items()}
        self.history, self.total_bits = state["history"], state["total_bits"]
        self.finished = state["finished"]
        self.account.ledger.load_state(state["ledger"])
        log.info("going on after round %d", self.round)


def _blocks(clients: list[int], d: int) -> list[list[int]]:
    """Return clients in groups whose updates are held together."""
    size = max(1, (1 << 25) // d)
    return [clients[at : at + size] for at in range(0, len(clients), size)]
