"""What came back in a round: genuine messages added up, the others named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from krossfuse.flower.order import Order, unwrap
from krossfuse.privacy import MessageError

log = logging.getLogger("flwr.krossfuse")  # Flower shows what its own logger gets


@dataclass
class Sum:
    """What a round's messages come to.

    Attributes:
        total: (d,) float64, the sum of the decoded updates.
        clients: whose message is in the sum.
        bits: of all messages that came, refused ones included.
        faults: what was wrong with the refused ones.
    """

    total: NDArray[np.float64]
    clients: list[int] = field(default_factory=list)
    bits: int = 0
    faults: list[str] = field(default_factory=list)


def add_up(replies: Iterable[Message], orders: Mapping[int, Order], d: int) -> Sum:
    """Decode what can be decoded, and log what cannot.

    Args:
        replies: of a round.
        orders: of the round, by node.
        d: coordinates of an update.
    """
    out = Sum(np.zeros(d))
    last = len(orders)
    place = {node: i for i, (node, _) in enumerate(sorted(orders.items(), key=lambda item: item[1].key.client))}
    # In the order of the clients, so that the sum has the same bits whoever answers first.
    for reply in sorted(replies, key=lambda reply: place.get(reply.metadata.src_node_id, last)):
        node = reply.metadata.src_node_id
        try:
            if node not in orders:
                raise MessageError("nobody asked it in this round")
            order = orders[node]
            message = unwrap(reply)
            out.bits += 8 * len(message)
            if order.key.client in out.clients:
                raise MessageError(f"it is a second message of client {order.key.client} in this round")
            decoded = order.mechanism.decode(message, order.key, d=d)
        except MessageError as error:
            out.faults.append(f"message of node {node} refused: {error}")
            log.warning("%s", out.faults[-1])
            continue
        out.total += decoded
        out.clients.append(order.key.client)
    return out
