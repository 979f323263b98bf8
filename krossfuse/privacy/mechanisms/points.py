"""The body of every quantising mechanism: prior widths, alphabet, checksum, and the coded points."""

from __future__ import annotations

import struct
from collections.abc import Callable

import constriction
import numpy as np
from numpy.typing import NDArray

from krossfuse.privacy.coding import (
    MOST_SYMBOLS,
    Alphabet,
    alphabet_of,
    checksum,
    read_points,
    read_tries,
    write_points,
    write_tries,
)
from krossfuse.privacy.lattices import Floats, Integers, Lattice
from krossfuse.privacy.messages import MessageError, Reader, signed_varint, varint
from krossfuse.privacy.quantizer import Quantised
from krossfuse.privacy.widths import read_range, read_widths, widths_of, write_widths

LIMIT_TRIES = 1 << 20
"""A header that claims more was not written here."""


def write_quantised(quantised: Quantised, lattice: Lattice, values: NDArray) -> bytes:
    """Return the body.

    Args:
        quantised: the points and what is shared of them.
        lattice: of the points.
        values: (d,) numbers that were quantised, whose size sets the widths of the prior.
    """
    widths = widths_of(values, lattice.dim, float(quantised.scale.mean()) if quantised.scale.size else 1.0)
    alphabet = alphabet_of(quantised.tries, quantised.index, lattice, widths.rms)
    encoder = constriction.stream.queue.RangeEncoder()
    told = write_widths(encoder, widths)
    write_tries(encoder, quantised.tries, lattice, alphabet.most_tries)
    of_blocks = widths.of_blocks(len(quantised.scale), lattice.dim)
    write_points(encoder, quantised.index, lattice, quantised.scale, quantised.dither, alphabet, of_blocks)
    fields = struct.pack("<fI", widths.rms, checksum(quantised.tries, quantised.index)) + told
    fields += varint(alphabet.most_tries) if lattice.dim > 1 else b""
    fields += signed_varint(alphabet.low) + varint(alphabet.high - alphabet.low)
    coded: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return fields + coded.rstrip(b"\0")


def read_quantised(
    reader: Reader, lattice: Lattice, d: int, scale: Callable[[int], Floats], dither: Callable[[Integers], Floats]
) -> Quantised:
    """Return what :func:`write_quantised` was given.

    Args:
        reader: at the body.
        lattice: of the points.
        d: coordinates of the update.
        scale: gives the (m,) shared scales of m blocks.
        dither: gives the (n, m) shared dithers of (m,) tries.

    Raises:
        MessageError: what is read is not what was written.
    """
    rms, content = struct.unpack("<fI", reader.take(8))
    told = read_range(reader)
    most_tries = reader.varint() if lattice.dim > 1 else 1
    low = reader.signed_varint()
    span = reader.varint()
    mismatch = MessageError(
        "the message is genuine but does not decode to what was sent: client and server compute different models (run "
        "the same release of krossfuse and constriction on both)"
    )
    if not (0 <= rms < np.inf and 1 <= most_tries < LIMIT_TRIES and span < MOST_SYMBOLS and abs(low) < 2**31 - span):
        raise mismatch
    alphabet = Alphabet(low, low + span, most_tries)
    data = reader.rest()
    data += bytes(8 + -len(data) % 4)  # the zeros that the encoder left out
    m = -(-d // lattice.dim)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    try:
        widths = read_widths(decoder, rms, told, m, lattice.dim)
        tries = read_tries(decoder, m, lattice, most_tries)
        shared_scale, shared_dither = scale(m), dither(tries)
        of_blocks = widths.of_blocks(m, lattice.dim)
        index = read_points(decoder, lattice, shared_scale, shared_dither, alphabet, of_blocks)
    except (AssertionError, ValueError) as error:
        raise mismatch from error
    if checksum(tries, index) != content:
        raise mismatch
    return Quantised(shared_scale, shared_dither, tries, index)
