"""The widths of the coder's prior: when stretches have their own, what it saves, and that nothing decoded changes."""

from __future__ import annotations

import hashlib
import math

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krossfuse.privacy import Key, make_mechanism
from krossfuse.privacy.messages import Reader
from krossfuse.privacy.widths import STRETCH, Widths, effective_width, read_range, read_widths, widths_of, write_widths

KEY = Key.from_seed(7, client=3, round=5)
UNEVEN = (np.repeat([3.0, 0.001, 0.3, 30.0], 80) * np.cos(np.arange(320.0))).astype(np.float32)
SIZES = np.repeat(np.exp2([-1.0, 0.0, -6.0, 1.0, -3.0, -9.0] * 8), STRETCH)
LAYERS = (0.5 * SIZES * np.random.default_rng(3).normal(size=len(SIZES))).astype(np.float32)
LATTICES = ("Z1", "Z2", "Z3", "A2", "D3", "D4", "E8")


@pytest.mark.parametrize("scale", [0.01, 0.3, 3.2, 30.0])
@pytest.mark.parametrize("d", [1, 63, 64, 65, 6_422])
def test_an_even_update_has_one_width(d: int, scale: float) -> None:
    x = np.random.default_rng(d).normal(size=d).astype(np.float32)
    widths = widths_of(x, 1, scale)
    assert len(widths.levels) == 0
    assert widths.of_blocks(d, 1).tolist() == [widths.rms]
    assert widths.rms == pytest.approx(math.sqrt(float(np.square(x, dtype=np.float64).mean())), rel=1e-6)


def test_a_stretch_has_the_width_of_its_own_numbers() -> None:
    widths = widths_of(LAYERS, 1, 3.2)
    each = np.sqrt(np.square(LAYERS, dtype=np.float64).reshape(-1, STRETCH).mean(1))
    chosen = widths.of_blocks(len(LAYERS), 1)[::STRETCH]
    worth = 3.4 * each / 3.2 > 0.05  # below, a width is no smaller than it is worth
    assert np.abs(np.log2(chosen[worth] / each[worth])).max() <= 0.25 + 1e-6  # half a step of half an octave
    assert (3.4 * chosen[~worth] / 3.2 < 0.05).all()
    assert not worth.all()


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 8])
def test_blocks_of_a_lattice_share_the_width_of_their_stretch(dim: int) -> None:
    widths = Widths(2.0, np.array([0, 1, -3], np.int32))
    per, m = STRETCH // dim, 2 * (STRETCH // dim) + 3
    expected = np.repeat([2.0, 2 * math.sqrt(2), 2 * 2**-1.5], per)[:m]
    assert widths.of_blocks(m, dim).tolist() == pytest.approx(expected.tolist(), rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(st.integers(-63, 63), min_size=1, max_size=40),
    dim=st.sampled_from([1, 2, 3, 4, 8]),
    rest=st.integers(0, 7),
)
def test_widths_are_read_as_they_were_written(levels: list[int], dim: int, rest: int) -> None:
    widths = Widths(1.5, np.array(levels, np.int32))
    m = len(levels) * (STRETCH // dim) - rest
    encoder = constriction.stream.queue.RangeEncoder()
    told = write_widths(encoder, widths)
    decoder = constriction.stream.queue.RangeDecoder(np.append(encoder.get_compressed(), [0, 0]).astype(np.uint32))
    reader = Reader(told)
    read = read_widths(decoder, 1.5, read_range(reader), m, dim)
    assert reader.rest() == b""
    assert read.levels.tolist() == levels


@pytest.mark.parametrize("told", [b"\x01\xff\x7f\x00\x01", b"\x01\x00\x00\x00", b"\x7f\x00\x00\x01"])
def test_an_impossible_range_is_refused(told: bytes) -> None:
    decoder = constriction.stream.queue.RangeDecoder(np.zeros(4, np.uint32))
    with pytest.raises(ValueError, match="no range"):
        read_widths(decoder, 1.0, read_range(Reader(told)), 500, 1)


@pytest.mark.parametrize("name", [*LATTICES, "laplace", "gaussian_sdq"])
def test_the_decoded_update_does_not_depend_on_the_widths(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"law": "laplace"} if name == "laplace" else {"lattice": name} if name in LATTICES else {}
    mechanism = make_mechanism(name if name == "gaussian_sdq" else "cepam", sigma=0.1, **options)
    message = mechanism.encode(LAYERS, KEY)
    decoded = mechanism.decode(message, KEY)
    with monkeypatch.context() as patch:
        patch.setattr("krossfuse.privacy.mechanisms.points.widths_of", lambda x, dim, scale: widths_of(x[:1], 1, scale))
        plain = mechanism.encode(LAYERS, KEY)
        assert np.array_equal(mechanism.decode(plain, KEY), decoded)
    assert len(message) < 0.97 * len(plain)


def test_an_update_with_layers_of_different_size_takes_a_tenth_less() -> None:
    even = make_mechanism("cepam", sigma=1.0, lattice="Z1").encode(
        np.random.default_rng(3).normal(size=len(LAYERS)) * np.sqrt(np.square(LAYERS).mean()), KEY
    )
    uneven = make_mechanism("cepam", sigma=1.0, lattice="Z1").encode(LAYERS, KEY)
    assert len(uneven) < 0.9 * len(even)


def test_the_effective_width_of_an_even_update_is_its_rms_and_of_an_uneven_one_less() -> None:
    x = np.random.default_rng(0).normal(size=4_096).astype(np.float32)
    assert effective_width(x, 3.2) == widths_of(x, 1, 3.2).rms
    assert effective_width(LAYERS, 3.2) < 0.8 * widths_of(LAYERS, 1, 3.2).rms


def test_nothing_to_send_has_one_width_of_zero() -> None:
    x = np.zeros(500, np.float32)
    assert widths_of(x, 1, 1.0).rms == 0
    mechanism = make_mechanism("cepam", sigma=1.0)
    assert len(mechanism.decode(mechanism.encode(x, KEY), KEY)) == len(x)


GOLDEN = {
    "Z1": "f0290f837e39bab7",
    "D3": "ecb805b748e25ad7",
    "E8": "893f65bb7be003ef",
    "laplace": "a9390e1973148d7e",
    "gaussian_sdq": "ac5dc6921c2b4720",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_messages_of_an_uneven_update(name: str) -> None:
    options = {"law": "laplace"} if name == "laplace" else {"lattice": name} if name in LATTICES else {}
    mechanism = make_mechanism(name if name == "gaussian_sdq" else "cepam", sigma=0.1, **options)
    digest = hashlib.sha256(mechanism.encode(UNEVEN, KEY)).hexdigest()[:16]
    assert digest == GOLDEN[name], "the format changed: raise messages.VERSION and freeze new messages"
