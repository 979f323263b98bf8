"""At the server: the wrapper that makes any strategy that steps along a mean update a CEPAM one."""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from krossfuse.core.errors import ConfigError, DataError, check_positive
from krossfuse.federated import Protection, RoundAccount
from krossfuse.federated.checkpoint import Checkpoint
from krossfuse.federated.protection import OpenRound
from krossfuse.flower.arrays import check_arrays, moved, of_type
from krossfuse.flower.nodes import Nodes
from krossfuse.flower.order import RECORD, Order
from krossfuse.flower.replies import add_up
from krossfuse.flower.state import of_strategy, read_state, write_state
from krossfuse.privacy import Key
from krossfuse.privacy.streams import normals

log = logging.getLogger("flwr.krossfuse")  # Flower shows what its own logger gets

NOT_OF_A_MEAN = (
    "Bulyan",
    "FedMedian",
    "FedTrimmedAvg",
    "FedXgbBagging",
    "FedXgbCyclic",
    "Krum",
    "MultiKrum",
    "QFedAvg",
)
"""Flower's strategies that look at the updates one by one, which noise of the sum does not protect."""


class CepamStrategy(Strategy):
    """Wraps a strategy: what it sees of a round is ONE reply, the global arrays plus the noisy mean update.

    Whatever it does with that (FedAvg, momentum, Adam, ...) is computed from the protected sum, and covered by its
    account. Clients need :func:`~krossfuse.flower.mod.cepam_mod`. Every message has a secret of its own, fresh from the
    operating system; it travels to its client inside Flower's message, so that the link must be encrypted, and the
    SuperLink with its database belongs to the server that is trusted.

    A reply that is truncated, altered, replayed, doubled, of another version, or without the mod is refused with a
    warning that says so and never reaches the mean; a round in which that leaves nothing stops the run. Metrics that
    clients report from training are dropped; those of an evaluation at the clients, if the wrapped strategy asks for
    one, are not covered by ε.

    Args:
        strategy: any whose result depends on the mean update alone.
        protection: mechanism, clip, sampling, budgets; clients are drawn from those that ``strategy`` asks. For unit
            ``record`` no amplification by local batches is claimed: the server does not know how many there are.
        clients: K, whether connected or not; a node says by ``partition-id`` which one it is.
        checkpoint: a file written after every round, before the new arrays leave; a server that starts again goes on
            from it with the same account. It holds no secret.
        secret: from which the messages' secrets are derived in place of fresh ones, for simulations that are to give
            the same bits again. Never give the same secret to two runs on real data.
        pad: messages are filled up to a multiple of so many bytes, since their length depends on the update.
        timeout: seconds to wait for nodes to say which client they are.

    Raises:
        ConfigError: a strategy that is not one of a mean, or a protection that does not fit the number of clients.
        DataError: the checkpoint is of another federation.
    """

    def __init__(
        self,
        strategy: Strategy,
        protection: Protection,
        clients: int,
        *,
        checkpoint: str | Path | None = None,
        secret: bytes | None = None,
        pad: int = 1,
        timeout: float = 60.0,
    ) -> None:
        name = type(strategy).__name__
        if isinstance(strategy, tuple(getattr(flower, kind) for kind in NOT_OF_A_MEAN)):
            raise ConfigError(
                f"{name} looks at the updates one by one; the noise protects their sum alone. Wrap a strategy of the "
                "mean: FedAvg, FedAvgM, FedProx, FedAdam, FedAdagrad, FedYogi"
            )
        if isinstance(strategy, CepamStrategy) or name.startswith("DifferentialPrivacy"):
            raise ConfigError(f"{name} clips and adds noise itself: wrap the strategy inside it")
        check_positive("clients", clients, integer=True)
        check_positive("pad", pad, integer=True)
        self.strategy, self.protection, self.clients, self.pad = strategy, protection, clients, pad
        self.account = self._open_account(1)  # what does not fit is known now, not after clients have connected
        self.finished = False
        self.history: list[dict[str, float]] = []
        self.total_bits = 0
        self._nodes = Nodes(clients, timeout)
        self._secret = secret
        self._seed = int.from_bytes(Key(secret or secrets.token_bytes(32)).derive("flower/sampling", 4), "big") >> 1
        self._arrays: ArrayRecord | None = None
        self._opened: OpenRound | None = None
        self._orders: dict[int, Order] = {}
        self._checkpoint = Checkpoint(checkpoint, self._identity()) if checkpoint else None
        if self._checkpoint and (saved := self._checkpoint.load()):
            self._restore(*saved)

    @property
    def rounds_done(self) -> int:
        """Rounds that were aggregated and charged."""
        return len(self.history)

    @property
    def statement(self) -> str:
        """What may be claimed for the rounds so far, in words."""
        return (
            self.account.statement(self.rounds_done)
            + " Secrets travel with Flower's messages: the SuperLink and its database belong to the trusted server, "
            "and links must be encrypted."
        )

    # Flower's interface.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Give the wrapped strategy's messages their orders; none for a round that is done or that nobody can afford.

        Raises:
            DataError: arrays that are not floating-point numbers, nodes that do not say who they are, or a strategy
                that sends other arrays than the global ones.
        """
        self._opened, self._orders = None, {}
        if self.finished or server_round <= self.rounds_done:
            return []
        self._begin(arrays)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        clients = self._nodes.identify(grid, [message.metadata.dst_node_id for message in messages])
        opened = self.account.open(self._seed, server_round - 1, clients.values())
        if opened is None:
            log.warning("no client can afford round %d: training ends after %d rounds", server_round, self.rounds_done)
            self.finished = True
            self._save(arrays)
            return []
        self._opened = opened
        return [
            self._ordered(message, clients[node], server_round, arrays)
            for message in messages
            if (node := message.metadata.dst_node_id) in clients and clients[node] in opened.stds
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode, add up, charge, save; then let the wrapped strategy step along the mean.

        Raises:
            DataError: none of the messages that came can be used.
        """
        opened, arrays = self._opened, self._arrays
        if opened is None or arrays is None:
            return arrays if server_round <= self.rounds_done else None, None
        self._opened = None
        d = check_arrays(arrays)
        got = add_up(replies, self._orders, d)
        received = {client: opened.stds[client] for client in got.clients}
        server_std, divisor = self.account.close(opened, received)
        if server_std:
            got.total += server_std * normals(self._key(self.clients, server_round - 1), "server noise", d)
        after, metrics = None, MetricRecord()
        if divisor:
            mean = (got.total / divisor).astype(np.float32)
            after, given = self.strategy.aggregate_train(server_round, [self._mean_reply(moved(arrays, mean))])
            after = None if after is None else of_type(after, arrays)
            metrics = given or metrics
        self.total_bits += got.bits
        record: dict[str, float] = {
            "round": server_round,
            "participants": len(opened.stds),
            "received": len(received),
            "refused": len(got.faults),
            "bits": got.bits,
            "total_bits": self.total_bits,
        }
        epsilons = self.account.epsilons()
        if epsilons is not None and self.protection.mechanism.noise != "none" and math.isfinite(max(epsilons)):
            record["epsilon"] = max(epsilons)
        self.history.append(record)
        self._arrays = arrays if after is None else after
        self._save(self._arrays)
        if got.faults and not received and not self.account.plan.scaled:  # else that nobody came may be chance
            raise DataError(
                f"round {server_round}: none of {len(got.faults)} messages could be used; the first: {got.faults[0]}"
            )
        for name, value in record.items():
            metrics[name] = value
        return after, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask what the wrapped strategy asks, after a round that was played."""
        if self.finished or server_round < self.rounds_done:
            return []
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        if messages and self.protection.mechanism.noise != "none" and server_round == 1:
            log.warning("no epsilon covers what clients answer to an evaluation; fraction_evaluate=0 asks nothing")
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Do what the wrapped strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log protection and strategy."""
        clips = self.account.clips
        log.info(
            "%s, clip %s, %d clients, %d rounds done",
            self.protection.mechanism.settings,
            "none" if clips is None else f"{min(clips):g} to {max(clips):g}",
            self.clients,
            self.rounds_done,
        )
        self.strategy.summary()

    # One round.

    def _begin(self, arrays: ArrayRecord) -> None:
        d = check_arrays(arrays)
        if self._arrays is None:
            self.account = self._open_account(d)
        elif check_arrays(self._arrays) != d:
            raise DataError(f"the arrays have {d} coordinates; those of the round before had others")
        self._arrays = arrays

    def _ordered(self, message: Message, client: int, server_round: int, arrays: ArrayRecord) -> Message:
        sent = list(message.content.array_records.values())
        if len(sent) != 1 or sent[0] != arrays:
            raise DataError(
                f"{type(self.strategy).__name__} sends other arrays than the global ones: the mean of the updates "
                "would be added to the wrong ones"
            )
        std = self._opened.stds[client] if self._opened else 0.0
        order = Order(
            self._key(client, server_round - 1),
            self.account.mechanism(std),
            None if self.account.clips is None else self.account.clips[client],
            self.protection.norm,
            self.pad,
        )
        self._orders[message.metadata.dst_node_id] = order
        message.content = RecordDict({**message.content, RECORD: order.record()})  # messages share one content
        return message

    def _mean_reply(self, arrays: ArrayRecord) -> Message:
        weight = str(getattr(self.strategy, "weighted_by_key", "num-examples"))
        name = str(getattr(self.strategy, "arrayrecord_key", "arrays"))
        content = RecordDict({name: arrays, "metrics": MetricRecord({weight: 1.0})})
        return Message(content, dst_node_id=SUPERLINK_NODE_ID, message_type=MessageType.TRAIN)

    def _key(self, client: int, round: int) -> Key:
        if self._secret is None:
            return Key(secrets.token_bytes(32), client, round)
        return Key(Key(self._secret, client, round).derive("flower/message", 32), client, round)

    def _open_account(self, d: int) -> RoundAccount:
        rate = self.protection.sampling.rate if self.protection.secretly_sampled else 1.0
        return RoundAccount(self.protection, self.clients, d, rates=[rate] * self.clients)

    # Checkpoints.

    def _identity(self) -> str:
        numbers = sorted(read_state(self.strategy)[1].items())
        text = f"{type(self.strategy).__name__}|{numbers}|{self.protection!r}|{self.clients}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _save(self, arrays: ArrayRecord) -> None:
        if not self._checkpoint:
            return
        tensors, numbers = read_state(self.strategy)
        tensors |= {f"arrays/{name}": torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}
        state: dict[str, Any] = {
            "names": list(arrays),
            "numbers": numbers,
            "history": self.history,
            "total_bits": self.total_bits,
            "ledger": self.account.ledger.state(),
            "finished": self.finished,
        }
        self._checkpoint.save(tensors, state)

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        self._arrays = ArrayRecord({name: Array(tensors[f"arrays/{name}"].numpy()) for name in state["names"]})
        self.account = self._open_account(check_arrays(self._arrays))
        self.account.ledger.load_state(state["ledger"])
        write_state(self.strategy, of_strategy(tensors), state["numbers"])
        self.history, self.total_bits, self.finished = state["history"], state["total_bits"], state["finished"]
        log.info("going on after round %d", self.rounds_done)
