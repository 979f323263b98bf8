"""Messages: a versioned header, a body, and a tag that only the holders of the key can make.

    magic 2 | version 1 | mechanism 1 | lattice 1 | d, client, round (varints) | body | tag 8

The tag is a keyed BLAKE2b over everything before it and over the mechanism's settings, so that a truncated or altered
message, one of another client or round, and one of other settings are refused before anything is decoded.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from krossfuse.core.errors import DataError
from krossfuse.privacy.keys import Key

MAGIC = b"KF"
VERSION = 2
TAG_BYTES = 8


class MessageError(DataError):
    """A message cannot be used: truncated, altered, replayed, of another version, mechanism, lattice or size."""


@dataclass(frozen=True)
class Header:
    """What a message says of itself.

    Attributes:
        mechanism: number of the mechanism.
        lattice: number of the lattice, 0 where there is none.
        d: coordinates of the update.
        client: whose it is.
        round: of which round.
    """

    mechanism: int
    lattice: int
    d: int
    client: int
    round: int


def varint(value: int) -> bytes:
    """Return a non-negative integer in 7-bit groups, lowest first (LEB128).

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed_varint(value: int) -> bytes:
    """Return an integer of either sign: zigzag, then :func:`varint`."""
    return varint(2 * value if value >= 0 else -2 * value - 1)


class Reader:
    """Reads the fields of a message in order.

    Raises:
        MessageError: from every method, when the message ends before the field does.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        out = self._data[self._at : self._at + size]
        if len(out) < size:
            raise MessageError(f"the message is truncated: it ends at byte {len(self._data)}, inside a field")
        self._at += size
        return out

    def rest(self) -> bytes:
        """Return what is left."""
        return self.take(len(self._data) - self._at)

    def varint(self) -> int:
        """Return the next :func:`varint`."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise MessageError("the message is altered: a number has more than 64 bits")

    def signed_varint(self) -> int:
        """Return the next :func:`signed_varint`."""
        value = self.varint()
        return value >> 1 if value % 2 == 0 else -(value + 1) // 2


def seal(header: Header, body: bytes, key: Key, settings: str) -> bytes:
    """Return the message.

    Args:
        header: see :class:`Header`.
        body: what the mechanism wrote.
        key: of this client and round.
        settings: the mechanism's settings that the decoder must share; authenticated, not sent.
    """
    fixed = bytes((VERSION, header.mechanism, header.lattice))
    content = MAGIC + fixed + varint(header.d) + varint(header.client) + varint(header.round) + body
    return content + _tag(content, key, settings)


def unseal(message: bytes, key: Key, settings: str) -> tuple[Header, Reader]:
    """Return the header of a genuine message and a reader at its body.

    Raises:
        MessageError: it is not one of ours, of another version, truncated, altered, another client's, replayed from
            another round, or made with another secret or other settings.
    """
    message = bytes(message)
    if message[:2] != MAGIC[: len(message[:2])] or not message:
        raise MessageError(f"not a KrossFuse message: it begins with {message[:2]!r}, not {MAGIC!r}")
    if len(message) > 2 and message[2] != VERSION:
        raise MessageError(
            f"the message has version {message[2]}, this decoder reads version {VERSION}: client and server must run "
            "the same release"
        )
    if len(message) < 8 + TAG_BYTES:
        raise MessageError(f"the message is truncated: {len(message)} bytes are less than a header and its tag")
    content, tag = message[:-TAG_BYTES], message[-TAG_BYTES:]
    reader = Reader(content[3:])
    mechanism, lattice = reader.take(2)
    header = Header(mechanism, lattice, reader.varint(), reader.varint(), reader.varint())
    genuine = hmac.compare_digest(tag, _tag(content, key, settings))
    if header.client != key.client:
        raise MessageError(f"the message is client {header.client}'s; client {key.client}'s was expected")
    if header.round != key.round:
        replayed = "replayed: it is" if header.round < key.round else "early: it is"
        raise MessageError(f"the message is {replayed} of round {header.round}; this is round {key.round}")
    if not genuine:
        raise MessageError(
            f"the message of client {key.client} in round {key.round} is truncated or altered, or was made with "
            f"another secret or other settings than the server's ({settings})"
        )
    return header, reader


def _tag(content: bytes, key: Key, settings: str) -> bytes:
    mac = hashlib.blake2b(key=key.derive("tag", 32), digest_size=TAG_BYTES)
    mac.update(settings.encode() + b"\0")
    mac.update(content)
    return mac.digest()
