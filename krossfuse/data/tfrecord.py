"""Files of TensorFlow: records with checksums (TFRecord) and the messages in them (``tf.train.Example``).

A record is its length (8 bytes, little-endian), the checksum of these, the data, and the checksum of the data: CRC-32C,
rotated and offset (tensorflow.org/tutorials/load_data/tfrecord). An Example is a protocol buffer: a map from names to
lists of bytes, of floats or of whole numbers (tensorflow/core/example/feature.proto).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from krossfuse.core.errors import DataError
from krossfuse.core.files import check_regular

_HEAD, _FOOT = 12, 4
_LANE = 64
Value = bytes | int | float


@dataclass(frozen=True)
class Record:
    """A record in a file: where its data lie."""

    file: str
    number: int
    offset: int
    size: int

    def read(self) -> bytes:
        """Return its data.

        Raises:
            DataError: they do not fit their checksum, or the file ends before them.
        """
        try:
            with open(self.file, "rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.size + _FOOT)
        except OSError as error:
            raise DataError(f"cannot read {self.file!r}: {error}") from error
        if len(data) < self.size + _FOOT:
            raise DataError(f"{self.file!r} ends within record {self.number}; it is truncated: fetch it again")
        if masked_crc(data[: self.size]) != _number(data, self.size):
            raise DataError(f"{self.file!r}: record {self.number} does not fit its checksum; fetch the file again")
        return data[: self.size]


def records_of(path: Path, names: Collection[str]) -> tuple[list[Record], list[dict[str, list[Value]]]]:
    """List the records of a file, with some features of each; what is not asked for is not read from the disk.

    The checksums of lengths are compared here, those of data by :meth:`Record.read`.

    Args:
        path: of the file.
        names: of the features.

    Raises:
        DataError: the file cannot be read, is truncated or damaged, or a record is no Example.
    """
    records: list[Record] = []
    features: list[dict[str, list[Value]]] = []
    try:
        check_regular(path)
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if not size:
                return records, features
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                at = 0
                while at < size:
                    head = bytes(view[at : at + _HEAD])
                    if len(head) < _HEAD:
                        raise DataError(f"{str(path)!r} ends within record {len(records)}; it is truncated")
                    if masked_crc(head[:8]) != _number(head, 8):
                        raise DataError(
                            f"{str(path)!r}: the length of record {len(records)} does not fit its checksum; it is "
                            "damaged, or no TFRecord file"
                        )
                    length = int.from_bytes(head[:8], "little")
                    if at + _HEAD + length + _FOOT > size:
                        raise DataError(f"{str(path)!r} ends within record {len(records)}; it is truncated")
                    with view[at + _HEAD : at + _HEAD + length] as data:
                        features.append(_example(data, names, f"{str(path)!r}, record {len(records)}"))
                    records.append(Record(str(path), len(records), at + _HEAD, length))
                    at += _HEAD + length + _FOOT
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    return records, features


def read_example(data: bytes, names: Collection[str], where: str) -> dict[str, list[Value]]:
    """Return some features of an Example by name, each a list; a name that it does not have is left out.

    Raises:
        DataError: it is no Example; the message says where it lies.
    """
    with memoryview(data) as view:
        return _example(view, names, where)


def _example(data: memoryview, names: Collection[str], where: str) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    try:
        for features in _messages(data, 1):  # Example.features
            for entry in _messages(features, 1):  # Features.feature, a map
                name = bytes(next(_messages(entry, 1), b"")).decode("utf-8")
                if name in names:
                    found[name] = [value for feature in _messages(entry, 2) for value in _values(feature)]
    except (ValueError, IndexError) as error:
        raise DataError(f"{where} is no tf.train.Example: {error}") from None
    return found


def _values(feature: memoryview) -> Iterator[Value]:
    for kind, wire, of_kind in _fields(feature):
        if not isinstance(of_kind, memoryview):
            raise ValueError(f"field {kind} of wire type {wire} where a list is expected")
        for _, how, value in _fields(of_kind):
            if kind == 1 and isinstance(value, memoryview):  # BytesList
                yield bytes(value)
            elif kind == 2 and isinstance(value, memoryview):  # FloatList; one, or packed
                yield from struct.unpack(f"<{len(value) // 4}f", value)
            elif kind == 3 and isinstance(value, int):  # Int64List
                yield _signed(value)
            elif kind == 3 and how == 2 and isinstance(value, memoryview):
                at = 0
                while at < len(value):
                    number, at = _varint(value, at)
                    yield _signed(number)


def _messages(data: memoryview, field: int) -> Iterator[memoryview]:
    """Yield the values of a field that holds messages or texts."""
    for number, _, value in _fields(data):
        if number == field and isinstance(value, memoryview):
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Yield number, wire type and value of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("it ends within a field")
        yield number, wire, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def masked_crc(data: bytes) -> int:
    """Return the checksum as it stands in the files: CRC-32C, rotated by 15 bits, plus a constant.

    >>> hex(masked_crc(bytes(8)))
    '0x7980329'
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _steps(state: np.ndarray, count: int) -> np.ndarray:
    """Return what states become by so many zero bytes."""
    for _ in range(count):
        state = _TABLE[state & 255] ^ (state >> 8)
    return state


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


_TABLE = _table()
_BYTES: list[int] = _TABLE.tolist()
_SKIP: list[list[int]] = [
    _steps(np.arange(256, dtype=np.uint32) << np.uint32(8 * byte), _LANE).tolist() for byte in range(4)
]
"""By byte of the state, what it becomes by ``_LANE`` zero bytes: the state is linear in its bits."""


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes.

    Lanes of 64 bytes are taken through the table side by side, and then put together: the checksum of AB is that of
    A after as many zero bytes as B has, plus that of B, over GF(2).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc, lanes = 0xFFFFFFFF, len(data) // _LANE if len(data) >= 32 * _LANE else 0
    if lanes:
        columns = np.frombuffer(data, np.uint8, lanes * _LANE).reshape(lanes, _LANE).T.astype(np.uint32)
        state = np.zeros(lanes, dtype=np.uint32)
        for column in columns:
            state = _TABLE[(state ^ column) & 255] ^ (state >> 8)
        first, second, third, fourth = _SKIP
        for lane in state.tolist():
            crc = lane ^ first[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ fourth[crc >> 24]
    for byte in data[lanes * _LANE :]:
        crc = _BYTES[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF
