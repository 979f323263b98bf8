"""At the client: the mod that sends the update through the mechanism, and the answer to who one is."""

from __future__ import annotations

import logging

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

from krossfuse.core.errors import DataError, KrossFuseError
from krossfuse.flower.arrays import check_arrays, difference
from krossfuse.flower.order import RECORD, Order
from krossfuse.privacy import clip
from krossfuse.privacy.quantizer import check_finite

log = logging.getLogger("flwr.krossfuse")  # Flower shows what its own logger gets

CLIENT_QUERY = "krossfuse"
"""Name of the query by which the server asks a node which client it is."""
CLIENT_KEY = "partition-id"
"""Key of a node's configuration that says so, as in Flower's own simulations."""


def cepam_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send what training changed, as one vector, clipped, through the mechanism that the server ordered.

    Arrays and metrics of the reply are replaced by that one message: nothing else of the client's data leaves it.
    Without an order, or with an update that is not finite, the reply is an error: a bare update never leaves. It should
    be the first of several mods, so that it is the last to see the reply.
    """
    if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    try:
        return _train(message, context, call_next)
    except KrossFuseError as error:
        return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, f"{type(error).__name__}: {error}"), reply_to=message)


def _train(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    content = message.content
    if RECORD not in content.config_records:
        raise DataError(
            f"the server's message has {sorted(content)} and no record {RECORD!r}: its strategy must be wrapped, "
            "CepamStrategy(strategy, ...)"
        )
    order = Order.read(content.config_records.pop(RECORD))
    before = _only_arrays(message, "the server's message")
    check_arrays(before)
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    update = difference(_only_arrays(reply, "the client's reply"), before)
    try:
        check_finite(update)
        if order.clip is not None:
            update = clip(update, order.clip, order.norm)
        sent = order.mechanism.encode(update, order.key)
    except KrossFuseError as error:
        raise type(error)(f"client {order.key.client}, round {order.key.round + 1}: {error}") from error
    if reply.content.metric_records:
        log.info("the client's training metrics stay with it: no noise covers them")
    reply.content = order.wrap(sent)
    return reply


def _only_arrays(message: Message, whose: str) -> ArrayRecord:
    found = list(message.content.array_records.values())
    if len(found) != 1:
        raise DataError(f"{whose} has {len(found)} ArrayRecords; the update is the change of exactly one")
    return found[0]


def answer_client(message: Message, context: Context) -> Message:
    """Answer which client this node is, by ``partition-id`` of its configuration; see :data:`CLIENT_QUERY`.

    Register it: ``app.query(CLIENT_QUERY)(answer_client)``.
    """
    client = context.node_config.get(CLIENT_KEY)
    if isinstance(client, bool) or not isinstance(client, int) or client < 0:
        reason = (
            f"{CLIENT_KEY}={client!r}: a SuperNode needs the number of its client, flower-supernode --node-config "
            f"'{CLIENT_KEY}=0'"
        )
        return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)
    return Message(RecordDict({RECORD: ConfigRecord({"client": client})}), reply_to=message)
