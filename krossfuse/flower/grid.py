"""Flower's ServerApp strategies, ClientApps and mods in one process: no network, no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Delivery = Callable[[Message], Iterable[Message]]


class LocalGrid(Grid):
    """A grid whose nodes are ClientApps of this process, asked one after the other.

    Every message goes through Flower's serialisation, both ways. An exception of an app becomes an error reply, as at a
    SuperNode.

    Args:
        app: of every node.
        nodes: configuration by node id.
        run_config: of the run.
        deliver: what lies between a node and the server: the messages that arrive for one reply. None delivers it.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, Mapping[str, Any]],
        *,
        run_config: Mapping[str, Any] | None = None,
        deliver: Delivery | None = None,
    ) -> None:
        self.app, self.deliver = app, deliver
        self.contexts = {
            node: Context(1, node, dict(config), RecordDict(), dict(run_config or {})) for node, config in nodes.items()
        }
        self._replies: dict[str, list[Message]] = {}
        self._numbers = itertools.count()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """There is one run, which needs no setting."""

    @property
    def run(self) -> Run:
        """A run without an app bundle."""
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message; Flower's own constructor is the newer way."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the nodes answer, and return the messages' ids."""
        ids = []
        for message in messages:
            name = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = name
            reply = self._answer(message_from_proto(message_to_proto(message)))
            reply.metadata.__dict__["_message_id"] = f"reply-to-{name}"
            arrived = message_from_proto(message_to_proto(reply))
            self._replies[name] = [arrived] if self.deliver is None else list(self.deliver(arrived))
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what arrived for messages, once."""
        return [reply for name in message_ids for reply in self._replies.pop(name, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return what arrives for messages; nothing takes time but the apps themselves."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"  # Flower's own words
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
