"""What the server asks of a client in one round, as the record that travels with Flower's train message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.privacy import Key, Mechanism, MessageError, make_mechanism
from krossfuse.privacy.clipping import Norm

RECORD = "krossfuse"
"""Name of the record, both ways."""
PROTOCOL = 1
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Order:
    """How one client has to send its update of one round.

    Attributes:
        key: of this message alone; its secret is known to this client and the server.
        mechanism: with this client's noise.
        clip: C of this client, or None.
        norm: that C bounds.
        pad: the reply is filled up with zeros to a multiple of so many bytes; 1 leaves it as it is.
    """

    key: Key
    mechanism: Mechanism
    clip: float | None
    norm: Norm
    pad: int = 1

    def record(self) -> ConfigRecord:
        """Return what is sent to the client."""
        return ConfigRecord(
            {
                "protocol": PROTOCOL,
                "secret": self.key.secret,
                "client": self.key.client,
                "round": self.key.round,
                "mechanism": json.dumps(self.mechanism.described()),
                "clip": self.clip or 0.0,
                "norm": self.norm,
                "pad": self.pad,
            }
        )

    @staticmethod
    def read(record: Any) -> Order:
        """Return the order of a record.

        Raises:
            DataError: it is of another release, or not whole.
        """
        protocol = record.get("protocol")
        if protocol != PROTOCOL:
            raise DataError(
                f"the server's order has version {protocol!r}, this client reads version {PROTOCOL}: client and server "
                "must run the same release of krossfuse"
            )
        try:
            options = json.loads(str(record["mechanism"]))
            return Order(
                Key(record["secret"], record["client"], record["round"]),
                make_mechanism(options.pop("mechanism"), **options),
                record["clip"] or None,
                record["norm"],
                record["pad"],
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, ConfigError) as error:
            raise DataError(f"the server's order cannot be read: {error}") from error

    def wrap(self, message: bytes) -> RecordDict:
        """Return the content of the client's reply: the message and nothing else."""
        padded = len(message).to_bytes(_LENGTH_BYTES, "little") + message
        padded += bytes(-len(padded) % self.pad)
        return RecordDict({RECORD: ConfigRecord({"message": padded})})


def unwrap(reply: Message) -> bytes:
    """Return the message in a client's reply.

    Raises:
        MessageError: there is none: the client's app lacks the mod, failed, or sent something else.
    """
    if reply.has_error():
        raise MessageError(f"it has an error instead of a message: {reply.error.reason}")
    content = reply.content
    found = content[RECORD].get("message") if RECORD in content.config_records else None
    if not isinstance(found, bytes):
        raise MessageError(
            f"it has {sorted(content)} and no record {RECORD!r} with a message: the ClientApp needs mods=[cepam_mod]"
        )
    if content.array_records or len(content) != 1:
        raise MessageError(f"it has {sorted(content)}; a message comes alone, as nothing else is protected")
    size, body = int.from_bytes(found[:_LENGTH_BYTES], "little"), found[_LENGTH_BYTES:]
    if len(found) < _LENGTH_BYTES or size > len(body) or body[size:].strip(b"\0"):
        raise MessageError(f"its message is truncated or altered: {len(body)} bytes, of which {size} were sent")
    return body[:size]
