"""Local training of many clients as one batch, on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.core.seeds import derived_generator
from krossfuse.federated.models.base import FlatModel
from krossfuse.federated.partition import Rows

_NUMBERS_AT_ONCE = 1 << 26
"""Floats of parameters, velocities and batches that are held at a time."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """SGD at a client, from the global model, with a fresh velocity each round.

    Attributes:
        steps: τ.
        batch_size: records a step.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: added to the gradient, times the parameters.
        replacement: whether records are drawn with replacement; else a round goes through random orders of a client's
            records, none twice before all were seen.

    Raises:
        ConfigError: a number that is impossible.
    """

    steps: int = 15
    batch_size: int = 1
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    replacement: bool = False

    def __post_init__(self) -> None:
        check_positive("steps", self.steps, integer=True)
        check_positive("batch_size", self.batch_size, integer=True)
        check_positive("lr", self.lr)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum!r} must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay={self.weight_decay!r} must not be negative")

    def draws(self, rows: Rows, seed: int, client: int, round: int) -> Tensor:
        """Return the (steps, batch_size) rows that a client trains on in a round.

        They depend on seed, client and round alone: not on who else takes part.
        """
        n, needed = len(rows), self.steps * self.batch_size
        generator = derived_generator(seed, "batches", client, round)
        if self.replacement:
            chosen = torch.randint(n, (needed,), generator=generator)
        else:
            orders = [torch.randperm(n, generator=generator) for _ in range(-(-needed // n))]
            chosen = torch.cat(orders)[:needed]
        return torch.from_numpy(rows)[chosen].view(self.steps, self.batch_size)

    def updates(
        self,
        model: FlatModel,
        start: Tensor,
        x: Tensor,
        y: Tensor,
        parts: Sequence[Rows] | Mapping[int, Rows],
        clients: Sequence[int],
        *,
        seed: int,
        round: int,
    ) -> Tensor:
        """Return the (len(clients), d) updates: trained minus global parameters.

        Args:
            model: what is trained.
            start: (d,) global parameters; their device is where the training runs.
            x: (n, ...) inputs of all clients.
            y: their labels.
            parts: rows by client; of those who take part at least.
            clients: who takes part.
            seed: of the batches.
            round: number of the round.
        """
        width = 3 * model.d + self.batch_size * x[0].numel()
        size = max(1, _NUMBERS_AT_ONCE // width)
        out = torch.empty(len(clients), model.d, device=start.device)
        with torch.no_grad():
            for block in blocks(len(clients), size):
                draws = torch.stack([self.draws(parts[k], seed, k, round) for k in clients[block]])
                self._train(model, start, x, y, draws, out[block])
        return out

    def _train(self, model: FlatModel, start: Tensor, x: Tensor, y: Tensor, draws: Tensor, out: Tensor) -> None:
        parameters = start.expand(len(draws), -1).clone()
        velocity = torch.zeros_like(parameters)
        for step in range(self.steps):
            rows = draws[:, step]
            batch, labels = x[rows].to(start.device, start.dtype), y[rows].to(start.device)
            model.accumulate(parameters, velocity, batch, labels, self.momentum)
            if self.weight_decay:
                velocity.add_(parameters, alpha=self.weight_decay)
            parameters.add_(velocity, alpha=-self.lr)
        torch.sub(parameters, start, out=out)
