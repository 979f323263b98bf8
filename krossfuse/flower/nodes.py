"""Which SuperNode is which client: an account belongs to a client, whichever node it comes back with."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from krossfuse.core.errors import DataError
from krossfuse.flower.mod import CLIENT_QUERY
from krossfuse.flower.order import RECORD

log = logging.getLogger("flwr.krossfuse")  # Flower shows what its own logger gets


class Nodes:
    """Asks every node once which client it is.

    Args:
        clients: K.
        timeout: seconds to wait for answers; who does not answer is asked again next time.
    """

    def __init__(self, clients: int, timeout: float = 60.0) -> None:
        self.clients, self.timeout = clients, timeout
        self._client_of: dict[int, int] = {}

    def identify(self, grid: Grid, nodes: Iterable[int]) -> dict[int, int]:
        """Return the client of those of ``nodes`` that are known by now.

        Raises:
            DataError: a node cannot answer, names a client that is not there, or one that another connected node is.
        """
        nodes = list(nodes)
        if new := [node for node in nodes if node not in self._client_of]:
            queries = [Message(RecordDict(), node, f"query.{CLIENT_QUERY}") for node in new]
            connected = set(grid.get_node_ids())
            for reply in grid.send_and_receive(queries, timeout=self.timeout):
                self._enter(reply, connected)
        known = {node: self._client_of[node] for node in nodes if node in self._client_of}
        if len(known) < len(nodes):
            log.warning("%d of %d nodes did not say which client they are", len(nodes) - len(known), len(nodes))
        return known

    def _enter(self, reply: Message, connected: set[int]) -> None:
        node = reply.metadata.src_node_id
        if reply.has_error():
            raise DataError(
                f"node {node} does not say which client it is ({reply.error.reason}); its ClientApp needs "
                "app.query(CLIENT_QUERY)(answer_client)"
            )
        client = reply.content.config_records[RECORD].get("client") if RECORD in reply.content.config_records else None
        if not isinstance(client, int) or not 0 <= client < self.clients:
            raise DataError(
                f"node {node} says that it is client {client!r}; there are clients={self.clients}, numbered from 0"
            )
        others = [n for n, k in self._client_of.items() if k == client and n != node]
        if still := [n for n in others if n in connected]:
            raise DataError(
                f"nodes {still[0]} and {node} both say that they are client {client}: give every SuperNode a "
                "partition-id of its own"
            )
        for old in others:  # the client came back as another node
            del self._client_of[old]
        self._client_of[node] = client
